"""Light that a kernel is too small to carry out of bright stars."""

import numpy as np

from core.simulate import PairSettings, simulate_pair
from core.subtraction import run_sfft
from core.subtraction.convolve import convolve_varying, pad
from core.subtraction.sfft.bad_pixels import kernel_bound
from core.subtraction.sfft.kernel_wings import WingPlanes, add_wings, bounded_wings, measure_wings
from core.subtraction.sfft.stamps import stamps_at

BOUND = kernel_bound(2.6, 3.6, 1.0)
SMALL = (13, 13)


def star(fwhm, flux=1e6, side=61):
    y, x = np.mgrid[:side, :side] - side // 2
    alpha2 = (0.5 * fwhm) ** 2 / (2 ** (1 / 3.5) - 1)
    profile = (1 + (x**2 + y**2) / alpha2) ** -3.5
    return (flux * profile / profile.sum()).astype(np.float32)


def cut_kernel():
    """The kernel that turns one profile into the other, and 13x13 pixels of it."""
    centred = [np.fft.fft2(np.fft.ifftshift(star(fwhm, 1.0))) for fwhm in (2.6, 3.6)]
    return np.fft.fftshift(np.real(np.fft.ifft2(centred[1] / centred[0])))[24:37, 24:37]


def rms_at(plane, radius, y=30, x=30):
    rows, cols = np.mgrid[: plane.shape[0], : plane.shape[1]]
    away = np.rint(np.hypot(rows - y, cols - x)).astype(int)
    return np.sqrt(np.mean(plane[away == radius] ** 2))


def carried(source, kernel_shape, mask=0, wings=None):
    """Return the light added and its error."""
    flags = np.full(source.shape, mask, np.uint16)
    half = kernel_shape[0] // 2
    light = np.zeros_like(source)
    wings = wings or bounded_wings(BOUND, kernel_shape)
    error = add_wings(wings, pad(source, half, half), flags, kernel_shape, 0.1, light)
    return light, error


def test_the_bound_is_that_of_what_a_small_kernel_leaves():
    source, target = star(2.6, 4e6), star(3.6, 4e6)
    left = target - convolve_varying(source, cut_kernel()[None], 0)
    light, error = carried(source, SMALL)
    assert light.max() == 0  # nothing was measured
    for radius in (9, 10, 11):
        assert 0.25 * rms_at(left, radius) < rms_at(error, radius) < 2 * rms_at(left, radius)
    assert error[30, 30] < 0.01 * error[30, 38]
    assert carried(source, (25, 25))[1][30, 38] < 0.1 * error[30, 38]


def test_faint_stars_and_bad_pixels_have_no_wings():
    assert carried(star(2.6, 1e3), SMALL)[1].max() == 0
    assert carried(star(2.6), SMALL, mask=1)[1].max() == 0


def field(n=6, spacing=70, sigma=3.0):
    """Stars on a grid: (source, what the cut kernel leaves of the target), and their places."""
    rng = np.random.default_rng(5)
    side = n * spacing
    source, target = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    places = spacing // 2 + spacing * np.mgrid[:n, :n].reshape(2, -1)
    for (y, x), flux in zip(places.T, rng.uniform(2e5, 2e6, n * n), strict=True):
        box = np.s_[y - 30 : y + 31, x - 30 : x + 31]
        source[box] += star(2.6, flux)
        target[box] += star(3.6, flux)
    matched = convolve_varying(source, cut_kernel()[None], 0).astype(np.float32)
    noisy = target + rng.normal(0, sigma, target.shape).astype(np.float32)
    return source, target, noisy, matched, places


def measured(source, noisy, matched, places, n=None):
    planes = WingPlanes(
        source, noisy, matched, np.full_like(source, 9.0), np.ones(source.shape, bool)
    )
    stamps = stamps_at(places[1][:n], places[0][:n], 9, 6, source.shape)
    return measure_wings(planes, stamps, 6, SMALL, BOUND)


def test_measured_wings_take_the_rings_away():
    source, target, noisy, matched, places = field()
    wings = measured(source, noisy, matched, places)
    light, error = carried(source, SMALL, wings=wings)
    y, x = places[:, 14]
    before, after = target - matched, target - matched - light
    for radius in (8, 9, 10, 11):
        assert rms_at(after, radius, y, x) < 0.35 * rms_at(before, radius, y, x)
        assert rms_at(error, radius, y, x) > 0.5 * rms_at(after, radius, y, x)


def test_rings_that_vary_over_the_frame_are_followed():
    source, target, _, matched, places = field()
    across = np.linspace(0.3, 1.7, target.shape[1], dtype=np.float32)
    left = across * (target - matched)
    noise = np.random.default_rng(6).normal(0, 3.0, left.shape).astype(np.float32)
    light, _ = carried(
        source, SMALL, wings=measured(source, matched + left + noise, matched, places)
    )
    for star in (0, 5, 30, 35):  # in the corners
        y, x = places[:, star]
        for radius in (8, 9, 10):
            assert rms_at(left - light, radius, y, x) < 0.45 * rms_at(left, radius, y, x)


def test_what_stands_in_for_a_saturated_core_has_wings_too():
    source, _, noisy, matched, places = field()
    wings = measured(source, noisy, matched, places)
    whole, _ = carried(source, SMALL, wings=wings)
    masked, error = carried(source, SMALL, mask=1, wings=wings)
    np.testing.assert_array_equal(masked, whole)
    assert error.max() == 0  # that of a bad pixel is told elsewhere


def test_where_nothing_is_left_nothing_is_added():
    source, _, noisy, matched, places = field()
    nothing = measured(source, matched + noisy - noisy.mean(), matched + noisy, places)
    assert not nothing.mean.any()
    few = measured(source, noisy, matched, places, n=5)
    assert not few.mean.any()
    np.testing.assert_array_equal(few.error, bounded_wings(BOUND, SMALL).error)


def test_rings_of_a_small_kernel_do_not_stand_out():
    """7x7, the documented default, for seeing of 3.6 against 2.6: 0.3 to 2.5 sigma a pixel."""
    truth = simulate_pair(
        PairSettings(
            shape=(640, 640), seed=4, n_transients=0, star_density=2000, saturation=1e9
        )
    )  # fmt: skip
    difference, noise = run_sfft(
        truth.science, truth.template, truth.science_mask != 0, truth.template_mask != 0,
        err=np.sqrt(truth.science_variance), template_err=np.sqrt(truth.template_variance),
        kernel_shape=(7, 7), get_noise=True, threads=2,
    )  # fmt: skip
    bright = truth.stars[np.argsort(-truth.stars["flux"])][:16]
    levels = []
    for x, y in zip(
        np.rint(bright["x"]).astype(int), np.rint(bright["y"]).astype(int), strict=True
    ):
        if min(x, y, 639 - x, 639 - y) >= 20:
            rows, cols = np.mgrid[y - 14 : y + 15, x - 14 : x + 15]
            ring = np.abs(np.hypot(rows - y, cols - x) - 5.5) < 1.5
            levels.append(np.median((difference / noise)[rows[ring], cols[ring]]))
    assert len(levels) >= 8
    assert np.abs(levels).max() < 0.6
