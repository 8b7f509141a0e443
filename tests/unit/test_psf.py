"""The PSF model against PSFs that are known."""

from dataclasses import replace

import numpy as np
import pytest

from core.psf import MAX_STARS, PSFModel, fwhm_of, gaussian_psf, measure_psf, shifted, stamp_half
from core.simulate import SimulatedPSF, add_stars
from core.stars import SourceList
from tests.unit.made_frames import add_gaussians, grid_of_places

SHAPE = (480, 560)
SIGMA = 4.0
RMS = np.full(SHAPE, SIGMA, np.float32)
CLEAR = np.zeros(SHAPE, bool)


def star_list(x, y, flux):
    n = len(x)
    unknown = np.full(n, np.nan)
    order = np.argsort(-np.asarray(flux), kind="stable")
    return SourceList(
        np.asarray(x)[order], np.asarray(y)[order], np.asarray(flux)[order],
        unknown, unknown, np.ones(n), unknown, np.ones(n, bool),
    )  # fmt: skip


def field(seed, *, variation=0.1, step=40, faint=2e4, profile="moffat", ellipticity=0.05):
    """Stars on a grid: (light, PSF, x, y, flux)."""
    rng = np.random.default_rng(seed)
    psf = SimulatedPSF.draw(rng, SHAPE, 3.4, variation, ellipticity, profile)
    light = np.zeros(SHAPE)
    x, y = grid_of_places(SHAPE, step, rng)
    flux = faint * rng.uniform(0.05, 1, x.size) ** -0.8
    add_stars(light, psf, x, y, flux)
    return light, psf, x, y, flux


def observed(light, seed=1):
    return (light + np.random.default_rng(seed).normal(0, SIGMA, light.shape)).astype(np.float32)


def inner(stamp, half=4):
    middle = stamp.shape[0] // 2
    return stamp[middle - half : middle + half + 1, middle - half : middle + half + 1]


def test_gaussian_psf_has_its_fwhm_and_unit_sum():
    for fwhm in (2.2, 3.5, 6.0):
        psf = gaussian_psf(fwhm, SHAPE)
        stamp = psf.at(10, 20)
        assert stamp.sum() == pytest.approx(1, abs=1e-6)
        assert fwhm_of(stamp) == pytest.approx(fwhm, rel=0.03)
        assert psf.size == 2 * stamp_half(fwhm) + 1
        assert psf.n_stars == 0


def test_fwhm_is_the_diameter_at_half_the_peak():
    rng = np.random.default_rng(0)
    for fwhm in (2.5, 3.5, 5.0):
        true = SimulatedPSF.draw(rng, SHAPE, fwhm, 0.0, 0.0, "moffat", 3.5)
        assert fwhm_of(true.at(100, 100, 41)) == pytest.approx(fwhm, rel=0.03)


def test_shift_moves_by_a_fraction_of_a_pixel_to_two_thousandths():
    frames = np.zeros((2, 41, 41))
    add_gaussians(frames[0], [20], [20], [1], 3.0)
    add_gaussians(frames[1], [20.37], [19.71], [1], 3.0)
    moved = shifted(frames[0], 0.37, -0.29)
    assert np.abs(moved - frames[1]).max() < 2e-3 * frames[1].max()


def test_the_psf_of_the_stars_is_recovered_everywhere():
    light, true, x, y, flux = field(3)
    psf = measure_psf(observed(light), RMS, CLEAR, star_list(x, y, flux), 3.6)
    assert psf.order == 2
    assert psf.n_stars > 0.9 * len(x)
    assert psf.fwhm == pytest.approx(true.fwhm, rel=0.03)
    fwhm = []
    for px, py in ((30, 30), (530, 30), (30, 450), (530, 450), (280, 240)):
        got, expected = psf.at(px, py), true.at(px, py, psf.size)
        assert got.sum() == pytest.approx(1, abs=2e-3)  # less what lies beyond the stamp
        assert np.abs(inner(got - expected)).max() < 0.03 * expected.max()
        assert fwhm_of(got) == pytest.approx(float(true.fwhm_at(px, py)), rel=0.04)
        fwhm.append(fwhm_of(got))
    assert np.ptp(fwhm) > 0.1 * true.fwhm  # the test would see a constant model


