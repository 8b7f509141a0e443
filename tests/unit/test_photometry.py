"""Fluxes, positions and shapes of sources that were put there."""

from functools import cache

import numpy as np
import pytest

from core.detection import CandidateFlag, Detections, detect, significance
from core.image import MaskBit
from core.photometry import (
    PointSourceFit,
    aperture_fluxes,
    dipole_partners,
    fit_point_source,
    measure_shape,
    shape_flags,
)
from core.subtraction.correlation import CorrelatedNoise
from tests.unit.made_frames import (
    FWHM_PER_SIGMA,
    add_gaussians,
    grid_of_places,
    made_difference,
    smoothed_noise,
    smoothing_kernel,
)

SHAPE = (512, 512)
FWHM = 3.5
PSF_SIGMA = FWHM / FWHM_PER_SIGMA
NOISE = 5.0
FLUX_ERR = NOISE * np.sqrt(4 * np.pi) * PSF_SIGMA  # of a Gaussian on white noise
TARGET, SOURCE = 4.0, 3.0


def blank(rng, correlated):
    if not correlated:
        return rng.normal(0, NOISE, SHAPE), NOISE, CorrelatedNoise()
    kernel = smoothing_kernel(2.6, total=1.3)
    data = rng.normal(0, TARGET, SHAPE) - smoothed_noise(rng, SHAPE, SOURCE, kernel)
    noise = float(np.sqrt(TARGET**2 + SOURCE**2 * (kernel**2).sum()))
    return data, noise, CorrelatedNoise(kernel, SOURCE**2, TARGET**2)


def fitted(snr, *, correlated=False, sign=1):
    """Fit sources of one S/N on a grid: true (x, y, flux), and the fits."""
    return _fitted(snr, correlated, sign)


@cache  # several tests look at the same fits
def _fitted(snr, correlated, sign):
    start = 0.7
    places, fits = [], []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        data, noise, correlation = blank(rng, correlated)
        x, y = grid_of_places(SHAPE, 26, rng)
        psf = made_difference(data, noise, FWHM).psf.at(256, 256)
        error = noise * correlation.factor(psf) / np.sqrt((psf.astype(float) ** 2).sum())
        flux = np.full(x.size, sign * snr * error)
        add_gaussians(data, x, y, flux, FWHM)
        difference = made_difference(data, noise, FWHM, correlation=correlation)
        for px, py, f in zip(x, y, flux, strict=True):
            fit = fit_point_source(
                difference, px + rng.uniform(-start, start), py + rng.uniform(-start, start),
                gain=None,
            )  # fmt: skip
            places.append((px, py, f))
            fits.append(fit)
    return np.array(places).T, fits


@pytest.mark.parametrize(
    ("snr", "correlated", "sign"), [(7, False, 1), (20, False, -1), (20, True, 1), (60, False, 1)]
)
def test_fluxes_are_unbiased_and_their_errors_right(snr, correlated, sign):
    (_, _, flux), fits = fitted(snr, correlated=correlated, sign=sign)
    got = np.array([fit.flux for fit in fits])
    error = np.array([fit.flux_err for fit in fits])
    pull = (got - flux) / error
    assert len(pull) > 700
    assert np.mean(pull) == pytest.approx(0, abs=0.1)
    assert np.std(pull) == pytest.approx(1, abs=0.06)
    assert np.mean(got / flux) == pytest.approx(1, abs=0.01)
    assert (np.sign(got) == sign).all()


@pytest.mark.parametrize("snr", [7, 60])
def test_positions_reach_the_cramer_rao_limit(snr):
    (x, y, _), fits = fitted(snr)
    limit = np.sqrt(2) * PSF_SIGMA / snr
    for got, true, error in (
        ([fit.x for fit in fits], x, [fit.x_err for fit in fits]),
        ([fit.y for fit in fits], y, [fit.y_err for fit in fits]),
    ):
        offset = np.array(got) - true
        assert np.mean(offset) == pytest.approx(0, abs=4 * limit / np.sqrt(len(offset)))
        assert np.std(offset) < (1.1 if snr > 10 else 1.2) * limit
        assert np.std(offset / np.array(error)) == pytest.approx(1, abs=0.1)


