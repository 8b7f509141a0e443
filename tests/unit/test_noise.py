"""Sky and noise of images whose noise is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, signal

from core.errors import QualityRejected
from core.image import Image
from core.noise import (
    estimate_gain,
    measure_sky,
    sky_variance,
    with_noise,
)
from core.white_noise import difference_noise
from tests.unit.made_frames import (
    add_gaussians,
    grid_of_places,
    made_image,
    smoothed_noise,
    smoothing_kernel,
)

SHAPE = (512, 512)
GOOD = np.zeros(SHAPE, dtype=bool)


def crowded(rng, per_million, sigma=5.0):
    """White noise around a sky of 300 under so many stars, from 3 sigma a pixel up."""
    light = np.zeros(SHAPE)
    n = round(per_million * light.size / 1e6)
    flux = 30 * sigma * rng.uniform(1e-3, 1, n) ** -0.9
    add_gaussians(light, rng.uniform(0, 511, n), rng.uniform(0, 511, n), flux, 3.0)
    return light + rng.normal(300.0, sigma, SHAPE)


@pytest.mark.parametrize("lag", [1, 2])
def test_white_noise_is_measured_to_one_percent(lag):
    data = np.random.default_rng(1).normal(100, 7.0, SHAPE).astype(np.float32)
    assert difference_noise(data, GOOD, lag) == pytest.approx(7.0, rel=0.01)


def test_a_steep_background_adds_nothing():
    y, x = np.mgrid[:512, :512]
    data = np.random.default_rng(2).normal(0, 7.0, SHAPE) + 3 * x + 2 * y + 0.01 * x * y
    assert difference_noise(data.astype(np.float32), GOOD) == pytest.approx(7.0, rel=0.015)


def test_noise_under_a_crowded_field_is_measured_to_two_percent():
    data = crowded(np.random.default_rng(3), 5000).astype(np.float32)
    assert difference_noise(data, GOOD) == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize("sigma", [1.0, 1.7, 2.7, 13.0])
@pytest.mark.parametrize("unit", [1.0, 0.37])
def test_whole_counts_are_no_hindrance(sigma, unit):
    counts = np.rint(np.random.default_rng(16).normal(300.2, sigma, SHAPE))
    expected = unit * np.sqrt(sigma**2 + 1 / 12)  # rounding adds a twelfth of a count squared
    got = difference_noise((unit * counts).astype(np.float32), GOOD)
    assert got == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_correlated_noise_gives_what_theory_gives(lag):
    kernel = smoothing_kernel(1.6)
    data = smoothed_noise(np.random.default_rng(4), SHAPE, 5.0, kernel)
    own = signal.correlate2d(kernel, kernel)
    r = own[own.shape[0] // 2, own.shape[1] // 2 :]
    theory = 5.0 * np.sqrt(
        (6 * r[0] - 8 * r[lag] + 2 * (r[2 * lag] if 2 * lag < r.size else 0)) / 6
    )
    assert difference_noise(data.astype(np.float32), GOOD, lag) == pytest.approx(theory, rel=0.02)


def test_masked_pixels_are_left_out():
    rng = np.random.default_rng(5)
    data = rng.normal(0, 7.0, SHAPE).astype(np.float32)
    bad = rng.random(SHAPE) < 0.05
    data[bad] = rng.normal(0, 1e4, int(bad.sum()))
    assert difference_noise(data, bad) == pytest.approx(7.0, rel=0.015)


def test_too_little_to_measure_is_nan():
    assert np.isnan(difference_noise(np.zeros((9, 9), np.float32), np.zeros((9, 9), bool)))
    assert np.isnan(difference_noise(np.zeros(SHAPE, np.float32), ~GOOD))


def test_sky_follows_a_gradient_and_its_noise():
    """The darker half of the frame is the quieter one, and does not speak for the other."""
    rng = np.random.default_rng(6)
    x = np.linspace(-1, 1, 512)
    level = np.broadcast_to(200 + 30 * x, SHAPE)
    sigma = np.broadcast_to(5 + 0.75 * x, SHAPE)
    sky = measure_sky(made_image(rng.normal(level, sigma)))
    inner = np.s_[40:-40, 40:-40]
    assert np.abs(sky.level - level)[inner].max() < 1.0  # a fifth of the noise of a pixel
    np.testing.assert_allclose(sky.rms[inner], sigma[inner], rtol=0.06)
    assert sky.median_level == pytest.approx(200, abs=0.3)
    assert sky.median_rms == pytest.approx(5.0, rel=0.015)


@pytest.mark.parametrize("seed", [20, 21])
def test_the_clipping_of_the_mesh_is_corrected_for(seed):
    """Where differences say more than the mesh, the mesh is what counts."""
    data = np.random.default_rng(seed).normal(300, 5.0, SHAPE)
    assert measure_sky(made_image(data)).median_rms == pytest.approx(5.0, rel=0.008)


def test_stars_do_not_raise_the_noise_of_a_crowded_sky():
    sky = measure_sky(made_image(crowded(np.random.default_rng(7), 5000)))
    assert sky.median_rms == pytest.approx(5.0, rel=0.02)


def test_a_gain_tells_the_noise_of_the_most_crowded_sky():
    data = crowded(np.random.default_rng(7), 15_000)
    known = measure_sky(made_image(data, gain=300.0 / 25.0))
    assert known.median_rms == pytest.approx(5.0, rel=0.035)
    # without one the stars cannot be told from correlated noise, and too much is on the safe side
    assert measure_sky(made_image(data)).median_rms > 5.0


def test_correlated_noise_is_not_taken_for_less_than_it_is():
    kernel = smoothing_kernel(2.0)
    data = smoothed_noise(np.random.default_rng(8), SHAPE, 5.0, kernel)
    true = 5.0 * np.sqrt((kernel**2).sum())
    assert difference_noise(data.astype(np.float32), GOOD) < 0.75 * true  # what a trap it is
    assert measure_sky(made_image(data)).median_rms == pytest.approx(true, rel=0.03)


def test_a_frame_without_noise_is_rejected_with_advice():
    with pytest.raises(
        QualityRejected, match=r"made\.fits: the sky has no measurable noise.*weight"
    ):
        measure_sky(made_image(np.full((128, 128), 7.0)))


@pytest.mark.parametrize("gain", [0.6, 2.0, 8.0])
def test_gain_follows_from_the_photons_of_the_sky(gain):
    data = np.random.default_rng(9).poisson(800 * gain, SHAPE) / gain
    image = made_image(data)
    assert estimate_gain(image, measure_sky(image)) == pytest.approx(gain, rel=0.03)


def test_gain_of_a_subtracted_sky_is_not_guessed():
    image = made_image(np.random.default_rng(10).normal(2, 5.0, SHAPE))
    sky = measure_sky(image)
    assert estimate_gain(image, sky) is None
    done = with_noise(image, sky)
    assert done.facts.gain is None
    assert done.facts.estimated == ()
    np.testing.assert_array_equal(done.variance, sky.rms**2)


def test_estimated_gain_is_called_estimated_and_a_given_one_stays():
    data = np.random.default_rng(11).poisson(800 * 2.0, SHAPE) / 2.0
    image = made_image(data)
    sky = measure_sky(image)
    done = with_noise(image, sky)
    assert done.facts.estimated == ("gain",)
    assert done.facts.gain == pytest.approx(2.0, rel=0.03)
    given = with_noise(made_image(data, gain=1.9), sky)
    assert (given.facts.gain, given.facts.estimated) == (1.9, ())


GAIN, SKY = 2.0, 400.0


@pytest.fixture(scope="module")
def starry():
    """Poisson counts of a sky with stars, and the true variance of every pixel."""
    rng = np.random.default_rng(12)
    light = np.zeros(SHAPE)
    x, y = grid_of_places(SHAPE, 40, rng)
    flux = rng.uniform(1e4, 2e5, x.size)
    add_gaussians(light, x, y, flux, 3.5)
    data = rng.poisson((light + SKY) * GAIN) / GAIN
    return data, light, (light + SKY) / GAIN


def test_variance_holds_the_photons_of_the_sources(starry):
    data, light, truth = starry
    image = made_image(data, gain=GAIN)
    variance = with_noise(image, measure_sky(image)).variance
    assert np.median(variance[light < 0.01]) == pytest.approx(SKY / GAIN, rel=0.03)
    bright = light > 200
    smooth = SKY / GAIN + ndimage.uniform_filter(light, 3) / GAIN
    assert np.mean(variance[bright] / smooth[bright]) == pytest.approx(1.0, abs=0.015)
    # 3x3 pixels spread the photons of a star, and lose none
    assert variance[bright].sum() == pytest.approx(truth[bright].sum(), rel=0.03)


def test_the_noise_of_a_pixel_does_not_choose_its_own_variance(starry):
    data, light, _ = starry
    image = made_image(data, gain=GAIN)
    variance = with_noise(image, measure_sky(image)).variance
    star = (light > 50) & (light < 2000)
    # were it the pixel's own counts, the weighted flux would be low by one electron a pixel
    weighted = ((data - light - SKY) / variance)[star].sum() / (light / variance)[star].sum()
    own = np.maximum(data, 1) / GAIN
    naive = ((data - light - SKY) / own)[star].sum() / (light / own)[star].sum()
    assert naive < -0.0007
    assert abs(weighted) < 0.6 * abs(naive)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_relative_weights_are_scaled_to_the_noise_of_the_sky(scale):
    rng = np.random.default_rng(13)
    variance = np.where(np.arange(512)[:, None] < 256, 25.0, 50.0) * np.ones(SHAPE)
    image = made_image(rng.normal(100, np.sqrt(variance)), gain=1e6)
    given = replace(image, variance=(scale * variance).astype(np.float32))
    got = with_noise(given, measure_sky(image)).variance
    np.testing.assert_allclose(np.median(got[:250]), 25.0, rtol=0.05)
    np.testing.assert_allclose(np.median(got[262:]), 50.0, rtol=0.05)
    assert np.ptp(got / variance) < 1e-3 * np.median(got / variance)  # its shape is kept


def test_a_variance_that_fits_the_noise_is_believed_as_it_is():
    rng = np.random.default_rng(14)
    kernel = smoothing_kernel(2.0)
    data = smoothed_noise(rng, SHAPE, 5.0, kernel)
    image = made_image(data)
    sky = measure_sky(image)
    for believed in (0.8, 0.95):  # between what the neighbours and what the scatter say
        variance = np.full(SHAPE, believed * 25 * (kernel**2).sum(), np.float32)
        np.testing.assert_array_equal(
            with_noise(replace(image, variance=variance), sky).variance, variance
        )


def test_pixels_without_weight_get_the_sky_noise():
    image = made_image(np.random.default_rng(15).normal(0, 5, SHAPE))
    variance = np.full(SHAPE, 25.0, np.float32)
    variance[10:20] = 0
    got = with_noise(replace(image, variance=variance), measure_sky(image)).variance
    np.testing.assert_allclose(got[10:20], 25.0, rtol=0.15)


def test_photons_are_not_counted_twice_where_the_variance_has_them(starry):
    data, light, truth = starry
    image = made_image(data, gain=GAIN)
    sky = measure_sky(image)
    full = with_noise(replace(image, variance=truth.astype(np.float32)), sky).variance
    bare = np.full(SHAPE, SKY / GAIN, np.float32)
    flat = with_noise(replace(image, variance=bare), sky).variance
    bright = light > 500
    assert np.median(full[bright] / truth[bright]) == pytest.approx(1.0, abs=0.03)
    smooth = SKY / GAIN + ndimage.uniform_filter(light, 3) / GAIN
    assert np.median(flat[bright] / smooth[bright]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("given", [False, True])
def test_sky_variance_is_the_variance_without_the_stars(starry, given):
    data, light, truth = starry
    image = made_image(data, gain=GAIN)
    sky = measure_sky(image)
    if given:
        image = replace(image, variance=truth.astype(np.float32))
    alone = sky_variance(with_noise(image, sky), sky)
    core = light > 500
    if alone is not None:
        assert np.median(alone[core]) == pytest.approx(SKY / GAIN, rel=0.1)
        assert np.median(alone[light < 0.01]) == pytest.approx(SKY / GAIN, rel=0.03)
    assert given or alone is not None


def test_a_variance_too_small_for_its_sources_cannot_be_split(starry):
    data, _, _ = starry
    image = made_image(data, gain=GAIN)
    sky = measure_sky(image)
    flat = replace(image, variance=np.full(SHAPE, SKY / GAIN, np.float32))
    assert sky_variance(flat, sky) is None  # not from with_noise: holds no sources at all
    assert sky_variance(replace(with_noise(image, sky), facts=made_image(data).facts), sky) is None


@pytest.mark.parametrize("given", [None, 5.0, 25.0])
def test_noise_of_interpolated_pixels_is_that_of_sums_over_them(given):
    """Means of two pixels of white noise have half its variance, and their sums all of it.

    Blocks of four miss an eighth of it, since the tie reaches over their edges.
    """
    rng = np.random.default_rng(11)
    white = rng.normal(100, 5, (401, 400))
    data = np.ascontiguousarray(0.5 * (white[1:] + white[:-1]), dtype=np.float32)
    mask = np.zeros(data.shape, np.uint16)
    variance = None if given is None else np.full(data.shape, given, np.float32)
    image = Image(data, mask, variance, noise_power=1.5)
    noisy = with_noise(image, measure_sky(image))
    assert np.median(noisy.variance) == pytest.approx(25 * 7 / 8, rel=0.06)
    sums = data[:400, :400].reshape(20, 20, 20, 20).sum(axis=(1, 3))
    assert np.var(sums) == pytest.approx(400 * 25, rel=0.2)
