"""From residual and variance to noise and scaled difference: what every engine ends with."""

import numpy as np
import pytest

from core.image import Image, MaskBit
from core.stars import SourceList, StarList
from core.subtraction.finish import assemble, sky_statistics
from core.subtraction.pair import Pair
from tests.unit.made_frames import add_gaussians, grid_of_places

SHAPE = (400, 420)
FWHM = 3.5
SKY_NOISE = 5.0
CLEAR = np.zeros(SHAPE, np.uint16)


@pytest.fixture(scope="module")
def stars():
    """Stars on a grid: x, y, flux, their light, and the variance with their photons."""
    rng = np.random.default_rng(1)
    x, y = grid_of_places(SHAPE, 30, rng)
    flux = rng.uniform(2e4, 4e5, x.size)
    light = np.zeros(SHAPE)
    add_gaussians(light, x, y, flux, FWHM)
    return x, y, flux, light, SKY_NOISE**2 + light / 2.0


def pair_of(x=(), y=(), shift_rms=0.0):
    empty = Image(np.zeros(SHAPE, np.float32), CLEAR)
    n = len(x)
    unknown = np.full(n, np.nan)
    sources = SourceList(
        np.array(x, float), np.array(y, float), np.ones(n), unknown, unknown, unknown, unknown,
        np.ones(n, bool),
    )  # fmt: skip
    return Pair(empty, empty, FWHM, FWHM, StarList(sources, FWHM), shift_rms=shift_rms)


def assembled(data, variance, light, pair, mask=CLEAR):
    single = (np.asarray(plane, dtype=np.float32) for plane in (data, variance, light))
    data, variance, light = single
    return assemble(data, variance.copy(), light, mask, pair)


def noise_of(variance, seed):
    return np.random.default_rng(seed).normal(0, np.sqrt(variance))


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_right_noise_stays_as_it_is(stars, seed):
    x, y, _, light, variance = stars
    got = assembled(noise_of(variance, seed), variance, light, pair_of(x, y))
    assert got.model_error == 0
    np.testing.assert_allclose(got.noise, np.sqrt(variance), rtol=1e-5)
    np.testing.assert_allclose(got.scaled, got.data / got.noise, rtol=1e-5)
    assert got.star_chi2 == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("error", [0.01, 0.03])
def test_error_of_the_matching_is_measured_and_becomes_noise(stars, error):
    x, y, _, light, variance = stars
    wrong = np.random.default_rng(5).normal(0, error, SHAPE) * light
    got = assembled(noise_of(variance, 6) + wrong, variance, light, pair_of(x, y))
    assert got.model_error == pytest.approx(error, rel=0.1)
    bright = light > 400 * SKY_NOISE
    assert np.mean(got.scaled[bright] ** 2) == pytest.approx(1, abs=0.15)
    assert got.star_chi2 > 1.5  # what it was without it
    blank = light < 0.01
    np.testing.assert_allclose(got.noise[blank], SKY_NOISE, rtol=1e-4)


def test_an_error_beyond_belief_has_a_bound(stars):
    x, y, _, light, variance = stars
    got = assembled(noise_of(variance, 7) + 0.3 * light, variance, light, pair_of(x, y))
    assert got.model_error == pytest.approx(0.05, abs=1e-3)


def moved_stars(stars, rms, seed):
    """What is left of stars that lie displaced by a scatter of ``rms`` pixels per axis."""
    x, y, flux, light, _ = stars
    rng = np.random.default_rng(seed)
    moved = np.zeros(SHAPE)
    add_gaussians(moved, x + rng.normal(0, rms, x.size), y + rng.normal(0, rms, x.size), flux, FWHM)
    return moved - light


def test_displaced_stars_do_not_stand_out(stars):
    x, y, _, light, variance = stars
    data = noise_of(variance, 8) + moved_stars(stars, 0.1, 9)
    without = assembled(data, variance, light, pair_of(x, y))
    got = assembled(data, variance, light, pair_of(x, y, shift_rms=0.1))
    near = light > 50 * SKY_NOISE
    assert np.percentile(np.abs(without.scaled[near]), 99) > 1.3 * np.percentile(
        np.abs(got.scaled[near]), 99
    )
    slope = np.hypot(*np.gradient(light))
    added = got.noise**2 - variance - (got.model_error * light) ** 2
    steep = slope > 300
    displacement = np.sqrt(np.median(added[steep] / slope[steep] ** 2))
    assert 0.06 < displacement <= 0.1001


def test_a_scatter_that_the_residuals_do_not_show_is_not_taken(stars):
    x, y, _, light, variance = stars
    got = assembled(noise_of(variance, 10), variance, light, pair_of(x, y, shift_rms=0.3))
    assert np.median(got.noise**2 / variance) == pytest.approx(1, abs=0.01)
    assert np.mean(got.scaled[light > 50 * SKY_NOISE] ** 2) > 0.9


def test_sky_statistics_are_of_blank_sky(stars):
    *_, light, variance = stars
    noise = np.sqrt(variance).astype(np.float32)
    scaled = np.random.default_rng(15).normal(0.1, 1.2, SHAPE).astype(np.float32)
    scaled[light > 4.5 * noise] = 50
    mask = CLEAR.copy()
    mask[:100] = MaskBit.BAD
    scaled[:100] = -70
    mean, chi2 = sky_statistics(scaled, light.astype(np.float32), noise, mask)
    assert mean == pytest.approx(0.1, abs=0.02)
    assert chi2 == pytest.approx(1.44, rel=0.03)
    nothing = sky_statistics(scaled, light.astype(np.float32), noise, mask | MaskBit.BAD)
    assert np.isnan(nothing).all()
