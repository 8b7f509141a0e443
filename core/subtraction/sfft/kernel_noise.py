"""What the kernel's own error adds to the noise of a difference."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage
from core.polynomials import terms
from core.subtraction.blas import single_threaded_blas
from core.subtraction.sfft.normal_equations import Solution
from core.subtraction.sfft.stamps import Stamps

Float64 = npt.NDArray[np.float64]
N_BLOBS = 9
COHERENT = 3.0  # what a smooth error counts in a sum over a star, against white noise
NODES = 33  # a side of the grid that the variance is interpolated on


@dataclass(frozen=True)
class KernelNoise:
    """Variance of a kernel pixel, ``phi(x, y)^T M phi(x, y)``, as a star of the source feels it.

    A star of flux F at a distance d from a pixel adds ``F sum_u K(u) p(d - u)`` there, so the
    kernel's error adds ``F² p_d^T C p_d``. The mean of ``p_d^T C p_d / p_d^T p_d`` over the
    kernel's footprint, with p a Gaussian of the source's seeing, times the sum of the squares of
    the source's pixels under the footprint, is that error's variance to a factor of two. It grows
    by tens from the middle of a frame to its corners, where the polynomials are extrapolated.

    Attributes
    ----------
    matrix : ndarray of float64, shape (n_terms, n_terms)
    order : int
        Of the polynomial over the frame.
    shape : tuple of int
        (ny, nx) of the frame.
    """

    matrix: Float64
    order: int
    shape: tuple[int, int]

    def at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float64:
        """Return the variance at places of the frame."""
        phi = terms(self.order, x, y, self.shape)
        variance: Float64 = np.einsum("...t,tu,...u->...", phi, self.matrix, phi)
        return variance

    def add_to(self, variance: FloatImage, power: FloatImage) -> None:
        """Add the kernel's noise to a variance plane, in place.

        It is added three times: the error that a kernel leaves around a star is as smooth as the
        star, and in a sum over a PSF, which is what detection and photometry take, it is up to ten
        times the variance that white noise of its size would have.

        Parameters
        ----------
        variance : ndarray of float32, shape (ny, nx)
        power : ndarray of float32, shape (ny, nx)
            Sum of the squares of the source's pixels under the footprint
            (`core.subtraction.convolve.footprint_power`).
        """
        ny, nx = self.shape
        nodes_y = np.linspace(0, ny - 1, NODES)
        nodes_x = np.linspace(0, nx - 1, NODES)
        nodes = COHERENT * self.at(*np.meshgrid(nodes_x, nodes_y))
        _add(variance, power, nodes.astype(np.float32))


def kernel_noise(solution: Solution, shape: tuple[int, int], source_fwhm: float) -> KernelNoise:
    """Derive the kernel's noise from the factor of its normal matrix.

    Parameters
    ----------
    solution : Solution
    shape : tuple of int
        (ny, nx) of the frame.
    source_fwhm : float
        Seeing of the image that is convolved, pixels.
    """
    model = solution.model
    blobs = model.elements.in_coefficients(_blobs(model.shape, source_fwhm))
    n_terms, n = len(solution.kernel), model.n_coefficients
    own = np.zeros((n_terms, N_BLOBS, n_terms, n))
    own[np.arange(n_terms), :, np.arange(n_terms)] = blobs
    half = solution.whitened(own.reshape(n_terms * N_BLOBS, -1))
    half = half.reshape(-1, n_terms, N_BLOBS).swapaxes(0, 1).reshape(n_terms, -1)
    with single_threaded_blas():
        return KernelNoise(half @ half.T / N_BLOBS, model.kernel_order, shape)


def _blobs(kernel_shape: tuple[int, int], fwhm: float) -> Float64:
    """Return stars of unit square sum, spread over the kernel, shape (N_BLOBS, ky, kx)."""
    ky, kx = kernel_shape
    angle = 0.5 * np.pi * np.arange(4)
    inner, outer = (0.22 * angle**0, angle), (0.42 * angle**0, angle + 0.25 * np.pi)
    radius, turn = (np.concatenate([[0.0], a, b]) for a, b in zip(inner, outer, strict=True))
    y, x = ky * radius * np.sin(turn), kx * radius * np.cos(turn)
    rows, cols = np.mgrid[-(ky // 2) : ky // 2 + 1, -(kx // 2) : kx // 2 + 1]
    sigma = max(fwhm, 1.0) / 2.3548
    away2 = (rows - y[:, None, None]) ** 2 + (cols - x[:, None, None]) ** 2
    stars = np.exp(-0.5 * away2 / sigma**2)
    spread: Float64 = stars / np.sqrt((stars**2).sum(axis=(1, 2), keepdims=True))
    return spread


def stamp_power(source: FloatImage, stamps: Stamps, kernel_shape: tuple[int, int]) -> FloatImage:
    """Sum the squares of the source's pixels under the footprint, at every pixel of stamps.

    Parameters
    ----------
    source : ndarray of float32, shape (ny, nx)
        Sky-subtracted; the stamps and their footprints lie inside.
    stamps : Stamps
    kernel_shape : tuple of int
        (ky, kx).

    Returns
    -------
    ndarray of float32, shape (n_stamps, side, side)
    """
    half_y, half_x = kernel_shape[0] // 2, kernel_shape[1] // 2
    down = np.arange(-stamps.half - half_y, stamps.half + half_y + 1)
    along = np.arange(-stamps.half - half_x, stamps.half + half_x + 1)
    pixels = source[(stamps.y[:, None] + down)[:, :, None], (stamps.x[:, None] + along)[:, None, :]]
    total = np.zeros((len(stamps), len(down) + 1, len(along) + 1))
    total[:, 1:, 1:] = (pixels.astype(np.float64) ** 2).cumsum(axis=1).cumsum(axis=2)
    ky, kx = kernel_shape
    power = total[:, ky:, kx:] - total[:, :-ky, kx:] - total[:, ky:, :-kx] + total[:, :-ky, :-kx]
    return np.maximum(power, 0).astype(np.float32)


@numba.njit(parallel=True, cache=True)
def _add(variance, power, nodes):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = variance.shape
    rows, cols = nodes.shape
    step_y, step_x = (rows - 1) / (ny - 1), (cols - 1) / (nx - 1)
    for y in numba.prange(ny):
        v = y * step_y
        r = min(int(v), rows - 2)
        b = np.float32(v - r)
        line = nodes[r] + b * (nodes[r + 1] - nodes[r])
        for x in range(nx):
            u = x * step_x
            c = min(int(u), cols - 2)
            a = np.float32(u - c)
            variance[y, x] += power[y, x] * (line[c] + a * (line[c + 1] - line[c]))
