"""The SFFT engine against simulated truth."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import SubtractionFailed
from core.image import Image, MaskBit
from core.simulate import PairSettings, simulate_pair
from core.subtraction import run_sfft
from core.subtraction.convolve import convolve_squared
from core.subtraction.pair import Pair
from core.subtraction.sfft import (
    SFFTSettings,
    choose_kernel_shape,
    evaluate_flux_scale,
    evaluate_kernel_at,
    subtract,
)
from core.subtraction.sfft.stamps import informative_stamps, stamps_on
from tests.prepared_pair import make_pair


@pytest.fixture(scope="module")
def matched():
    settings = PairSettings(shape=(512, 512), seed=4, n_transients=10, star_density=2500)
    truth, pair = make_pair(settings)
    return truth, pair, subtract(pair, threads=2)


def star_pixels(truth, pair, radius=4):
    """Star footprints without masked pixels and without transients."""
    stars = np.zeros(pair.shape, dtype=bool)
    for x, y in zip(pair.stars.sources.x, pair.stars.sources.y, strict=True):
        yi, xi = round(y), round(x)
        stars[max(0, yi - radius) : yi + radius + 1, max(0, xi - radius) : xi + radius + 1] = True
    for row in truth.transients:
        yi, xi = round(row["y"]), round(row["x"])
        stars[max(0, yi - 12) : yi + 13, max(0, xi - 12) : xi + 13] = False
    return stars


def true_noise(truth, difference):
    kernel = difference.kernel
    through = convolve_squared(truth.template_variance, kernel.kernel, kernel.kernel_order)
    return np.sqrt(truth.science_variance + through)


def test_stars_vanish_to_the_true_noise(matched):
    truth, pair, difference = matched
    use = star_pixels(truth, pair) & (difference.mask == 0)
    chi2 = np.mean((difference.data[use] / true_noise(truth, difference)[use]) ** 2)
    assert 0.85 < chi2 < 1.05


def test_kernel_sum_is_the_flux_ratio(matched):
    truth, _, difference = matched
    assert difference.quality.kernel_sum == pytest.approx(truth.flux_scale, rel=0.01)
    result = difference.kernel
    centre = evaluate_kernel_at(result, 255.5, 255.5)
    assert centre.sum() == pytest.approx(evaluate_flux_scale(result, 255.5, 255.5), rel=1e-9)
    assert centre.shape == difference.quality.kernel_shape


def test_scaled_difference_has_unit_variance_on_the_sky(matched):
    truth, pair, difference = matched
    sky = (difference.mask == 0) & ~star_pixels(truth, pair, 8)
    for row in truth.transients:
        yi, xi = round(row["y"]), round(row["x"])
        sky[max(0, yi - 12) : yi + 13, max(0, xi - 12) : xi + 13] = False
    values = difference.scaled[sky]
    low, middle, high = np.percentile(values, [15.8655, 50, 84.1345])
    assert middle == pytest.approx(0, abs=0.02)
    assert ((high - low) / 2) ** 2 == pytest.approx(1.0, abs=0.03)


def test_difference_is_science_minus_convolved(matched):
    _, pair, difference = matched
    good = difference.mask == 0
    np.testing.assert_allclose(
        (pair.science.data - difference.convolved)[good], difference.data[good], atol=1e-2
    )
    assert (difference.noise > 0).all()
    assert np.isfinite(difference.scaled).all()


@pytest.mark.parametrize("seeing", [(2.6, 3.6), (3.0, 3.0)])
def test_blurrier_template_convolves_the_science_image(seeing):
    settings = PairSettings(
        shape=(512, 512), seed=6, n_transients=10, star_density=2500, snr_range=(30, 50),
        science_fwhm=seeing[0], template_fwhm=seeing[1], host_fraction=0.0,
    )  # fmt: skip
    truth, pair = make_pair(settings)
    difference = subtract(pair, threads=2)
    quality = difference.quality
    assert quality.convolved == ("science" if seeing[1] > 1.1 * seeing[0] else quality.convolved)
    assert quality.kernel_sum == pytest.approx(truth.flux_scale, rel=0.01)
    assert quality.sky_chi2 == pytest.approx(1.0, abs=0.04)
    measured = pair.template if quality.convolved == "science" else pair.science
    assert quality.psf_error == measured.psf.flux_error > 0
    # the flux of what is only in the science image keeps its scale
    for row in truth.transients:
        y, x = round(row["y"]), round(row["x"])
        box = np.s_[max(0, y - 9) : y + 10, max(0, x - 9) : x + 10]
        if (difference.mask[box] != 0).any() or difference.mask[box].size < 361:
            continue
        noise = float(np.sqrt((difference.noise[box] ** 2).sum()))
        noise *= difference.correlation.factor(np.ones((19, 19)))
        assert abs(float(difference.data[box].sum()) - row["flux"]) < 5 * noise


@pytest.mark.parametrize("bit", [MaskBit.BAD, MaskBit.SATURATED])
def test_template_defects_grow_by_the_kernels_core(bit):
    settings = PairSettings(shape=(256, 256), seed=9, n_transients=0, star_density=3000)
    _, pair = make_pair(settings)
    mask = pair.template.mask.copy()
    mask[100, 120] = bit
    data = pair.template.data.copy()
    data[100, 120] = 1e6
    pair = replace(pair, template=replace(pair.template, mask=mask, data=data))
    difference = subtract(pair)
    wider = pair.science_fwhm**2 - pair.template_fwhm**2
    half = int(np.ceil(3 * np.sqrt(wider) / 2.3548 + 1))
    assert half < difference.quality.kernel_shape[0] // 2
    bad = (difference.mask & MaskBit.TEMPLATE_BAD) != 0
    assert bad[100 - half : 101 + half, 120 - half : 121 + half].all()
    assert not bad[85:95, 120].all()
    ring = np.abs(
        difference.scaled[100 - half - 3 : 101 + half + 3, 120 - half - 3 : 121 + half + 3]
    )
    assert ring.max() < 8


def test_what_a_saturated_star_hides_is_noise_or_masked():
    """Its core is unknown; inside the kernel's reach and beyond, the map must say so."""
    settings = PairSettings(shape=(512, 512), seed=9, n_transients=0, star_density=2500)
    truth, pair = make_pair(settings)
    brightest = np.argmax(np.where(np.asarray(truth.stars["flux"]) < 3e5, truth.stars["flux"], 0))
    x, y = (round(float(truth.stars[name][brightest])) for name in ("x", "y"))
    mask = pair.template.mask.copy()
    mask[y - 2 : y + 3, x - 2 : x + 3] |= np.uint16(MaskBit.SATURATED)
    difference = subtract(replace(pair, template=replace(pair.template, mask=mask)))
    box = np.s_[max(0, y - 14) : y + 15, max(0, x - 14) : x + 15]
    good = difference.mask[box] == 0
    assert good.sum() > 300
    assert np.abs(difference.scaled[box])[good].max() < 5
    assert np.mean(difference.scaled[box] ** 2) < 1.5
    assert difference.noise[y, x] > 10 * np.median(difference.noise)