def test_errors_of_correlated_positions_are_not_too_small():
    (x, _, _), fits = fitted(20, correlated=True)
    pull = (np.array([fit.x for fit in fits]) - x) / [fit.x_err for fit in fits]
    assert 0.8 < np.std(pull) < 1.1


def test_chi_square_is_one_for_what_is_a_point_source():
    _, fits = fitted(60)
    assert np.mean([fit.chi2 for fit in fits]) == pytest.approx(1, abs=0.03)


def test_photon_noise_of_the_source_is_in_the_errors():
    gain = 1.5
    pulls, ratio = [], []
    for seed in (5, 6):
        rng = np.random.default_rng(seed)
        light = np.zeros(SHAPE)
        x, y = grid_of_places(SHAPE, 26, rng)
        flux = np.full(x.size, 8000.0)
        add_gaussians(light, x, y, flux, FWHM)
        data = rng.poisson(light * gain) / gain + rng.normal(0, NOISE, SHAPE)
        difference = made_difference(data, NOISE, FWHM, gain=gain)
        for px, py, f in zip(x, y, flux, strict=True):
            fit = fit_point_source(difference, px, py, gain=gain)
            pulls.append((fit.flux - f) / fit.flux_err)
            ratio.append(fit.flux_err / FLUX_ERR)
    assert np.mean(pulls) == pytest.approx(0, abs=0.1)
    assert np.std(pulls) == pytest.approx(1, abs=0.06)
    assert np.mean(ratio) > 2  # without the photons the errors would be half as large


def test_masked_pixels_beside_a_source_do_not_displace_it():
    offsets, pulls = [], []
    for seed in (8,):
        rng = np.random.default_rng(seed)
        data = rng.normal(0, NOISE, SHAPE)
        x, y = grid_of_places(SHAPE, 26, rng)
        flux = np.full(x.size, 40 * FLUX_ERR)
        add_gaussians(data, x, y, flux, FWHM)
        mask = np.zeros(SHAPE, np.uint16)
        for column, row in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
            mask[row - 1 : row + 4, column + 2 : column + 5] = MaskBit.BAD
        data[mask != 0] = 1e5
        difference = made_difference(data, NOISE, FWHM, mask=mask)
        for px, py, f in zip(x, y, flux, strict=True):
            fit = fit_point_source(difference, round(px), round(py), gain=None)
            offsets.append((fit.x - px, fit.y - py))
            pulls.append((fit.flux - f) / fit.flux_err)
    limit = np.sqrt(2) * PSF_SIGMA / 40
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.2 * limit
    assert np.std(offsets, axis=0).max() < 1.5 * limit
    assert np.mean(pulls) == pytest.approx(0, abs=0.15)
    assert np.std(pulls) == pytest.approx(1, abs=0.1)


def test_at_the_edge_of_the_frame_it_is_fitted_with_what_is_there():
    rng = np.random.default_rng(10)
    data = rng.normal(0, NOISE, SHAPE)
    add_gaussians(data, [0.2, 400.2], [300.4, 511.1], 60 * FLUX_ERR, FWHM)
    difference = made_difference(data, NOISE, FWHM)
    for x, y in ((0.2, 300.4), (400.2, 511.1)):
        fit = fit_point_source(difference, round(x), round(y), gain=None)
        assert (fit.x, fit.y) == pytest.approx((x, y), abs=0.15)
        assert abs(fit.flux - 60 * FLUX_ERR) < 4 * fit.flux_err
        assert fit.flux_err > 1.1 * FLUX_ERR


def test_a_source_that_is_mostly_masked_is_not_fitted():
    mask = np.zeros(SHAPE, np.uint16)
    mask[:, 99:130] = MaskBit.BAD
    noise = np.random.default_rng(24).normal(0, NOISE, SHAPE)
    difference = made_difference(noise, NOISE, FWHM, mask=mask)
    assert fit_point_source(difference, 101, 100, gain=None) is None
    assert fit_point_source(difference, 80, 100, gain=None) is not None


