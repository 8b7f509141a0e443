"""What a kernel leaves under stamps."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from core.polynomials import terms
from core.subtraction.convolve import add_products, whole_steps
from core.subtraction.sfft.kernel_model import KernelModel
from core.subtraction.sfft.normal_equations import FitPlanes
from core.subtraction.sfft.stamps import Stamps

Float64 = npt.NDArray[np.float64]


def residuals(
    planes: FitPlanes,
    stamps: Stamps,
    kernel: Float64,
    background: Float64,
    model: KernelModel,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return residual, model and propagated source variance under every stamp.

    Each is float32 of shape (n_stamps, side, side).
    """
    shape = (planes.target.shape[0], planes.target.shape[1])
    phi = terms(model.kernel_order, stamps.source_x, stamps.source_y, shape)
    psi = terms(model.background_order, stamps.source_x, stamps.source_y, shape)
    local = np.einsum("st,tvu->svu", phi, kernel)[:, ::-1, ::-1].astype(np.float32)
    level = (psi @ background).astype(np.float32)
    pedestal = np.float32(planes.target_level)
    variance = planes.source_variance
    if variance is None:
        variance = np.zeros((1, 1), dtype=np.float32)
    return _residuals(
        planes.target, planes.source, variance, stamps.x, stamps.y, stamps.half,
        np.ascontiguousarray(local), level, pedestal,
    )  # fmt: skip


@numba.njit(parallel=True, fastmath=True, cache=True)
def _residuals(target, source, variance, xs, ys, half, kernels, level, pedestal):  # type: ignore[no-untyped-def] # pragma: no cover
    n, ky, kx = kernels.shape
    side = 2 * half + 1
    wide = whole_steps(kx)
    residual = np.empty((n, side, side), dtype=np.float32)
    matched = np.empty((n, side, side), dtype=np.float32)
    noise = np.zeros((n, side, side), dtype=np.float32)
    has_variance = variance.shape[0] > 1
    for s in numba.prange(n):
        top, left = ys[s] - half - ky // 2, xs[s] - half - kx // 2
        kernel = np.zeros((ky, wide), dtype=np.float32)
        kernel[:, :kx] = kernels[s]
        # whole steps of the kernel may reach beyond the frame: its cutout has room for them
        pixels = np.zeros((side + ky - 1, side + wide), dtype=np.float32)
        pixels[:, : side + kx - 1] = source[top : top + side + ky - 1, left : left + side + kx - 1]
        for row in range(side):
            line = np.zeros(side, dtype=np.float32)
            for dy in range(ky):
                add_products(pixels[row + dy], kernel[dy], line)
            seen = target[ys[s] - half + row, xs[s] - half : xs[s] + half + 1]
            for p in range(side):
                matched[s, row, p] = line[p] + level[s]
                residual[s, row, p] = seen[p] - pedestal - matched[s, row, p]
        if has_variance:
            kernel *= kernel
            pixels[:, : side + kx - 1] = variance[
                top : top + side + ky - 1, left : left + side + kx - 1
            ]
            for row in range(side):
                for dy in range(ky):
                    add_products(pixels[row + dy], kernel[dy], noise[s, row])
    return residual, matched, noise
