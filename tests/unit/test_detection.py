"""The matched-filter map and its peaks, on skies whose noise is known."""

import numpy as np
import pytest
import sep
from scipy import ndimage

from core.detection import CandidateFlag, detect, place_flags, significance
from core.errors import QualityRejected
from core.image import MaskBit
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
TARGET, SOURCE = 4.0, 3.0


def white(seed, sigma=5.0, shape=SHAPE):
    return made_difference(np.random.default_rng(seed).normal(0, sigma, shape), sigma, FWHM)


def correlated(seed):
    """Science noise minus the noise of a template that went through a kernel."""
    rng = np.random.default_rng(seed)
    kernel = smoothing_kernel(2.6, total=1.3)
    data = rng.normal(0, TARGET, SHAPE) - smoothed_noise(rng, SHAPE, SOURCE, kernel)
    noise = np.sqrt(TARGET**2 + SOURCE**2 * (kernel**2).sum())
    return made_difference(
        data, noise, FWHM, correlation=CorrelatedNoise(kernel, SOURCE**2, TARGET**2)
    )


def inner(frame, margin=20):
    return frame[margin:-margin, margin:-margin]


@pytest.mark.parametrize("blank", [white, correlated])
def test_blank_sky_has_unit_variance_before_it_is_made_so(blank):
    """The propagated noise alone gives it; the widening that is divided out is next to one."""
    for seed in (1, 2):
        found = significance(blank(seed))
        assert found.widening == pytest.approx(1.0, abs=0.015)
        assert np.std(inner(found.snr)) == pytest.approx(1.0, abs=0.015)
        assert np.mean(inner(found.snr)) == pytest.approx(0.0, abs=0.05)


def test_sources_do_not_widen_the_map():
    """A tenth of the frame is within two seeings of one of them."""
    rng = np.random.default_rng(8)
    data = np.random.default_rng(3).normal(0, 5.0, SHAPE)
    n = round(data.size / 2500)
    x, y = (rng.uniform(10, side - 10, n) for side in reversed(SHAPE))
    add_gaussians(data, x, y, 30 * 5.0 * 2 * np.sqrt(np.pi) * PSF_SIGMA, FWHM)
    full = made_difference(data, 5.0, FWHM)
    assert significance(full).widening == pytest.approx(1.0, abs=0.02)
    assert (np.abs(significance(full).snr) > 5).mean() > 0.005


def test_noise_that_was_believed_too_small_is_divided_out():
    difference = made_difference(np.random.default_rng(3).normal(0, 5.0, SHAPE), 4.0, FWHM)
    found = significance(difference)
    assert found.widening == pytest.approx(1.25, abs=0.02)
    assert np.std(inner(found.snr)) == pytest.approx(1.0, abs=0.01)
    expected = 5.0 * np.sqrt(4 * np.pi) * PSF_SIGMA
    assert np.median(found.flux_err) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e12])
def test_units_do_not_matter(scale):
    reference = significance(white(4))
    data = white(4).data.astype(np.float64) * scale
    got = significance(made_difference(data, 5.0 * scale, FWHM))
    np.testing.assert_allclose(got.snr, reference.snr, atol=1e-3)
    assert np.median(got.flux_err) == pytest.approx(scale * np.median(reference.flux_err), rel=1e-4)


def test_error_of_the_flux_is_that_of_the_matched_filter():
    expected = 5.0 * np.sqrt(4 * np.pi) * PSF_SIGMA  # sigma / sqrt(sum P²) of a Gaussian
    assert np.median(significance(white(5)).flux_err) == pytest.approx(expected, rel=0.015)
    # of correlated noise: from the scatter of the filter's own output
    difference = correlated(5)
    found = significance(difference)
    stamp = difference.psf.at(256, 256).astype(float)
    flux = ndimage.correlate(difference.data.astype(float), stamp) / (stamp**2).sum()
    assert np.median(found.flux_err) == pytest.approx(np.std(inner(flux)), rel=0.02)