def test_a_fit_does_not_walk_to_a_neighbour():
    data = np.random.default_rng(11).normal(0, NOISE, SHAPE)
    add_gaussians(data, [250], [250], 300 * FLUX_ERR, FWHM)
    fit = fit_point_source(made_difference(data, NOISE, FWHM), 256.0, 250.0, gain=None)
    assert np.hypot(fit.x - 256, fit.y - 250) < 0.75 * FWHM


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("radius", [3.0, 7.0])
def test_aperture_fluxes_and_errors(radius, correlated):
    pulls = []
    for seed in (12, 13, 14):
        rng = np.random.default_rng(seed)
        data, noise, correlation = blank(rng, correlated)
        x, y = grid_of_places(SHAPE, 26, rng)
        flux = rng.uniform(1000, 5000, x.size)
        add_gaussians(data, x, y, flux, FWHM)
        difference = made_difference(data, noise, FWHM, correlation=correlation)
        got, error = aperture_fluxes(difference, x, y, radius, gain=None)
        # SEP spreads the light of a pixel evenly over it
        inside = 1 - np.exp(-0.5 * radius**2 / (PSF_SIGMA**2 + 1 / 12))
        pulls.append((got - inside * flux) / error)
        if not correlated:
            white = noise * np.sqrt(np.pi) * radius
            assert np.mean(error) == pytest.approx(white, rel=0.01)
    assert np.mean(pulls) == pytest.approx(0, abs=0.12)
    assert np.std(pulls) == pytest.approx(1, abs=0.06)


def test_aperture_errors_hold_the_photons_of_the_source_once():
    data = np.zeros(SHAPE)
    add_gaussians(data, [100, 300], [100, 300], [20_000, -20_000], FWHM)
    difference = made_difference(data, NOISE, FWHM)
    at = np.array([100.0, 300.0])
    _, without = aperture_fluxes(difference, at, at, 7.0, gain=None)
    _, with_gain = aperture_fluxes(difference, at, at, 7.0, gain=2.0)
    np.testing.assert_allclose(with_gain[0] ** 2 - without[0] ** 2, 10_000, rtol=0.01)
    assert with_gain[1] == without[1]  # what is gone makes no noise
    assert [len(c) for c in aperture_fluxes(difference, at[:0], at[:0], 7.0, gain=None)] == [0, 0]


def flags_of(data, place=(256, 256)):
    difference = made_difference(data, NOISE, FWHM)
    fit = fit_point_source(difference, *place, gain=None)
    return shape_flags(fit, abs(fit.flux) / fit.flux_err)


@pytest.mark.parametrize("snr", [8, 50, 1000])
def test_point_sources_have_no_shape_flags(snr):
    counts = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        data = rng.normal(0, NOISE, SHAPE)
        x, y = grid_of_places(SHAPE, 52, rng)
        add_gaussians(data, x, y, snr * FLUX_ERR, FWHM)
        difference = made_difference(data, NOISE, FWHM)
        for px, py in zip(np.rint(x), np.rint(y), strict=True):
            fit = fit_point_source(difference, px, py, gain=None)
            counts.append(int(shape_flags(fit, abs(fit.flux) / fit.flux_err)))
    assert len(counts) == 400
    assert np.mean(np.array(counts) != 0) <= 0.005


@pytest.mark.parametrize("height", [15, 60, 1000])
def test_a_single_bright_pixel_is_sharp(height):
    rng = np.random.default_rng(20)
    for _ in range(10):
        data = rng.normal(0, NOISE, SHAPE)
        data[256, 256] += height * NOISE
        assert flags_of(data) & CandidateFlag.SHARP


def test_a_wide_source_is_extended():
    data = np.random.default_rng(21).normal(0, NOISE, SHAPE)
    add_gaussians(data, [256.2], [255.9], 60 * FLUX_ERR, 1.8 * FWHM)
    assert flags_of(data) & CandidateFlag.EXTENDED


