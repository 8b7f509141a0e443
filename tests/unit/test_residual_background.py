"""The polynomial left of the sky: found under sources and masks, and right in every corner."""

import numpy as np
import pytest

from core.image import MaskBit
from core.polynomials import exponents, scaled, terms
from core.subtraction.residual_background import (
    _normal_equations,
    _pulls,
    fit_residual_background,
    polynomial_plane,
)
from tests.unit.made_frames import add_gaussians, grid_of_places

SHAPE = (400, 420)
FWHM = 3.5
SKY_NOISE = 5.0


@pytest.mark.parametrize("order", [0, 1, 2])
def test_plane_is_the_polynomial_of_its_terms(order):
    n = terms(order, 0, 0, SHAPE).shape[-1]
    coefficients = np.random.default_rng(order).normal(0, 1, n)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    expected = terms(order, x, y, SHAPE) @ coefficients
    np.testing.assert_allclose(polynomial_plane(coefficients, order, SHAPE), expected, atol=1e-5)


def test_background_is_found_under_sources_and_masks():
    variance = np.full(SHAPE, SKY_NOISE**2)
    true = polynomial_plane(np.array([3.0, -4.0, 2.0, 1.5, -1.0, 2.5]), 2, SHAPE)
    data = np.random.default_rng(13).normal(0, SKY_NOISE, SHAPE) + true
    x, y = grid_of_places(SHAPE, 60, np.random.default_rng(14))
    add_gaussians(data, x, y, 4000, FWHM)  # transients: each stands out
    mask = np.zeros(SHAPE, np.uint16)
    mask[150:190, 100:300] = MaskBit.SATURATED
    data[mask != 0] = 1e5
    got = fit_residual_background(data.astype(np.float32), variance.astype(np.float32), mask, 2)
    error = got - true
    assert np.abs(error).max() < 0.35  # noise of 5 a pixel; six coefficients from 10⁵ pixels
    assert abs(float(np.mean(error))) < 0.06


def test_too_little_sky_leaves_the_background_alone():
    mask = np.full(SHAPE, MaskBit.BAD, np.uint16)
    mask[:20, :20] = 0
    data = np.full(SHAPE, 7.0, np.float32)
    assert not fit_residual_background(data, np.ones(SHAPE, np.float32), mask, 1).any()


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_the_compiled_equations_are_those_of_the_dense_basis(order):
    rng = np.random.default_rng(20 + order)
    value, sigma = rng.normal(0, 1, (40, 53)), rng.uniform(0.5, 2, (40, 53))
    keep = rng.random((40, 53)) < 0.7
    x, y = np.arange(53.0), np.arange(40.0)
    u, v = scaled(x, 0, (40, 53))[0], scaled(0, y, (40, 53))[1]
    powers = np.array(exponents(order))
    matrix, vector = _normal_equations(value, sigma, keep, u, v, powers)
    dense = terms(order, *np.meshgrid(x, y), (40, 53))
    basis = dense[keep] / sigma[keep][:, None]
    np.testing.assert_allclose(matrix, basis.T @ basis, rtol=1e-10, atol=1e-9)
    np.testing.assert_allclose(vector, basis.T @ (value[keep] / sigma[keep]), atol=1e-9)
    coefficients = rng.normal(0, 1, len(powers))
    expected = (value - dense @ coefficients) / sigma
    np.testing.assert_allclose(_pulls(value, sigma, u, v, powers, coefficients), expected)