def test_changed_star_is_clipped_and_does_not_bend_the_kernel():
    settings = PairSettings(shape=(384, 384), seed=3, n_transients=0, star_density=2500)
    truth, pair = make_pair(settings)
    brightest = int(np.argmax(pair.stars.sources.flux))
    x, y = pair.stars.sources.x[brightest], pair.stars.sources.y[brightest]
    data = pair.science.data.copy()
    box = np.s_[round(y) - 8 : round(y) + 9, round(x) - 8 : round(x) + 9]
    data[box] *= 1.5
    changed = replace(pair, science=replace(pair.science, data=data))
    difference = subtract(changed)
    assert difference.quality.kernel_sum == pytest.approx(truth.flux_scale, rel=0.01)
    assert np.abs(difference.data[box]).max() > 0.3 * np.abs(pair.science.data[box]).max() / 1.5


def test_nothing_to_match_is_said_clearly():
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 1, (64, 64)).astype(np.float32) for _ in range(2)]
    images = [Image(n, np.zeros(n.shape, np.uint16), np.ones_like(n), name="blank") for n in noise]
    with pytest.raises(SubtractionFailed, match="no star or other structure"):
        subtract(Pair(images[0], images[1], 3.0, 2.5))


def test_all_masked_is_said_clearly():
    data = np.ones((64, 64), np.float32)
    image = Image(data, np.full(data.shape, MaskBit.BAD, np.uint16), np.ones_like(data))
    with pytest.raises(SubtractionFailed, match="masks leave no usable pixel"):
        subtract(Pair(image, image, 3.0, 2.5))