@pytest.mark.parametrize("blank", [white, correlated])
def test_peak_of_a_source_is_its_signal_to_noise(blank):
    difference = blank(6)
    rng = np.random.default_rng(7)
    x, y = grid_of_places(SHAPE, 40, rng)
    x, y = np.rint(x), np.rint(y)
    error = float(np.median(significance(difference).flux_err))
    light = np.zeros(SHAPE)
    add_gaussians(light, x, y, 20 * error, FWHM)
    found = significance(
        made_difference(
            difference.data + light, difference.noise, FWHM, correlation=difference.correlation
        )
    )
    at = (y.astype(int), x.astype(int))
    # so many sources widen the map a little, and are divided by it
    expected = 20 * error / found.flux_err[at]
    assert np.mean(found.snr[at] / expected) == pytest.approx(1, abs=0.015)
    assert np.std(found.snr[at] - expected) == pytest.approx(1, abs=0.2)
    assert 0.9 < np.mean(expected) / 20 < 1


def expected_peaks(threshold, n_pixels):
    """Peaks above a level in a Gaussian field (Adler 1981: Euler characteristic).

    The matched filter of white noise with a Gaussian PSF has the autocorrelation
    ``exp(-r² / 4 sigma²)``, whose second derivative at 0 is ``1 / 2 sigma²``.
    """
    density = threshold * np.exp(-0.5 * threshold**2) / (2 * np.pi) ** 1.5 / (2 * PSF_SIGMA**2)
    return n_pixels * density


@pytest.mark.parametrize("threshold", [3.5, 4.0])
def test_false_alarms_are_those_of_a_gaussian_field(threshold):
    number = 0
    for seed in range(30, 36):
        difference = white(seed)
        found = detect(significance(difference).snr, difference.mask, threshold)
        number += len(found)
    expected = 2 * expected_peaks(threshold, 6 * SHAPE[0] * SHAPE[1])  # both signs
    assert expected > 50
    assert 1 / 1.3 < number / expected < 1.3


def test_false_alarms_of_correlated_noise_are_not_more():
    number = 0
    for seed in range(40, 44):
        difference = correlated(seed)
        number += len(detect(significance(difference).snr, difference.mask, 4.0))
    expected = 2 * expected_peaks(4.0, 4 * SHAPE[0] * SHAPE[1])
    assert number / expected < 1.5
    assert number > 0


def test_every_isolated_source_above_ten_sigma_is_found_and_of_the_right_sign():
    difference = white(8)
    rng = np.random.default_rng(9)
    x, y = grid_of_places(SHAPE, 24, rng)
    error = 5.0 * np.sqrt(4 * np.pi) * PSF_SIGMA
    snr = 10 * rng.uniform(0.02, 1, x.size) ** -1.0
    sign = np.where(rng.random(x.size) < 0.5, -1, 1)
    light = np.zeros(SHAPE)
    add_gaussians(light, x, y, sign * snr * error, FWHM)
    difference = made_difference(difference.data + light, 5.0, FWHM)
    found = detect(significance(difference).snr, difference.mask, 5.0)
    distance = np.hypot(found.x[:, None] - x, found.y[:, None] - y)
    nearest = distance.argmin(axis=0)
    assert distance.min(axis=0).max() < 1.5
    assert (found.sign[nearest] == sign).all()
    assert len(set(nearest)) == len(x)
    assert len(found) <= len(x) + 1


def test_a_masked_source_is_not_found_and_masked_pixels_weigh_nothing():
    light = np.random.default_rng(10).normal(0, 5.0, SHAPE)
    add_gaussians(light, [100, 300], [100, 300], 20_000, FWHM)
    mask = np.zeros(SHAPE, np.uint16)
    mask[80:121, 80:121] = MaskBit.BAD
    light[200:204, 200:230] = 1e7
    mask[200:204, 200:230] = MaskBit.SATURATED
    difference = made_difference(light, 5.0, FWHM, mask=mask)
    found = detect(significance(difference).snr, mask, 5.0)
    assert [(x, y) for x, y in zip(found.x, found.y, strict=True)] == [(300, 300)]