def test_a_ring_is_a_poor_fit():
    y, x = np.mgrid[:512, :512]
    ring = np.abs(np.hypot(x - 256, y - 256) - 4) < 1
    data = np.random.default_rng(22).normal(0, NOISE, SHAPE) + 20 * NOISE * ring
    assert flags_of(data) & CandidateFlag.POOR_FIT


def test_flags_of_bright_sources_allow_for_what_the_model_lacks():
    fit = PointSourceFit(0, 0, 0.1, 0.1, 1e6, 1e3, 20.0, 100.0, 0.0)
    assert shape_flags(fit, 10.0) == CandidateFlag.SHARP | CandidateFlag.POOR_FIT
    assert shape_flags(fit, 1000.0) == CandidateFlag(0)


def test_shape_of_a_gaussian_is_its_own():
    data = np.zeros(SHAPE)
    add_gaussians(data, [100.3], [100.4], [1e6], FWHM)
    y, x = np.mgrid[:512, :512]
    dx, dy = x - 300.2, y - 300.1
    long, short = 2.2, 1.4  # sigma along the axes, turned by 30 degrees
    along, across = (
        dx * np.cos(0.5236) + dy * np.sin(0.5236),
        dy * np.cos(0.5236) - dx * np.sin(0.5236),
    )
    data += 1e4 * np.exp(-0.5 * ((along / long) ** 2 + (across / short) ** 2))
    difference = made_difference(data, NOISE, FWHM)
    own = measure_shape(difference, 100.3, 100.4, 1)
    assert (own.a, own.b) == pytest.approx((PSF_SIGMA, PSF_SIGMA), rel=0.02)
    assert own.fwhm == pytest.approx(FWHM, rel=0.02)
    assert (own.n_negative, own.n_bad) == (0, 0)
    assert own.sum_ratio == pytest.approx(1)
    assert own.d_snr == pytest.approx(difference.scaled[100, 100])
    turned = measure_shape(difference, 300.2, 300.1, 1)
    assert (turned.a, turned.b) == pytest.approx((long, short), rel=0.04)
    faded = measure_shape(made_difference(-data, NOISE, FWHM), 100.3, 100.4, -1)
    assert (faded.a, faded.n_negative) == (pytest.approx(own.a), 0)


def test_pixels_of_the_wrong_sign_and_bad_ones_are_counted():
    data = np.full(SHAPE, 10.0)
    data[100, 99:102] = -10
    mask = np.zeros(SHAPE, np.uint16)
    mask[98, 98:100] = MaskBit.BAD
    mask[95, 100] = MaskBit.BAD  # outside the 5x5
    shape = measure_shape(made_difference(data, NOISE, FWHM, mask=mask), 100.2, 99.9, 1)
    assert (shape.n_negative, shape.n_bad) == (3, 2)
    assert shape.sum_ratio == pytest.approx((22 - 3) / 25)


def detections(x, sign, snr):
    n = len(x)
    return Detections(
        np.array(x, float), np.full(n, 50.0), np.array(sign), np.array(snr, float),
        np.zeros(n, bool),
    )  # fmt: skip


def test_dipoles_are_near_of_the_other_sign_and_alike():
    found = detections(
        [100, 103, 200, 203, 300, 303, 400, 408], [1, -1, 1, 1, 1, -1, 1, -1],
        [20, 15, 20, 20, 50, 6, 20, 20],
    )  # fmt: skip
    partner = dipole_partners(found, 3.0)
    # a faint hole beside a bright source is its own artefact: the source stays
    assert partner.tolist() == [True, True, False, False, False, True, False, False]


def test_a_displaced_star_gives_a_dipole():
    data = np.random.default_rng(23).normal(0, NOISE, SHAPE)
    add_gaussians(data, [256.25, 255.75], [256, 256], [3e4, -3e4], FWHM)
    difference = made_difference(data, NOISE, FWHM)
    found = detect(significance(difference).snr, difference.mask, 5.0)
    assert len(found) == 2
    assert dipole_partners(found, FWHM).all()
