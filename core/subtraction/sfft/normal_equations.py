"""The least-squares problem of a spatially varying delta-basis kernel, summed over stamps.

Within a stamp the polynomial terms are taken at the stamp's source, so the normal matrix is
``sum_s (phi_s phi_s^T) x M_s`` with ``M_s = A_s^T W_s A_s`` the stamp's own matrix over kernel
pixels (``x`` the Kronecker product), and taking a stamp out is a subtraction from the sum.
The method is that of Hu et al. 2022 (ApJ 936, 157) written for stamps; the delta basis is that of
Bramich 2008 (MNRAS 386, L77).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
import numpy.typing as npt
from scipy import linalg

from core.image import FloatImage
from core.polynomials import degrees, terms
from core.subtraction.blas import single_threaded_blas
from core.subtraction.sfft.kernel_model import KernelModel
from core.subtraction.sfft.stamps import Stamps

Float64 = npt.NDArray[np.float64]
BATCH = 16
SHARES = 4  # of the stamps, each for one thread


@dataclass(frozen=True)
class FitPlanes:
    """The pixels of the fit; all float32 of shape (ny, nx).

    Attributes
    ----------
    target : ndarray
        The image that is not convolved.
    source : ndarray
        The image that is convolved, sky removed.
    source_variance : ndarray or None
        Variance of ``source``; its share of the normal matrix (noise times noise, which would
        pull the kernel's sum down) is taken out.
    target_level : float
        Level to take out of ``target``.
    """

    target: FloatImage
    source: FloatImage
    source_variance: FloatImage | None
    target_level: float = 0.0


@dataclass
class NormalEquations:
    """``matrix @ parameters = vector``; kernel parameters first, pixel fastest."""

    matrix: Float64
    vector: Float64


@dataclass
class _Sums:
    """The sums over stamps, before they are laid out as one matrix.

    ``kernel`` has a row for each pair of polynomial terms ``i <= j``; the matrix of the pair
    ``j, i`` is the same.
    """

    kernel: Float64
    cross: Float64
    kernel_vector: Float64
    background: Float64
    background_vector: Float64

    @classmethod
    def zeros(cls, n_terms: int, n_pixels: int, n_background: int) -> _Sums:
        return cls(
            np.zeros((n_terms * (n_terms + 1) // 2, n_pixels * n_pixels)),
            np.zeros((n_terms * n_background, n_pixels)),
            np.zeros((n_terms, n_pixels)),
            np.zeros((n_background, n_background)),
            np.zeros(n_background),
        )

    def add(self, other: _Sums) -> None:
        for own, others in zip(vars(self).values(), vars(other).values(), strict=True):
            own += others


def accumulate(
    planes: FitPlanes,
    stamps: Stamps,
    weights: npt.NDArray[np.float32],
    model: KernelModel,
    *,
    threads: int = 1,
) -> NormalEquations:
    """Sum the normal equations over stamps.

    The stamps are shared out over Python threads, each with a single-threaded BLAS: the matrices
    of a stamp are too small for a BLAS to divide, and its threads would wait on each other.

    Parameters
    ----------
    planes : FitPlanes
        Pixels.
    stamps : Stamps
        Where.
    weights : ndarray of float32, shape (n_stamps, side, side)
        Inverse variances of the target's pixels under the stamps; 0 leaves a pixel out.
    model : KernelModel
        What is fitted.
    threads : int
        Threads to use.
    """
    # as many shares whatever the threads, and added in order: the sum is the same to the last bit
    shares = max(1, min(SHARES, len(stamps) // BATCH))
    bounds = np.linspace(0, len(stamps), shares + 1).astype(int)
    parts = [slice(int(a), int(b)) for a, b in pairwise(bounds)]

    def share(part: slice) -> _Sums:
        return _accumulate(planes, stamps.select(part), weights[part], model)

    with single_threaded_blas():
        if min(threads, shares) == 1:
            return _laid_out(_sum(map(share, parts)), model)
        with ThreadPoolExecutor(min(threads, shares)) as pool:
            return _laid_out(_sum(pool.map(share, parts)), model)


def _sum(parts: Iterator[_Sums]) -> _Sums:
    first = next(parts)
    for other in parts:
        first.add(other)
    return first


def _accumulate(
    planes: FitPlanes, stamps: Stamps, weights: npt.NDArray[np.float32], model: KernelModel
) -> _Sums:
    """Sum over stamps in one thread."""
    shape = (planes.target.shape[0], planes.target.shape[1])
    phi = terms(model.kernel_order, stamps.source_x, stamps.source_y, shape)
    psi = terms(model.background_order, stamps.source_x, stamps.source_y, shape)
    n_terms, n_bg = phi.shape[1], psi.shape[1]
    first, second = np.triu_indices(n_terms)
    sums = _Sums.zeros(n_terms, model.n_coefficients, n_bg)
    side = 2 * stamps.half + 1
    variance = planes.source_variance
    noisy = variance is not None
    given = variance if variance is not None else np.zeros((1, 1), np.float32)
    design = np.empty((model.n_coefficients, side * side))
    columns = np.empty((side * side, 2))
    level = np.empty(model.n_coefficients)
    basis = model.elements
    shared = basis.shared_noise
    room = np.empty((min(BATCH, len(stamps)), model.n_coefficients, model.n_coefficients))
    product = np.empty_like(sums.kernel)
    for start in range(0, len(stamps), BATCH):
        batch = range(start, min(start + BATCH, len(stamps)))
        own = room[: len(batch)]
        right = np.empty((len(batch), model.n_coefficients, 2))
        scalar = np.empty((len(batch), 2))
        for i, s in enumerate(batch):
            _fill(
                planes.source, planes.target, planes.target_level, given, noisy, weights[s],
                stamps.x[s], stamps.y[s], stamps.half, *model.shape,
                basis.offset, basis.smooth, basis.profile,
                design, columns, level,
            )  # fmt: skip
            np.matmul(design, design.T, out=own[i])
            np.matmul(design, columns, out=right[i])
            scalar[i] = columns[:, 0] @ columns
            if noisy:
                _take_noise_out(own[i], np.sqrt(level), shared)
        p, q = phi[start : batch.stop], psi[start : batch.stop]
        pairs = (p[:, first] * p[:, second]).T
        sums.kernel += np.matmul(pairs, own.reshape(len(batch), -1), out=product)
        mixed = (p[:, :, None] * q[:, None, :]).reshape(len(p), -1)
        sums.cross += mixed.T @ right[:, :, 0]
        sums.kernel_vector += p.T @ right[:, :, 1]
        sums.background += (q * scalar[:, :1]).T @ q
        sums.background_vector += q.T @ scalar[:, 1]
    return sums


def _laid_out(sums: _Sums, model: KernelModel) -> NormalEquations:
    """Lay the sums out as the matrix and the vector of all parameters."""
    n_terms, n_pixels = sums.kernel_vector.shape
    n_kernel, n_bg = n_terms * n_pixels, len(sums.background_vector)
    matrix = np.empty((n_kernel + n_bg, n_kernel + n_bg))
    for pair, (i, j) in enumerate(zip(*np.triu_indices(n_terms), strict=True)):
        block = sums.kernel[pair].reshape(n_pixels, n_pixels)
        for a, b in {(i, j), (j, i)}:
            matrix[a * n_pixels : (a + 1) * n_pixels, b * n_pixels : (b + 1) * n_pixels] = block
    cross = sums.cross.reshape(n_terms, n_bg, n_pixels).transpose(0, 2, 1).reshape(n_kernel, n_bg)
    matrix[:n_kernel, n_kernel:] = cross
    matrix[n_kernel:, :n_kernel] = cross.T
    matrix[n_kernel:, n_kernel:] = sums.background
    vector = np.concatenate([sums.kernel_vector.ravel(), sums.background_vector])
    return NormalEquations(matrix, vector)


@numba.njit(nogil=True, fastmath=True, cache=True)
def _fill(  # type: ignore[no-untyped-def] # pragma: no cover
    source, target, pedestal, variance, noisy, weights, x, y, half, ky, kx,
    offset, smooth, profile, design, columns, level,
):  # fmt: skip
    """Weigh a stamp's pixels under every kernel element; the columns are weight and target."""
    side = 2 * half + 1
    for row in range(side):
        for col in range(side):
            root = np.sqrt(np.float64(weights[row, col]))
            seen = np.float64(target[y - half + row, x - half + col]) - pedestal
            columns[row * side + col, 0] = root
            columns[row * side + col, 1] = seen * root
    reach_y, reach_x = half + ky // 2, half + kx // 2
    top, left = y - reach_y, x - reach_x
    pixels = source[top : y + reach_y + 1, left : x + reach_x + 1].astype(np.float64)
    blurred = _convolved(pixels, profile) if len(profile) > 1 else pixels
    for k in range(len(offset)):
        # an element of a convolution multiplies the stamp displaced against it
        y0, x0 = ky // 2 - offset[k, 0], kx // 2 - offset[k, 1]
        shown = blurred if smooth[k] else pixels
        for row in range(side):
            line = shown[y0 + row, x0 : x0 + side]
            for col in range(side):
                design[k, row * side + col] = line[col] * columns[row * side + col, 0]
        total = 0.0
        if noisy:
            for row in range(side):
                noise = variance[top + y0 + row, left + x0 : left + x0 + side]
                for col in range(side):
                    total += noise[col] * weights[row, col]
        level[k] = total


@numba.njit(nogil=True, fastmath=True, cache=True)
def _convolved(pixels, profile):  # type: ignore[no-untyped-def] # pragma: no cover
    """Pixels through a symmetric profile along both axes; the rim, where it sticks out, is zero."""
    reach = len(profile) // 2
    ny, nx = pixels.shape
    along = np.zeros((ny, nx))
    for y in range(ny):
        for d in range(len(profile)):
            for x in range(reach, nx - reach):
                along[y, x] += profile[d] * pixels[y, x + d - reach]
    out = np.zeros((ny, nx))
    for y in range(reach, ny - reach):
        for d in range(len(profile)):
            for x in range(nx):
                out[y, x] += profile[d] * along[y + d - reach, x]
    return out


@numba.njit(nogil=True, cache=True)
def _take_noise_out(matrix, root, shared):  # type: ignore[no-untyped-def] # pragma: no cover
    for k in range(len(root)):
        for other in range(len(root)):
            matrix[k, other] -= shared[k, other] * root[k] * root[other]


@dataclass(frozen=True)
class Solution:
    """A solved kernel, and the factor that its errors come from.

    Attributes
    ----------
    kernel : ndarray of float64, shape (n_terms, ky, kx)
        Convolution kernel of every polynomial term.
    background : ndarray of float64, shape (n_background,)
    factor : tuple
        Cholesky factor of the scaled matrix, as `scipy.linalg.cho_factor` returns it.
    scale : ndarray of float64, shape (n_parameters,)
        What the matrix was scaled with.
    model : KernelModel
        What was fitted.
    """

    kernel: Float64
    background: Float64
    factor: tuple[Float64, bool]
    scale: Float64
    model: KernelModel

    def variance_of(self, combinations: Float64) -> Float64:
        """Return the variance of linear combinations of the kernel's pixels.

        Parameters
        ----------
        combinations : ndarray of float64, shape (n, n_terms * ky * kx)
            Pixel fastest, as ``kernel``.
        """
        planes = combinations.reshape(len(combinations), -1, *self.model.shape)
        own = self.model.elements.in_coefficients(planes).reshape(len(combinations), -1)
        return np.asarray((self.whitened(own) ** 2).sum(axis=0))

    def whitened(self, combinations: Float64) -> Float64:
        """Return vectors whose products are the covariances of linear combinations.

        Parameters
        ----------
        combinations : ndarray of float64, shape (n, n_kernel)
            Of the kernel's coefficients.

        Returns
        -------
        ndarray of float64, shape (n_parameters, n)
        """
        n_kernel = combinations.shape[1]
        right = np.zeros((len(self.scale), len(combinations)))
        right[:n_kernel] = (combinations * self.scale[:n_kernel]).T
        with single_threaded_blas():
            return np.asarray(linalg.solve_triangular(self.factor[0], right, lower=self.factor[1]))


def solve(equations: NormalEquations, model: KernelModel) -> Solution:
    """Solve for the kernel and the background.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the equations are singular even with the ridge.
    """
    n_kernel = model.n_kernel
    n_pixels = model.n_coefficients
    matrix = equations.matrix.copy()
    diagonal = np.diag(matrix)[:n_kernel].reshape(-1, n_pixels).mean(axis=1)
    matrix[np.arange(n_kernel), np.arange(n_kernel)] += model.ridge * np.repeat(diagonal, n_pixels)
    if model.precision is not None:
        matrix[np.arange(n_kernel), np.arange(n_kernel)] += model.precision.ravel()
    light = model.elements.matrix.sum(axis=(1, 2))
    total = light[:, None] * light[None, :]
    for term, degree in enumerate(degrees(model.kernel_order)):
        if degree > model.flux_order:
            block = slice(term * n_pixels, (term + 1) * n_pixels)
            matrix[block, block] += model.flux_penalty * diagonal[term] * total
    scale = 1.0 / np.sqrt(np.maximum(np.abs(np.diag(matrix)), np.finfo(float).tiny))
    matrix *= scale[:, None] * scale[None, :]
    # two BLAS threads on a busy machine wait for each other longer than one works
    with single_threaded_blas():
        factor = _factor_positive(matrix, n_kernel)
        parameters = scale * linalg.cho_solve(factor, equations.vector * scale)
    if not np.isfinite(parameters).all():
        raise np.linalg.LinAlgError("the kernel's normal equations have no finite solution")
    kernel = model.elements.pixels(parameters[:n_kernel].reshape(-1, model.n_coefficients))
    return Solution(kernel, parameters[n_kernel:], factor, scale, model)


def _factor_positive(matrix: Float64, n_kernel: int) -> tuple[Float64, bool]:
    """Factor by Cholesky, with a growing ridge on the kernel where the matrix needs one."""
    for ridge in (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        trial = matrix.copy()
        trial[np.arange(n_kernel), np.arange(n_kernel)] += ridge
        try:
            factor: tuple[Float64, bool] = linalg.cho_factor(trial, lower=True, overwrite_a=True)
        except linalg.LinAlgError:
            continue
        except ValueError as error:
            raise np.linalg.LinAlgError(str(error)) from error
        return factor
    raise np.linalg.LinAlgError("the normal equations are not positive definite")