def test_flux_error_grows_where_pixels_are_missing():
    mask = np.zeros(SHAPE, np.uint16)
    mask[:, 250:253] = MaskBit.BAD
    difference = made_difference(
        np.random.default_rng(11).normal(0, 5.0, SHAPE), 5.0, FWHM, mask=mask
    )
    error = significance(difference).flux_err
    assert np.median(error[:, 253]) > 1.15 * np.median(error[:, 100])
    psf = difference.psf.at(253, 256).astype(float)
    middle = psf.shape[1] // 2
    psf[:, middle - 3 : middle] = 0
    assert np.median(error[:, 253]) == pytest.approx(5.0 / np.sqrt((psf**2).sum()), rel=0.03)


def test_peak_is_not_drawn_away_by_a_mask():
    light = np.zeros(SHAPE)
    add_gaussians(light, [256], [256], 50_000, FWHM)
    mask = np.zeros(SHAPE, np.uint16)
    mask[:, 258:264] = MaskBit.BAD
    data = light + np.random.default_rng(12).normal(0, 5.0, SHAPE)
    found = detect(significance(made_difference(data, 5.0, FWHM, mask=mask)).snr, mask, 5.0)
    best = int(np.argmax(found.peak_snr))
    assert abs(found.x[best] - 256) <= 1
    assert abs(found.y[best] - 256) <= 1


def test_neighbours_are_told_apart_and_called_blended():
    light = np.random.default_rng(13).normal(0, 5.0, SHAPE)
    add_gaussians(light, [200, 208, 400], [200, 200, 400], [6000, 5000, 6000], FWHM)
    difference = made_difference(light, 5.0, FWHM)
    found = detect(significance(difference).snr, difference.mask, 5.0)
    blended = {(round(x), round(y)): bool(b) for x, y, b in zip(found.x, found.y, found.blended,
                                                              strict=True)}  # fmt: skip
    assert {place: flag for place, flag in blended.items() if place[1] < 300} == {
        (200, 200): True, (208, 200): True,
    }  # fmt: skip
    assert not any(flag for place, flag in blended.items() if place[1] > 300)


def test_a_map_full_of_detections_is_rejected():
    before = sep.get_extract_pixstack()
    sep.set_extract_pixstack(10_000)
    try:
        with pytest.raises(QualityRejected, match=r"overflowed at 5 sigma.*cannot be trusted"):
            detect(np.full(SHAPE, 50.0, np.float32), np.zeros(SHAPE, np.uint16), 5.0)
    finally:
        sep.set_extract_pixstack(before)


def test_a_difference_without_a_good_pixel_is_rejected():
    mask = np.full(SHAPE, MaskBit.BAD, np.uint16)
    with pytest.raises(QualityRejected, match="every pixel of the difference is masked"):
        significance(made_difference(np.zeros(SHAPE), 1.0, FWHM, mask=mask))


@pytest.mark.parametrize(
    ("bit", "at", "flags"),
    [
        (MaskBit.BAD, (103, 100), CandidateFlag.MASKED_NEAR),
        (MaskBit.BAD, (105, 100), CandidateFlag(0)),
        (MaskBit.BAD, (100, 100), CandidateFlag.MASKED_NEAR | CandidateFlag.CENTRE_MASKED),
        (MaskBit.SATURATED, (106, 100), CandidateFlag.SATURATED_NEAR),
        (MaskBit.TEMPLATE_SATURATED, (106, 100), CandidateFlag.SATURATED_NEAR),
        (MaskBit.TEMPLATE_SATURATED, (109, 100), CandidateFlag(0)),
        (MaskBit.TEMPLATE_BAD, (97, 102), CandidateFlag.TEMPLATE_BAD_NEAR),
        (MaskBit.TEMPLATE_NO_DATA, (97, 102), CandidateFlag.TEMPLATE_BAD_NEAR),
        (MaskBit.EDGE, (97, 102), CandidateFlag.EDGE),
    ],
)
def test_flags_say_what_the_mask_says(bit, at, flags):
    mask = np.zeros(SHAPE, np.uint16)
    mask[at[1], at[0]] = bit
    assert place_flags(mask, 100.2, 99.8, 3.2) == flags


@pytest.mark.parametrize("place", [(1.0, 200.0), (200.0, 509.5), (-4.0, 700.0)])
def test_at_the_edge_is_flagged(place):
    assert place_flags(np.zeros(SHAPE, np.uint16), *place, 3.2) == CandidateFlag.EDGE
