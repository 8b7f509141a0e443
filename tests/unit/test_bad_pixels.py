"""What stands in for bad pixels of the image that is convolved, and the error that is left."""

import numpy as np
import pytest

from core.simulate import PairSettings, simulate_pair
from core.subtraction.convolve import convolve_varying, pad
from core.subtraction.sfft.bad_pixels import DEEP, fill_bad_pixels, kernel_bound

BOUND = kernel_bound(2.6, 3.6, 1.0)


def fill(plane, mask, negligible, border=7):
    """Fill a plane in place; return the error."""
    padded = pad(plane, border, border)
    error = fill_bad_pixels(padded, mask, (border, border), BOUND, negligible)
    plane[:] = padded[border : border + len(plane), border : border + plane.shape[1]]
    return error


def star(fwhm, flux=1e6, side=61):
    y, x = np.mgrid[:side, :side] - side // 2
    alpha2 = (0.5 * fwhm) ** 2 / (2 ** (1 / 3.5) - 1)
    profile = (1 + (x**2 + y**2) / alpha2) ** -3.5
    return (flux * profile / profile.sum()).astype(np.float32)


def test_holes_are_filled_with_what_is_next_to_them():
    plane = np.full((20, 30), 7.0, dtype=np.float32)
    mask = np.zeros(plane.shape, dtype=np.uint16)
    for hole in (np.s_[4, 5], np.s_[10:13, 20:24], np.s_[0, 0], np.s_[19, 29]):
        plane[hole], mask[hole] = 1e9, 4
    fill(plane, mask, 1e-3)
    np.testing.assert_allclose(plane, 7.0, rtol=1e-6)


def test_a_hole_in_a_star_loses_its_edge():
    true = star(2.6)
    mask = (true > 0.3 * true.max()).astype(np.uint16)
    filled = np.where(mask, 0, true).astype(np.float32)
    deepest = np.abs(filled - true)[mask != 0].mean()
    fill(filled, mask, 1.0)
    assert np.abs(filled - true)[mask != 0].mean() < 0.7 * deepest
    np.testing.assert_array_equal(filled[mask == 0], true[mask == 0])


def test_nothing_is_made_up_deep_inside_a_region_without_data():
    plane = np.full((60, 60), 5.0, dtype=np.float32)
    mask = np.zeros(plane.shape, dtype=np.uint16)
    mask[:, 30:] = 4
    error = fill(plane, mask, 0.05)
    assert (plane[:, 30 + DEEP + 1 :] == 0).all()
    assert (error[:, 50:] == 0).all()
    assert (error[:, 29:32] > 1).all()


@pytest.mark.parametrize("flux", [2e5, 2e6])
def test_the_error_is_that_of_a_saturated_star(flux):
    """Inside the kernel's reach and beyond it, where a solved kernel has no pixels at all."""
    source, target = star(2.6, flux), star(3.6, flux)
    mask = (source > 2e4).astype(np.uint16)
    filled = np.where(mask, 0, source).astype(np.float32)
    error = fill(filled, mask, 0.1)
    # the kernel that turns one profile into the other, cut at 6 pixels
    centred = [np.fft.fft2(np.fft.ifftshift(star(fwhm, 1.0))) for fwhm in (2.6, 3.6)]
    kernel = np.fft.fftshift(np.real(np.fft.ifft2(centred[1] / centred[0])))[24:37, 24:37]
    left = target - convolve_varying(filled, kernel[None], 0)
    y, x = np.mgrid[:61, :61] - 30
    away = np.maximum(np.abs(y), np.abs(x)) - np.abs(y[mask != 0]).max()
    for distance in range(1, 10):
        ring = away == distance
        rms = np.sqrt(np.mean(left[ring] ** 2))
        assert rms < 2 * np.sqrt(np.mean(error[ring] ** 2)) + 5
    assert np.sqrt(np.mean(left[away == 7] ** 2)) > flux / 1e5


def test_the_frame_goes_on_beyond_its_edges():
    plane = np.full((30, 40), 7.0, dtype=np.float32)
    plane[12, 39] = 9e4
    padded = pad(plane, 5, 6)
    error = fill_bad_pixels(padded, np.zeros(plane.shape, dtype=np.uint16), (5, 6), BOUND, 1.0)
    np.testing.assert_allclose(padded[:5, 6:40], 7.0, rtol=1e-6)
    np.testing.assert_allclose(padded[5:30, :6], 7.0, rtol=1e-6)
    np.testing.assert_array_equal(padded[5:35, 6:46], plane)
    # next to nothing is hidden beyond a blank edge, and much next to a star
    assert error[:, 6:20].max() < 15
    assert error[12, 39] > 1e3
    assert error[12, 10] == 0


def test_far_from_bad_pixels_there_is_no_error():
    plane = star(2.6)
    mask = (plane > 2e4).astype(np.uint16)
    error = fill(plane, mask, 1.0)
    assert error[0].max() == 0
    assert error[30, 30] > 1e3


def test_a_defect_on_blank_sky_hides_next_to_nothing():
    rng = np.random.default_rng(1)
    plane = rng.normal(0, 10, (50, 50)).astype(np.float32)
    mask = np.zeros(plane.shape, dtype=np.uint16)
    mask[:, 25] = 1
    plane[:, 25] = 3e4
    error = fill(plane, mask, 0.1)
    assert np.abs(plane[:, 25]).max() < 40
    assert error[10:40, 29:42].max() < 3


def test_the_bound_holds_for_the_kernels_of_the_simulated_optics():
    settings = PairSettings(shape=(256, 256), seed=2, n_stars=1, n_galaxies=0, n_transients=0)
    truth = simulate_pair(settings)
    optics = (truth.science_psf, truth.template_psf)
    science, template = (psf.transfer_at(128, 128, 128) for psf in optics)
    kernel = np.fft.fftshift(np.real(np.fft.ifft2(science / template)))
    y, x = np.mgrid[:128, :128] - 64
    distance = np.rint(np.hypot(y, x)).astype(int)
    for radius in range(13):
        mean = abs(kernel[distance == radius].mean())
        assert mean < 1.6 * BOUND[radius] + 1e-5
    assert (np.diff(BOUND) <= 0).all()