@pytest.mark.parametrize(
    ("source", "target", "at_least"), [(2.6, 3.6, 11), (3.0, 6.0, 17), (3.0, 3.0, 11)]
)
def test_kernel_is_wide_enough_for_the_seeing(source, target, at_least):
    shape = choose_kernel_shape(source, target)
    sigma = np.sqrt(target**2 - source**2) / 2.3548
    assert shape[0] % 2 == 1
    assert shape[0] >= at_least
    assert shape[0] // 2 >= 3 * sigma


def test_stamps_leave_no_corner_out():
    settings = PairSettings(shape=(600, 700), seed=8, n_transients=0, star_density=3000)
    truth = simulate_pair(settings)
    data = truth.template - np.float32(np.median(truth.template))
    usable = truth.template_mask == 0
    variance = truth.template_variance
    stamps = informative_stamps(data, variance, usable, 9, 6, limit=60)
    assert 30 <= len(stamps) <= 60
    counts = np.histogram2d(stamps.y, stamps.x, bins=2, range=[[0, 600], [0, 700]])[0]
    assert counts.min() >= 5
    empty = informative_stamps(np.zeros_like(data), variance, usable, 9, 6, limit=60)
    assert len(empty) == 0


def test_a_stamp_at_the_edge_is_moved_in_and_knows_its_source():
    stamps = stamps_on([3.2, 50, 98, 100.4], [40, 60, 77, 20], 9, 6, (80, 100))
    np.testing.assert_array_equal(stamps.x, [15, 50, 84])
    np.testing.assert_array_equal(stamps.y, [40, 60, 64])
    np.testing.assert_array_equal(stamps.source_x, [3, 50, 98])
    np.testing.assert_array_equal(stamps.source_y, [40, 60, 77])
    last = stamps.select(np.array([2]))
    assert (last.source_x[0], last.source_y[0]) == (98, 77)
    assert len(stamps_on([10], [10], 9, 6, (30, 100))) == 0


def test_the_last_pixels_of_a_frame_are_looked_through():
    frame = np.zeros((100, 111), np.float32)  # five blocks of 19 pixels end at 95
    frame[96:99, 50:53] = 1e4
    frame[40:43, 107:110] = 1e4
    good = np.ones(frame.shape, bool)
    stamps = informative_stamps(frame, np.ones_like(frame), good, 9, 6, limit=60)
    assert sorted(zip(stamps.source_x, stamps.source_y, strict=True)) == [(51, 97), (108, 41)]


def test_stars_at_the_edge_have_a_say():
    """The polynomials are not extrapolated to them from stamps further in."""
    truth = simulate_pair(PairSettings(shape=(512, 1024), seed=2))
    by_edge = (truth.stars["y"] < 10) & (truth.stars["flux"] > 1e5)
    assert by_edge.sum() == 2
    difference, kernel = run_sfft(
        truth.science, truth.template, truth.science_mask != 0, truth.template_mask != 0,
        err=np.sqrt(truth.science_variance), template_err=np.sqrt(truth.template_variance),
        kernel_shape=(13, 13), get_kernel=True, threads=2,
    )  # fmt: skip
    through = convolve_squared(truth.template_variance, kernel.kernel, kernel.kernel_order)
    chi2 = difference**2 / (truth.science_variance + through)
    for star in truth.stars[by_edge]:
        x, y = round(star["x"]), round(star["y"])
        assert chi2[6 : y + 5, x - 4 : x + 5].mean() < 1.4


def test_options_limit_the_orders_to_what_the_stars_hold():
    settings = PairSettings(
        shape=(256, 256), seed=2, n_transients=0, star_density=150, galaxy_density=0
    )
    _, pair = make_pair(settings)
    few = pair.stars.sources.select(np.arange(min(5, len(pair.stars))))
    pair = replace(pair, stars=replace(pair.stars, sources=few))
    difference = subtract(pair, SFFTSettings(kernel_order=2))
    assert difference.kernel.kernel_order < 2