def test_centre_of_the_psf_is_the_middle_pixel():
    light, _, x, y, flux = field(4, variation=0.0, ellipticity=0.0)
    psf = measure_psf(observed(light), RMS, CLEAR, star_list(x, y, flux), 3.6)
    stamp = inner(psf.at(280, 240), 6).astype(float)
    rows, cols = np.mgrid[-6:7, -6:7]
    assert (stamp * cols).sum() == pytest.approx(0, abs=0.01)
    assert (stamp * rows).sum() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("stars", "order"), [(60, 2), (20, 1), (6, 0)])
def test_order_follows_the_number_of_stars(stars, order):
    light, _, x, y, flux = field(5)
    chosen = star_list(x, y, flux).select(np.arange(stars))
    psf = measure_psf(observed(light), RMS, CLEAR, chosen, 3.6)
    assert psf.order == order
    assert psf.at(100, 300).sum() == pytest.approx(1, abs=1e-3)  # less what lies beyond the stamp


def test_neighbours_of_the_stars_do_not_get_into_the_psf():
    light, true, x, y, flux = field(6, variation=0.05)
    rng = np.random.default_rng(7)
    angle = rng.uniform(0, 2 * np.pi, x.size)
    distance = rng.uniform(6, 10, x.size)
    add_stars(
        light, true, x + distance * np.cos(angle), y + distance * np.sin(angle),
        rng.uniform(0.1, 0.8, x.size) * flux,
    )  # fmt: skip
    psf = measure_psf(observed(light), RMS, CLEAR, star_list(x, y, flux), 3.6)
    for px, py in ((100, 100), (450, 380)):
        got, expected = psf.at(px, py), true.at(px, py, psf.size)
        assert np.abs(got - expected).max() < 0.04 * expected.max()
    assert psf.fwhm == pytest.approx(true.fwhm, rel=0.04)


def test_a_star_that_is_none_is_left_out():
    light, true, x, y, flux = field(8, step=60)
    add_gaussians(light, [x[5]], [y[5]], [50 * flux[5]], 9.0)  # a galaxy
    flux[5] *= 51
    psf = measure_psf(observed(light), RMS, CLEAR, star_list(x, y, flux), 3.6)
    assert psf.fwhm == pytest.approx(true.fwhm, rel=0.03)


