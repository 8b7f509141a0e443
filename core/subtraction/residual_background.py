"""The polynomial that is left of the sky after the subtraction."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskImage
from core.polynomials import exponents, scaled
from core.subtraction.block_means import BLOCK, block_means

FEWEST_BLOCKS = 50
SAMPLE = 3e5  # blocks, to measure their scatter on


def fit_residual_background(
    residual: FloatImage, variance: FloatImage, mask: MaskImage, order: int
) -> FloatImage:
    """Fit a polynomial to what is left of the sky, over the whole frame.

    The stamps see the sky around stars only; here every corner has its say. The residual is
    averaged over blocks of 4x4 pixels, in which a source that no single pixel shows stands out;
    blocks beyond 3 sigma are left out together with their neighbours, so that the wings of what
    changed in the sky do not lift the background from under it.

    Parameters
    ----------
    residual, variance : ndarray of float32, shape (ny, nx)
    mask : ndarray of uint16 or bool, shape (ny, nx)
        Pixels that are not zero are not used.
    order : int
        Order of the polynomial.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
    """
    shape = residual.shape
    value, sigma, use = block_means(residual, variance, mask, BLOCK)
    if use.sum() < FEWEST_BLOCKS:
        return np.zeros_like(residual)
    half = 0.5 * (BLOCK - 1)
    u, _ = scaled(np.arange(value.shape[1]) * BLOCK + half, 0, shape)
    _, v = scaled(0, np.arange(value.shape[0]) * BLOCK + half, shape)
    powers = np.array(exponents(order), dtype=np.int64)
    step = max(1, int(np.sqrt(value.size / SAMPLE)))
    sample = np.s_[::step, ::step]
    keep = use
    coefficients: npt.NDArray[np.float64] = np.zeros(len(powers))
    for _ in range(6):
        matrix, vector = _normal_equations(value, sigma, keep, u, v, powers)
        # the diagonal keeps a term that no block tells apart from others at zero
        coefficients = np.linalg.solve(matrix + 1e-12 * np.eye(len(powers)), vector)
        pull = _pulls(value, sigma, u, v, powers, coefficients)
        kept = pull[sample][keep[sample]]
        spread = 1.4826 * np.median(np.abs(kept - np.median(kept)))
        refined = _calm(pull, use, 3 * max(float(spread), 0.1))
        if refined.sum() < FEWEST_BLOCKS or (refined == keep).all():
            break
        keep = refined
    return polynomial_plane(coefficients, order, shape)


@numba.njit(parallel=True, cache=True)
def _normal_equations(value, sigma, keep, u, v, powers):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = value.shape
    n = len(powers)
    highest = powers.max()
    # along a row the basis is a polynomial in u alone: sums of its powers make all the products
    matrix = np.zeros((ny, n, n))
    vector = np.zeros((ny, n))
    for y in numba.prange(ny):
        moments = np.zeros(2 * highest + 1)
        seen = np.zeros(highest + 1)
        for x in range(nx):
            if keep[y, x]:
                power = 1.0 / (sigma[y, x] * sigma[y, x])
                for i in range(2 * highest + 1):
                    moments[i] += power
                    if i <= highest:
                        seen[i] += power * value[y, x]
                    power *= u[x]
        for a in range(n):
            vector[y, a] = seen[powers[a, 0]] * v[y] ** powers[a, 1]
            for b in range(n):
                along = moments[powers[a, 0] + powers[b, 0]]
                matrix[y, a, b] = along * v[y] ** (powers[a, 1] + powers[b, 1])
    return matrix.sum(axis=0), vector.sum(axis=0)


@numba.njit(parallel=True, cache=True)
def _pulls(value, sigma, u, v, powers, coefficients):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = value.shape
    highest = powers.max()
    pull = np.empty((ny, nx))
    for y in numba.prange(ny):
        along = np.zeros(highest + 1)
        for a in range(len(powers)):
            along[powers[a, 0]] += coefficients[a] * v[y] ** powers[a, 1]
        for x in range(nx):
            model = 0.0
            for i in range(highest, -1, -1):
                model = model * u[x] + along[i]
            pull[y, x] = (value[y, x] - model) / sigma[y, x]
    return pull


@numba.njit(parallel=True, cache=True)
def _calm(pull, use, limit):  # type: ignore[no-untyped-def] # pragma: no cover
    """Blocks of use that neither stand out nor touch one that does."""
    ny, nx = pull.shape
    calm = np.zeros((ny, nx), dtype=np.bool_)
    for y in numba.prange(ny):
        for x in range(nx):
            if use[y, x]:
                quiet = True
                for row in range(max(0, y - 1), min(ny, y + 2)):
                    for col in range(max(0, x - 1), min(nx, x + 2)):
                        if use[row, col] and abs(pull[row, col]) > limit:
                            quiet = False
                calm[y, x] = quiet
    return calm


def polynomial_plane(
    coefficients: npt.NDArray[np.float64], order: int, shape: tuple[int, int]
) -> FloatImage:
    """Evaluate a polynomial on every pixel, row by row."""
    u, v = scaled(np.arange(shape[1]), np.arange(shape[0]), shape)
    along = np.zeros((shape[0], order + 1))
    for c, (i, j) in zip(coefficients, exponents(order), strict=True):
        along[:, i] += c * v**j
    plane = np.empty(shape, dtype=np.float32)
    _evaluate(along.astype(np.float32), u.astype(np.float32), plane)
    return plane


@numba.njit(parallel=True, cache=True)
def _evaluate(along, u, plane):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = plane.shape
    highest = along.shape[1] - 1
    for y in numba.prange(ny):
        for x in range(nx):
            value = along[y, highest]
            for i in range(highest - 1, -1, -1):
                value = value * u[x] + along[y, i]
            plane[y, x] = value
