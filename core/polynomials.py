"""Two-dimensional polynomials in pixel coordinates scaled to [-1, 1]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def exponents(order: int) -> list[tuple[int, int]]:
    """Return the exponents ``(i, j)`` of ``x**i * y**j`` with ``i + j <= order``, by degree."""
    return [(degree - j, j) for degree in range(order + 1) for j in range(degree + 1)]


def degrees(order: int) -> npt.NDArray[np.int64]:
    """Return the total degree of every term of `exponents`, shape (n_terms,)."""
    return np.array([i + j for i, j in exponents(order)])


def scaled(x: npt.ArrayLike, y: npt.ArrayLike, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Map 0-based pixel coordinates of a frame ``(ny, nx)`` to [-1, 1]."""
    ny, nx = shape
    u = (np.asarray(x, dtype=np.float64) - 0.5 * (nx - 1)) / (0.5 * nx)
    v = (np.asarray(y, dtype=np.float64) - 0.5 * (ny - 1)) / (0.5 * ny)
    return u, v


def terms(order: int, x: npt.ArrayLike, y: npt.ArrayLike, shape: tuple[int, int]) -> Array:
    """Evaluate every term at pixel places.

    Parameters
    ----------
    order : int
        Order of the polynomial.
    x, y : array_like, shape (...)
        0-based pixel coordinates.
    shape : tuple of int
        (ny, nx) of the frame.

    Returns
    -------
    ndarray of float64, shape (..., n_terms)
    """
    u, v = scaled(x, y, shape)
    return np.stack([u**i * v**j for i, j in exponents(order)], axis=-1)
