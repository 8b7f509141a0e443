"""Convolution with a kernel whose pixels vary over the frame as polynomials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage
from core.polynomials import exponents

BLOCK = 64


@contextmanager
def compiled_threads(threads: int) -> Iterator[None]:
    """Let compiled loops use ``threads`` threads (at most those that were started)."""
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.set_num_threads(before)


def convolve_varying(
    image: FloatImage, coefficients: npt.NDArray[np.floating], order: int, *, threads: int = 1
) -> FloatImage:
    """Convolve with ``K(x, y) = sum_i phi_i(x, y) K_i``.

    The kernel is evaluated on every row and at the centre of every run of ``nx / 48`` pixels (8 to
    64), with its slope along the run, so the result is exact in y and along x for order 0 and 1;
    for order 2 the error is the quadratic term times ``(run / nx)²``, at most 1e-4 of the local
    flux for a kernel that changes by 20 % from the centre to the edge.

    Parameters
    ----------
    image : ndarray of float32, shape (ny, nx)
        Finite everywhere; taken as zero outside.
    coefficients : ndarray, shape (n_terms, ky, kx)
        One convolution kernel per polynomial term; ky and kx odd.
    order : int
        Order of the polynomial (`core.polynomials`).
    threads : int
        Threads to use.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
    """
    padded, flipped, powers = _prepare(image, coefficients, order)
    out = np.empty_like(image)
    with compiled_threads(threads):
        _convolve(padded, flipped, powers, _run_length(image.shape[1]), out)
    return out


def convolve_squared(
    image: FloatImage, coefficients: npt.NDArray[np.floating], order: int, *, threads: int = 1
) -> FloatImage:
    """Convolve with the *square* of the local kernel: how a variance goes through it.

    Parameters and result as in `convolve_varying`; the kernel is evaluated at the centre of
    blocks of a 48th of the frame's width (8 to 64 pixels) and an eighth of that in height, which
    is well inside what a variance is known to.
    """
    padded, flipped, powers = _prepare(image, coefficients, order)
    out = np.empty_like(image)
    with compiled_threads(threads):
        _convolve_squared(padded, flipped, powers, _run_length(image.shape[1]), out)
    return out


def _run_length(nx: int) -> int:
    """Pixels that share a kernel: the same fraction of every frame, and a multiple of 8."""
    return int(np.clip(nx // 48 // 8 * 8, 8, BLOCK))


def _prepare(
    image: FloatImage, coefficients: npt.NDArray[np.floating], order: int
) -> tuple[FloatImage, npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    _, ky, kx = coefficients.shape
    hy, hx = ky // 2, kx // 2
    ny, nx = image.shape
    padded = np.zeros((ny + 2 * hy, nx + 2 * hx + BLOCK), dtype=np.float32)
    padded[hy : hy + ny, hx : hx + nx] = image
    flipped = np.ascontiguousarray(coefficients[:, ::-1, ::-1], dtype=np.float32)
    return padded, flipped, np.array(exponents(order), dtype=np.int64)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _convolve(padded, coefficients, powers, run, out):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = out.shape
    n_terms, ky, kx = coefficients.shape
    for y in numba.prange(ny):
        v = (y - 0.5 * (ny - 1)) / (0.5 * ny)
        value = np.empty((ky, kx), dtype=np.float32)
        slope = np.empty((ky, kx), dtype=np.float32)
        acc0 = np.empty(run, dtype=np.float32)
        acc1 = np.empty(run, dtype=np.float32)
        for x0 in range(0, nx, run):
            n = min(run, nx - x0)
            centre = x0 + 0.5 * (n - 1)
            u = (centre - 0.5 * (nx - 1)) / (0.5 * nx)
            value[:] = 0
            slope[:] = 0
            varies = False
            for t in range(n_terms):
                i, j = powers[t]
                f = np.float32(u**i * v**j)
                value += f * coefficients[t]
                if i > 0:
                    g = np.float32(i * u ** (i - 1) * v**j / (0.5 * nx))
                    slope += g * coefficients[t]
                    varies = True
            acc0[:] = 0
            acc1[:] = 0
            if varies:
                for dy in range(ky):
                    row = padded[y + dy]
                    for dx in range(kx):
                        a = value[dy, dx]
                        b = slope[dy, dx]
                        for p in range(run):
                            t_value = row[x0 + dx + p]
                            acc0[p] += a * t_value
                            acc1[p] += b * t_value
                for p in range(n):
                    out[y, x0 + p] = acc0[p] + np.float32(x0 + p - centre) * acc1[p]
            else:
                for dy in range(ky):
                    row = padded[y + dy]
                    for dx in range(kx):
                        a = value[dy, dx]
                        for p in range(run):
                            acc0[p] += a * row[x0 + dx + p]
                for p in range(n):
                    out[y, x0 + p] = acc0[p]


@numba.njit(parallel=True, fastmath=True, cache=True)
def _convolve_squared(padded, coefficients, powers, run, out):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = out.shape
    n_terms, ky, kx = coefficients.shape
    rows = max(1, run // 8)
    for strip in numba.prange((ny + rows - 1) // rows):
        y0 = strip * rows
        y1 = min(ny, y0 + rows)
        v = (0.5 * (y0 + y1 - 1) - 0.5 * (ny - 1)) / (0.5 * ny)
        kernel = np.empty((ky, kx), dtype=np.float32)
        acc = np.empty(run, dtype=np.float32)
        for x0 in range(0, nx, run):
            n = min(run, nx - x0)
            u = (x0 + 0.5 * (n - 1) - 0.5 * (nx - 1)) / (0.5 * nx)
            kernel[:] = 0
            for t in range(n_terms):
                i, j = powers[t]
                kernel += np.float32(u**i * v**j) * coefficients[t]
            kernel *= kernel
            for y in range(y0, y1):
                acc[:] = 0
                for dy in range(ky):
                    row = padded[y + dy]
                    for dx in range(kx):
                        a = kernel[dy, dx]
                        for p in range(run):
                            acc[p] += a * row[x0 + dx + p]
                for p in range(n):
                    out[y, x0 + p] = acc[p]
