"""What kernels are put together from, and what is known of them before a fit."""

import numpy as np
import pytest
from scipy import ndimage

from core.subtraction.sfft.kernel_basis import cored_basis, cubic_spline, delta_basis, spline_basis
from core.subtraction.sfft.kernel_choice import choose_basis, choose_kernel_shape
from core.subtraction.sfft.kernel_prior import prior_precision


def seen(planes, sigma):
    """Kernels as a star shows them, shape (n, pixels)."""
    wider = np.pad(planes, ((0, 0), (9, 9), (9, 9)))
    return ndimage.gaussian_filter(wider, (0, sigma, sigma)).reshape(len(planes), -1)


def error_seen(basis, kernel, sigma):
    """What is missing of a star of the source, however the elements are put together."""
    elements, wanted = seen(basis.matrix, sigma), seen(kernel[None], sigma)[0]
    coefficients = np.linalg.lstsq(elements.T, wanted, rcond=None)[0]
    return np.abs(coefficients @ elements - wanted).max()


def gaussian(shape, sigma, dx=0.0, dy=0.0):
    y, x = np.mgrid[: shape[0], : shape[1]]
    r2 = (x - shape[1] // 2 - dx) ** 2 + (y - shape[0] // 2 - dy) ** 2
    return np.exp(-0.5 * r2 / sigma**2) / (2 * np.pi * sigma**2)


def test_single_pixels_make_any_kernel():
    kernel = np.random.default_rng(1).normal(size=(5, 7))
    basis = delta_basis((5, 7))
    np.testing.assert_allclose(basis.pixels(kernel.ravel()), kernel)


def test_splines_are_a_partition_of_unity_away_from_the_rim():
    total = spline_basis((25, 25), 2).matrix.sum(axis=0)
    np.testing.assert_allclose(total[8:-8, 8:-8], 1, atol=1e-12)
    assert cubic_spline(np.arange(-2, 3)).sum() == pytest.approx(1)


@pytest.mark.parametrize(("source", "target"), [(2.6, 3.6), (2.6, 5.0), (2.4, 6.5), (3.0, 3.1)])
def test_a_chosen_basis_makes_the_matching_kernel(source, target):
    """To three thousandths of a star's peak, once the star of the source went through it."""
    shape = choose_kernel_shape(source, target)
    basis = choose_basis(shape, source, target)
    sigma = np.sqrt(target**2 - source**2) / 2.3548
    kernel = gaussian(shape, sigma, dx=0.2, dy=-0.1)
    peak = gaussian((31, 31), target / 2.3548).max()
    assert error_seen(basis, kernel, source / 2.3548) < 3e-3 * peak
    assert len(basis) < shape[0] * shape[1] / 2


def test_the_core_is_free_and_the_rim_is_smooth():
    basis = cored_basis((21, 21), 3)
    assert (~basis.smooth).sum() == 49
    assert np.linalg.matrix_rank(basis.matrix.reshape(len(basis), -1)) == len(basis)
    assert np.abs(basis.matrix.sum(axis=0)[1:-1, 1:-1]).min() > 0.4  # no pixel is out of reach
    narrow = gaussian((21, 21), 0.5, dx=1.3)
    assert error_seen(basis, narrow, 1.0) < 2e-3 * seen(narrow[None], 1.0).max()


def test_small_kernels_are_single_pixels():
    assert len(choose_basis((7, 7), 2.6, 3.6)) == 49
    assert len(choose_basis((5, 5), 2.6, 6.0)) == 25


def test_noise_shared_by_elements_is_that_of_the_smooth_modes():
    shared = delta_basis((9, 9)).shared_noise
    eigenvalues = np.linalg.eigvalsh(shared)
    assert eigenvalues.min() > 0.2
    assert eigenvalues.max() == pytest.approx(1, abs=0.03)
    splines = spline_basis((21, 21), 2)
    own = splines.matrix.reshape(len(splines), -1)
    np.testing.assert_allclose(splines.shared_noise, own @ own.T, atol=0.12 * (own @ own.T).max())


def test_the_prior_frees_the_core_and_holds_the_rim():
    basis = cored_basis((21, 21), 3)
    precision = prior_precision(basis, 1, 0.5, 2.6, 3.6)
    distance = np.hypot(*basis.offset.T)
    assert (precision[0, distance <= 4] == 0).all()
    assert (precision[0, distance > 5] > 0).all()
    assert (precision[1:] > 0).all()
    far, near = (precision[0, np.argmin(np.abs(distance - d))] for d in (12, 6))
    assert far > 20 * near
    doubled = prior_precision(basis, 1, 1.0, 2.6, 3.6)
    np.testing.assert_allclose(4 * doubled, precision)


def test_the_wings_that_real_seeing_needs_are_within_the_prior():
    basis = cored_basis((21, 21), 3)
    y, x = basis.offset.T
    r2 = x**2 + y**2
    wing = [
        2.5 / (np.pi * a2) * (1 + r2 / a2) ** -3.5
        for a2 in ((0.5 * w) ** 2 / (2 ** (1 / 3.5) - 1) for w in (3.6, 2.6))
    ]
    sigma = 1 / np.sqrt(np.maximum(prior_precision(basis, 0, 1.0, 2.6, 3.6)[0], 1e-30))
    assert (np.abs(wing[0] - wing[1]) < 2 * sigma).all()
