"""Means over small blocks, in which a source that no single pixel shows stands out."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskImage

BLOCK = 4  # pixels a side


def block_means(
    residual: FloatImage, variance: FloatImage, mask: MaskImage, size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Average over blocks of ``size`` by ``size`` pixels.

    Parameters
    ----------
    residual : ndarray of float32, shape (ny, nx)
    variance : ndarray of float32, shape (ny, nx) or (1, 1)
        Per pixel, or one for all.
    mask : ndarray of uint16 or bool, shape (ny, nx)
    size : int

    Returns
    -------
    mean, sigma : ndarray of float64, shape (ny // size, nx // size)
    use : ndarray of bool
        Where at least three quarters of a block's pixels are good.
    """
    return _block_means(residual, variance, mask, size)


@numba.njit(parallel=True, cache=True)
def _block_means(residual, variance, mask, size):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = residual.shape[0] // size, residual.shape[1] // size
    single = variance.shape[0] == 1
    mean = np.zeros((ny, nx))
    sigma = np.ones((ny, nx))
    use = np.zeros((ny, nx), dtype=np.bool_)
    for row in numba.prange(ny):
        for col in range(nx):
            total = 0.0
            noise2 = 0.0
            n = 0
            for y in range(row * size, (row + 1) * size):
                for x in range(col * size, (col + 1) * size):
                    if mask[y, x] == 0 and np.isfinite(residual[y, x]):
                        total += residual[y, x]
                        noise2 += variance[0, 0] if single else variance[y, x]
                        n += 1
            if 4 * n >= 3 * size * size:
                mean[row, col] = total / n
                sigma[row, col] = np.sqrt(max(noise2, 1e-30)) / n
                use[row, col] = True
    return mean, sigma, use