def test_masked_pixels_have_no_say():
    light, true, x, y, flux = field(9)
    bad = CLEAR.copy()
    data = observed(light)
    for xi, yi in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
        bad[yi + 7, xi - 1 : xi + 2] = True
    data[bad] = 1e5
    psf = measure_psf(data, RMS, bad, star_list(x, y, flux), 3.6)
    got, expected = psf.at(280, 240), true.at(280, 240, psf.size)
    seven_up = (slice(psf.size // 2 + 6, psf.size // 2 + 9), slice(None))
    assert psf.fwhm == pytest.approx(true.fwhm, rel=0.04)
    assert np.abs(got - expected)[seven_up].max() < 0.02 * expected.max()


def test_without_stars_it_is_a_gaussian():
    x = np.array([100.0, 200.0])
    psf = measure_psf(observed(np.zeros(SHAPE)), RMS, CLEAR, star_list(x, x, x), 3.0)
    assert (psf.order, psf.n_stars, psf.fwhm) == (0, 0, 3.0)
    masked = measure_psf(
        observed(np.zeros(SHAPE)), RMS, ~CLEAR, star_list([99.0] * 9, [99.0] * 9, [1.0] * 9), 3.0
    )
    assert masked.n_stars == 0


def test_no_more_stars_than_needed_are_read():
    light, _, x, y, flux = field(10)
    many = star_list(np.tile(x, 4), np.tile(y, 4), np.tile(flux, 4))
    assert len(many) > MAX_STARS
    assert measure_psf(observed(light), RMS, CLEAR, many, 3.6).n_stars <= MAX_STARS


def test_cropping_keeps_the_core():
    psf = replace(gaussian_psf(3.0, SHAPE), n_stars=7, flux_error=0.01)
    small = psf.cropped(4)
    assert small.size == 9
    assert (small.n_stars, small.flux_error) == (7, 0.01)
    np.testing.assert_array_equal(small.at(5, 5), inner(psf.at(5, 5), 4))
    assert psf.cropped(50) is psf


def test_what_a_subclass_knows_of_the_whole_stamp_is_not_kept_of_a_part():
    class Knowing(PSFModel):
        pass

    whole = Knowing(gaussian_psf(3.0, SHAPE).coefficients, 0, SHAPE, 3.0)
    assert type(whole.cropped(4)) is PSFModel


@pytest.mark.parametrize("beta", [2.6, 3.5])
def test_wings_at_the_rim_are_the_stars_own(beta):
    rng = np.random.default_rng(9)
    psf = SimulatedPSF.draw(rng, SHAPE, 3.6, 0.0, 0.0, "moffat", beta)
    x, y = grid_of_places(SHAPE, 45, rng)
    flux = 3e4 * rng.uniform(0.02, 1, x.size) ** -0.8
    light = np.zeros(SHAPE)
    add_stars(light, psf, x, y, flux)
    model = measure_psf(observed(light), RMS, CLEAR, star_list(x, y, flux), 3.6).at(280, 240)
    true = psf.at(280, 240, model.shape[0])
    assert (model * true).sum() / (model**2).sum() == pytest.approx(1, abs=0.006)


def flux_errors(psf, true):
    """What a fit with the model adds to the flux of a star, at 16 places."""
    middle = np.s_[psf.size // 2 - 6 : psf.size // 2 + 7]
    found = []
    for px in (40, 200, 360, 520):
        for py in (40, 170, 310, 440):
            model = psf.at(px, py)[middle, middle].astype(float)
            star = true.at(px, py, psf.size)[middle, middle]
            found.append((model * star).sum() / (model**2).sum() - 1)
    return np.array(found)


@pytest.mark.parametrize("seed", [3, 4])
def test_faint_stars_do_not_make_a_noisy_psf(seed):
    """Ten bright ones tell the profile; how it varies is left to size and shape."""
    rng = np.random.default_rng(seed)
    true = SimulatedPSF.draw(rng, SHAPE, 3.4, 0.1, 0.03, "moffat")
    x, y = grid_of_places(SHAPE, 38, rng)
    flux = np.where(rng.permutation(x.size) < 10, 6e4, 1500.0)  # S/N of 50 and more
    light = np.zeros(SHAPE)
    add_stars(light, true, x, y, flux)
    psf = measure_psf(observed(light, seed), RMS, CLEAR, star_list(x, y, flux), 3.6)
    errors = flux_errors(psf, true)
    assert abs(errors.mean()) < 0.005
    assert errors.std() < 0.0045


def test_stars_on_galaxies_do_not_make_the_psf_wide():
    light, true, x, y, flux = field(11, faint=1500, step=30)
    hosts = np.arange(x.size) % 3 == 0
    add_gaussians(light, x[hosts], y[hosts], 0.25 * flux[hosts], 6.5)
    total = np.where(hosts, 1.25, 1) * flux
    psf = measure_psf(observed(light), RMS, CLEAR, star_list(x, y, total), 3.6)
    assert abs(flux_errors(psf, true).mean()) < 0.01


def scattered(seed, stars, *, variation=0.1, hosts=0.0):
    """Stars of S/N 20 to some hundreds at random places, some on galaxies: (light, PSF, list)."""
    rng = np.random.default_rng(seed)
    true = SimulatedPSF.draw(rng, SHAPE, 3.4, variation, 0.03, "moffat")
    x, y = rng.permutation(np.column_stack(grid_of_places(SHAPE, 26, rng)))[:stars].T
    flux = 1500.0 * rng.uniform(0.01, 1, stars) ** -0.8
    light = np.zeros(SHAPE)
    add_stars(light, true, x, y, flux)
    on = rng.uniform(size=stars) < hosts
    add_gaussians(light, x[on], y[on], rng.uniform(0.1, 0.5, on.sum()) * flux[on], 6.5)
    return light, true, star_list(x, y, flux)


@pytest.mark.parametrize(
    ("stars", "hosts"),
    [(6, 0.0), (10, 0.0), (20, 0.0), (45, 0.0), (45, 0.3), (150, 0.0)],
)
def test_the_error_that_it_states_is_the_one_that_it_has(stars, hosts):
    made, stated = [], []
    for seed in range(8):
        light, true, chosen = scattered(seed, stars, hosts=hosts)
        psf = measure_psf(observed(light, seed), RMS, CLEAR, chosen, 3.6)
        made.append(np.sqrt(np.mean(flux_errors(psf, true) ** 2)))
        stated.append(psf.flux_error)
    ratio = np.sqrt(np.mean(np.square(stated)) / np.mean(np.square(made)))
    assert 1 / 1.5 < ratio < 1.5, (stated, made)


def test_error_of_a_rich_field_is_small_and_of_an_analytic_psf_unknown():
    light, _, chosen = scattered(1, 280)
    bright = replace(chosen, flux=30 * chosen.flux)
    assert measure_psf(observed(30 * light), RMS, CLEAR, bright, 3.6).flux_error < 0.003
    assert gaussian_psf(3.0, SHAPE).flux_error == 0
