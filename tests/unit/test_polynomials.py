"""The polynomial terms that kernel, background and PSF share."""

import numpy as np
import pytest

from core.polynomials import degrees, exponents, scaled, terms


def test_terms_come_by_degree_and_the_constant_first():
    assert exponents(2) == [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    assert [len(exponents(order)) for order in range(5)] == [1, 3, 6, 10, 15]
    assert degrees(3).tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_pixels_map_to_minus_one_to_one_with_the_outer_edges():
    u, v = scaled([-0.5, 49.5, 99.5], [-0.5, 19.5, 39.5], (40, 100))
    np.testing.assert_allclose(u, [-1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(v, [-1, 0, 1], atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_terms_are_the_monomials(order):
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 99, (2, 4, 5))
    got = terms(order, x, y, (40, 100))
    u, v = scaled(x, y, (40, 100))
    assert got.shape == (4, 5, len(exponents(order)))
    for n, (i, j) in enumerate(exponents(order)):
        np.testing.assert_allclose(got[..., n], u**i * v**j, rtol=1e-12)
    assert terms(order, 3, 4, (40, 100)).shape == (len(exponents(order)),)
