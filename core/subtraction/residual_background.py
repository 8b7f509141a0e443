"""The polynomial that is left of the sky after the subtraction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage, MaskImage
from core.polynomials import exponents, terms
from core.subtraction.block_means import BLOCK, block_means


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
    ny, nx = residual.shape
    value, sigma, use = block_means(residual, variance, mask, BLOCK)
    if use.sum() < 50:
        return np.zeros_like(residual)
    rows, cols = np.indices(value.shape)
    half = 0.5 * (BLOCK - 1)
    everywhere = terms(order, cols * BLOCK + half, rows * BLOCK + half, (ny, nx))
    keep = use
    coefficients: npt.NDArray[np.float64] = np.zeros(everywhere.shape[-1])
    for _ in range(6):
        basis = everywhere[keep] / sigma[keep][:, None]
        coefficients = np.asarray(
            np.linalg.solve(
                basis.T @ basis + 1e-12 * np.eye(basis.shape[1]),
                basis.T @ (value[keep] / sigma[keep]),
            )
        )
        pull = (value - everywhere @ coefficients) / sigma
        spread = 1.4826 * np.median(np.abs(pull[keep] - np.median(pull[keep])))
        outlier = use & (np.abs(pull) > 3 * max(float(spread), 0.1))
        refined = use & ~ndimage.binary_dilation(outlier, np.ones((3, 3), dtype=bool))
        if refined.sum() < 50 or (refined == keep).all():
            break
        keep = refined
    return polynomial_plane(coefficients, order, (ny, nx))


def polynomial_plane(
    coefficients: npt.NDArray[np.float64], order: int, shape: tuple[int, int]
) -> FloatImage:
    """Evaluate a polynomial on every pixel, row by row."""
    ny, nx = shape
    u = (np.arange(nx) - 0.5 * (nx - 1)) / (0.5 * nx)
    v = (np.arange(ny) - 0.5 * (ny - 1)) / (0.5 * ny)
    in_x = np.zeros((order + 1, ny))
    for c, (i, j) in zip(coefficients, exponents(order), strict=True):
        in_x[i] += c * v**j
    powers = np.stack([u**i for i in range(order + 1)])
    plane: FloatImage = in_x.T.astype(np.float32) @ powers.astype(np.float32)
    return plane
