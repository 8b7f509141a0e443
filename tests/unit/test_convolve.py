"""The compiled convolutions against brute force in float64."""

import numpy as np
import pytest

from core.polynomials import terms
from core.subtraction.convolve import (
    convolve_squared,
    convolve_varying,
    footprint_power,
    pad,
)
from core.subtraction.mask_growth import grow


def brute_force(image, coefficients, order, power=1):
    """Sum over kernel pixels with the kernel evaluated at every output pixel."""
    ny, nx = image.shape
    _, ky, kx = coefficients.shape
    padded = np.pad(image.astype(float), ((ky // 2,) * 2, (kx // 2,) * 2))
    out = np.zeros(image.shape)
    for y in range(ny):
        phi = terms(order, np.arange(nx), np.full(nx, y), image.shape)
        kernels = np.tensordot(phi, coefficients, axes=1) ** power
        for x in range(nx):
            window = padded[y : y + ky, x : x + kx]
            out[y, x] = (kernels[x][::-1, ::-1] * window).sum()
    return out


def smooth_kernel(order, ky, kx, rng, variation=0.2):
    """A Gaussian whose every polynomial term moves a part of its flux about."""
    y, x = np.mgrid[-(ky // 2) : ky // 2 + 1, -(kx // 2) : kx // 2 + 1]
    base = np.exp(-0.5 * (x**2 + y**2) / 1.5**2)
    n = terms(order, 0, 0, (9, 9)).shape[-1]
    kernels = [base / base.sum()]
    for _ in range(n - 1):
        kernels.append(variation * rng.normal(size=(ky, kx)) * base / base.sum())
    return np.stack(kernels)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("shape", [(40, 150), (97, 33)])
def test_orders_up_to_one_are_exact(order, shape):
    rng = np.random.default_rng(order)
    image = rng.normal(100, 10, shape).astype(np.float32)
    kernel = smooth_kernel(order, 5, 7, rng)
    expected = brute_force(image, kernel, order)
    got = convolve_varying(image, kernel, order, threads=2)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max())


def test_order_two_is_within_its_bound_at_survey_size():
    # a frame as wide as a survey's, few rows: 1e-4 of the local flux is the contract
    rng = np.random.default_rng(5)
    image = np.abs(rng.normal(100, 10, (9, 4096))).astype(np.float32)
    kernel = smooth_kernel(2, 5, 5, rng)
    expected = brute_force(image, kernel, 2)
    got = convolve_varying(image, kernel, 2)
    assert np.abs(got - expected).max() < 1e-4 * expected.min()


def test_kernel_is_convolved_not_correlated():
    image = np.zeros((21, 21), dtype=np.float32)
    image[10, 10] = 1
    kernel = np.zeros((1, 3, 5))
    kernel[0, 0, 4] = 2.0
    got = convolve_varying(image, kernel, 0)
    assert got[9, 12] == 2.0
    assert np.count_nonzero(got) == 1


def test_variance_goes_through_the_squared_kernel():
    rng = np.random.default_rng(2)
    variance = np.abs(rng.normal(5, 1, (24, 130))).astype(np.float32)
    kernel = smooth_kernel(0, 5, 5, rng)
    expected = brute_force(variance, kernel, 0, power=2)
    np.testing.assert_allclose(convolve_squared(variance, kernel, 0), expected, rtol=1e-5)


def test_variance_agrees_with_a_monte_carlo():
    rng = np.random.default_rng(3)
    kernel = smooth_kernel(1, 5, 5, rng)
    sigma = np.full((48, 160), 3.0, dtype=np.float32)
    noise = [
        convolve_varying(rng.normal(0, sigma).astype(np.float32), kernel, 1) for _ in range(400)
    ]
    measured = np.var(noise, axis=0)[3:-3, 3:-3]
    expected = convolve_squared(sigma**2, kernel, 1)[3:-3, 3:-3]
    assert np.mean(measured / expected) == pytest.approx(1.0, abs=0.015)


@pytest.mark.parametrize("half", [(0, 0), (1, 4), (6, 6)])
def test_grown_mask_is_the_footprint_of_the_kernel(half):
    rng = np.random.default_rng(4)
    mask = rng.random((300, 61)) < 0.004
    mask[0, 0] = mask[-1, -1] = True
    expected = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        y0, x0 = max(0, y - half[0]), max(0, x - half[1])
        expected[y0 : y + half[0] + 1, x0 : x + half[1] + 1] = True
    np.testing.assert_array_equal(grow(mask, *half), expected)


def test_footprint_power_is_the_sum_of_squares_under_the_kernel():
    rng = np.random.default_rng(6)
    image = rng.normal(0, 10, (300, 41)).astype(np.float32)
    image[12, 20] = 5e4
    padded = np.pad(image.astype(float) ** 2, ((2, 2), (3, 3)))
    expected = np.array(
        [[padded[y : y + 5, x : x + 7].sum() for x in range(41)] for y in range(300)]
    )
    got = footprint_power(pad(image, 2, 3), image.shape, (5, 7))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-9 * expected.max())
