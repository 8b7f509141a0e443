"""Convolution with a kernel whose pixels vary over the frame as polynomials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage
from core.polynomials import exponents

BLOCK = 128  # the longest run of pixels that share a kernel
STRIP = 128  # rows that a thread takes at a time


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
    128), with its slope along the run, so the result is exact in y and along x for order 0 and 1;
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
    _, ky, kx = coefficients.shape
    padded = pad(image, ky // 2, kx // 2)
    return convolve_padded(padded, image.shape, coefficients, order, threads=threads)


def convolve_squared(
    image: FloatImage, coefficients: npt.NDArray[np.floating], order: int, *, threads: int = 1
) -> FloatImage:
    """Convolve with the *square* of the local kernel: how a variance goes through it.

    Parameters and result as in `convolve_varying`; the kernel is evaluated at the centre of
    blocks of a 48th of the frame's width (8 to 128 pixels) and half of that in height, which
    is well inside what a variance is known to. So is a ten-thousandth of the squared kernel: the
    faint rim that holds it is left out.
    """
    coefficients = _core(coefficients, 1e-4)
    _, ky, kx = coefficients.shape
    ny, nx = image.shape
    out = np.empty((ny, nx), dtype=np.float32)
    with compiled_threads(threads):
        _convolve_squared(
            pad(image, ky // 2, kx // 2), _flipped(coefficients), _powers(order),
            _run_length(nx), out,
        )  # fmt: skip
    return out


def _core(coefficients: npt.NDArray[np.floating], rest: float) -> npt.NDArray[np.floating]:
    """Cut the rim that holds less than ``rest`` of the square of any kernel."""
    power = (coefficients**2).sum(axis=0)
    for cut in range(min(power.shape) // 2, 0, -1):
        inner = np.s_[cut:-cut, cut:-cut]
        if power[inner].sum() > (1 - rest) * power.sum():
            return np.ascontiguousarray(coefficients[:, *inner])
    return coefficients


def empty_padded(shape: tuple[int, ...], half_y: int, half_x: int) -> FloatImage:
    """Return the zeros that an image of a shape is placed in, with the room that loops read in."""
    ny, nx = shape
    # a run may begin at the last pixel, and its kernel be made up to whole steps
    return np.zeros((ny + 2 * half_y, nx + 2 * half_x + BLOCK + 8), dtype=np.float32)


def pad(image: FloatImage, half_y: int, half_x: int) -> FloatImage:
    """Return a copy with zeros around it, as the compiled loops read it."""
    ny, nx = image.shape
    padded = empty_padded(image.shape, half_y, half_x)
    padded[half_y : half_y + ny, half_x : half_x + nx] = image
    return padded


def convolve_padded(
    padded: FloatImage,
    shape: tuple[int, ...],
    coefficients: npt.NDArray[np.floating],
    order: int,
    *,
    threads: int = 1,
) -> FloatImage:
    """Convolve an image that `pad` prepared; the rest as in `convolve_varying`."""
    ny, nx = shape
    out = np.empty((ny, nx), dtype=np.float32)
    with compiled_threads(threads):
        _convolve(padded, _flipped(coefficients), _powers(order), _run_length(nx), out)
    return out


def footprint_power(
    padded: FloatImage, shape: tuple[int, ...], kernel_shape: tuple[int, int]
) -> FloatImage:
    """Sum the squares of all pixels under the kernel's footprint, at every pixel.

    Parameters
    ----------
    padded : ndarray of float32
        As `pad` returns it.
    shape : tuple of int
        (ny, nx) of the frame.
    kernel_shape : tuple of int
        (ky, kx).
    """
    ny, nx = shape
    ky, kx = kernel_shape
    out = np.empty((ny, nx), dtype=np.float32)
    _footprint_power(padded, kx, ky, out)
    return out


def _run_length(nx: int) -> int:
    """Pixels that share a kernel: the same fraction of every frame, and a multiple of 8."""
    return int(np.clip(nx // 48 // 8 * 8, 8, BLOCK))


def _flipped(coefficients: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(coefficients[:, ::-1, ::-1], dtype=np.float32)


def _powers(order: int) -> npt.NDArray[np.int64]:
    return np.array(exponents(order), dtype=np.int64)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _convolve(padded, coefficients, powers, run, out):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = out.shape
    n_terms, ky, kx = coefficients.shape
    wide = whole_steps(kx)
    order = powers[:, 0].max()
    for y in numba.prange(ny):
        v = (y - 0.5 * (ny - 1)) / (0.5 * ny)
        # along a row the kernel is a polynomial in x alone
        along = np.zeros((order + 1, ky, wide), dtype=np.float32)
        for t in range(n_terms):
            f = np.float32(v ** powers[t, 1])
            for dy in range(ky):
                for dx in range(kx):
                    along[powers[t, 0], dy, dx] += f * coefficients[t, dy, dx]
        value = np.empty((ky, wide), dtype=np.float32)
        slope = np.empty((ky, wide), dtype=np.float32)
        acc0 = np.empty(run, dtype=np.float32)
        acc1 = np.empty(run, dtype=np.float32)
        for x0 in range(0, nx, run):
            n = min(run, nx - x0)
            centre = x0 + 0.5 * (n - 1)
            u = np.float32((centre - 0.5 * (nx - 1)) / (0.5 * nx))
            _at(along, u, value, slope)
            acc0[:] = 0
            acc1[:] = 0
            for dy in range(ky):
                row = padded[y + dy, x0 : x0 + run + wide]
                add_products(row, value[dy], acc0)
                if order > 0:
                    add_products(row, slope[dy], acc1)
            for p in range(n):
                out[y, x0 + p] = acc0[p] + np.float32((x0 + p - centre) / (0.5 * nx)) * acc1[p]


@numba.njit(fastmath=True, cache=True)
def _at(along, u, value, slope):  # type: ignore[no-untyped-def] # pragma: no cover
    """Evaluate polynomials and their slopes at ``u`` (Horner)."""
    highest = along.shape[0] - 1
    ky, wide = value.shape
    for dy in range(ky):
        for dx in range(wide):
            value[dy, dx] = along[highest, dy, dx]
            slope[dy, dx] = 0
        for i in range(highest - 1, -1, -1):
            for dx in range(wide):
                slope[dy, dx] = slope[dy, dx] * u + value[dy, dx]
                value[dy, dx] = value[dy, dx] * u + along[i, dy, dx]


@numba.njit(parallel=True, fastmath=True, cache=True)
def _convolve_squared(padded, coefficients, powers, run, out):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = out.shape
    n_terms, ky, kx = coefficients.shape
    wide = whole_steps(kx)
    rows = max(1, run // 2)
    for strip in numba.prange((ny + rows - 1) // rows):
        y0 = strip * rows
        y1 = min(ny, y0 + rows)
        v = (0.5 * (y0 + y1 - 1) - 0.5 * (ny - 1)) / (0.5 * ny)
        kernel = np.empty((ky, wide), dtype=np.float32)
        acc = np.empty(run, dtype=np.float32)
        for x0 in range(0, nx, run):
            n = min(run, nx - x0)
            u = (x0 + 0.5 * (n - 1) - 0.5 * (nx - 1)) / (0.5 * nx)
            kernel[:] = 0
            for t in range(n_terms):
                f = np.float32(u ** powers[t, 0] * v ** powers[t, 1])
                for dy in range(ky):
                    for dx in range(kx):
                        kernel[dy, dx] += f * coefficients[t, dy, dx]
            kernel *= kernel
            for y in range(y0, y1):
                acc[:] = 0
                for dy in range(ky):
                    add_products(padded[y + dy, x0 : x0 + run + wide], kernel[dy], acc)
                for p in range(n):
                    out[y, x0 + p] = acc[p]


@numba.njit(cache=True)
def whole_steps(kx):  # type: ignore[no-untyped-def] # pragma: no cover
    """Return the columns of a kernel and of the zeros that make whole steps of four."""
    return (kx + 3) // 4 * 4


@numba.njit(fastmath=True, cache=True)
def add_products(row, a, acc):  # type: ignore[no-untyped-def] # pragma: no cover
    """Add a row of pixels, correlated with one of a kernel, to sums.

    Eight kernel pixels at a time: one load and store of the sums for eight products, in registers.
    The slices begin at zero, so that the compiler sees that no index is negative.

    Parameters
    ----------
    row : ndarray of float32, shape (at least n + k,)
    a : ndarray of float32, shape (k,)
        Of `whole_steps`.
    acc : ndarray of float32, shape (n,)
    """
    d = 0
    while d + 8 <= len(a):
        t = row[d : d + len(acc) + 8]
        a0, a1, a2, a3 = a[d], a[d + 1], a[d + 2], a[d + 3]
        a4, a5, a6, a7 = a[d + 4], a[d + 5], a[d + 6], a[d + 7]
        for p in range(len(acc)):
            acc[p] += (
                a0 * t[p] + a1 * t[p + 1] + a2 * t[p + 2] + a3 * t[p + 3]
                + a4 * t[p + 4] + a5 * t[p + 5] + a6 * t[p + 6] + a7 * t[p + 7]
            )  # fmt: skip
        d += 8
    while d < len(a):
        t = row[d : d + len(acc) + 4]
        a0, a1, a2, a3 = a[d], a[d + 1], a[d + 2], a[d + 3]
        for p in range(len(acc)):
            acc[p] += a0 * t[p] + a1 * t[p + 1] + a2 * t[p + 2] + a3 * t[p + 3]
        d += 4


@numba.njit(parallel=True, fastmath=True, cache=True)
def _footprint_power(padded, width, height, out):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = out.shape
    strips = (ny + STRIP - 1) // STRIP
    for strip in numba.prange(strips):
        first, end = strip * STRIP, min(ny, (strip + 1) * STRIP)
        rows = np.empty((height, nx))
        total = np.zeros(nx)
        for y in range(first, first + height - 1):
            _row_power(padded[y], width, rows[y % height])
            total += rows[y % height]
        for y in range(first, end):
            newest = (y + height - 1) % height
            _row_power(padded[y + height - 1], width, rows[newest])
            oldest = y % height
            for x in range(nx):
                total[x] += rows[newest, x]
                out[y, x] = max(total[x], 0.0)
                total[x] -= rows[oldest, x]


@numba.njit(cache=True)
def _row_power(row, width, out):  # type: ignore[no-untyped-def] # pragma: no cover
    """Sum of squares of the ``width`` pixels from each on: a running sum, in float64."""
    total = 0.0
    for x in range(width):
        total += float(row[x]) * float(row[x])
    for x in range(out.shape[0]):
        out[x] = max(total, 0.0)
        new, old = float(row[x + width]), float(row[x])
        total += new * new - old * old
