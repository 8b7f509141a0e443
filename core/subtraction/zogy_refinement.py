"""What the PSF models leave on the stars, taken out with a smooth kernel that varies.

A PSF model is known to a few thousandths of the flux at best; the brightest stars of a frame show
more. The two parts of the proper difference, D_N and D_R (`core.subtraction.zogy_transform`), show
every constant source with one shape if the models are right. What is wrong with them is the same
for all stars of a region, so ``D_N - D_R`` is D_R convolved with a small kernel. It is fitted with
Gaussians times polynomials (Alard & Lupton 1998, ApJ 503, 325), since D_R is too smooth to tell
the pixels of a kernel apart, and amounts to replacing P_n by one that agrees with P_r on these two
images. What is left of flux scale and shift goes with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft

from core.image import FloatImage, MaskImage
from core.polynomials import exponents, terms
from core.stars import StarList
from core.subtraction.normal_equations import gather
from core.subtraction.stamps import Stamps, stamps_at

Float64 = npt.NDArray[np.float64]
LEAST_STARS = 8
MOST_STARS = 250
LEAST_SNR = 30.0
SCALES = ((0.25, 2), (0.5, 2), (0.9, 1))  # Gaussian sigma over the seeing, degree
CLIP = 5.0
BLOCK = 32  # pixels that share a kernel


@dataclass(frozen=True)
class Refinement:
    """The kernel whose convolution with D_R is what the PSF models leave on D.

    Attributes
    ----------
    kernel : ndarray of float64, shape (n_terms, size, size)
        One per polynomial term.
    order : int
        Of the polynomial.
    shape : tuple of int
        (ny, nx) of the frame.
    stars_used, stars_clipped : int
    """

    kernel: Float64
    order: int
    shape: tuple[int, int]
    stars_used: int
    stars_clipped: int

    def remove(self, plane: FloatImage, template_part: FloatImage, least: float) -> None:
        """Subtract the template's part, convolved with the kernel, from a plane, in place.

        Parameters
        ----------
        plane, template_part : ndarray of float32, shape (ny, nx)
        least : float
            Blocks in which the template's part stays below this level are left alone: a kernel
            that holds thousandths of the flux changes nothing there.
        """
        powers = np.array(exponents(self.order), dtype=np.int64)
        flipped = np.ascontiguousarray(self.kernel[:, ::-1, ::-1], dtype=np.float32)
        _remove(plane, template_part, flipped, powers, np.float32(least))

    def flux_scale_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float64:
        """Factor on the flux scale that comes with the kernel."""
        return 1 + terms(self.order, x, y, self.shape) @ self.kernel.sum(axis=(1, 2))


def refine(
    difference: FloatImage,
    from_template: FloatImage,
    variance: FloatImage,
    mask: MaskImage,
    stars: StarList,
    fwhm: float,
) -> Refinement | None:
    """Fit the kernel on the stars.

    Parameters
    ----------
    difference, from_template : ndarray of float32, shape (ny, nx)
        D and D_R, ADU.
    variance : ndarray of float32, shape (ny, nx)
        Of D.
    mask : ndarray of uint16, shape (ny, nx)
    stars : StarList
    fwhm : float
        Seeing, pixels.

    Returns
    -------
    Refinement or None
        None where there are too few stars.
    """
    basis = _basis(fwhm)
    half = int(np.ceil(2.0 * fwhm)) + 2
    stamps = _places(stars, half, basis.shape[1] // 2, mask)
    if len(stamps) < LEAST_STARS:
        return None
    design = _design(from_template, stamps, basis)
    target = gather(difference, stamps).reshape(len(stamps), -1).astype(np.float64)
    signal = gather(from_template, stamps).reshape(len(stamps), -1)
    photons = gather(variance, stamps).reshape(len(stamps), -1).astype(np.float64)
    good = gather(mask, stamps).reshape(len(stamps), -1) == 0
    order = 2 if len(stamps) >= 40 else 1 if len(stamps) >= 15 else 0
    shape = (difference.shape[0], difference.shape[1])
    phi = terms(order, stamps.x, stamps.y, shape)
    kept = np.ones(len(stamps), dtype=bool)
    coefficients = np.zeros((phi.shape[1], design.shape[1]))
    for error in (0.03, 0.01, 0.003, 0.003):
        sigma2 = photons + (error * signal) ** 2
        residual = target - _model(design, phi, coefficients)
        pull2 = residual**2 / sigma2
        used = good & (pull2 < CLIP**2)
        if error < 0.03:
            chi2 = np.where(good, np.minimum(pull2, 100), 0).sum(axis=1) / good.sum(axis=1)
            middle = float(np.median(chi2))
            spread = 1.4826 * float(np.median(np.abs(chi2 - middle)))
            kept = chi2 <= middle + CLIP * max(spread, 0.1 * middle)
        else:
            used = good
        weight = np.where(used & kept[:, None], 1 / sigma2, 0)
        coefficients = _solve(design, target, weight, phi)
    kernel = np.tensordot(coefficients, basis, axes=1)
    return Refinement(kernel, order, shape, int(kept.sum()), int((~kept).sum()))


def _basis(fwhm: float) -> Float64:
    """Gaussians times polynomials, shape (n, size, size), each of unit absolute sum."""
    half = int(np.ceil(2.5 * SCALES[-1][0] * fwhm))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    kernels = []
    for scale, degree in SCALES:
        sigma = max(scale * fwhm, 0.7)
        gauss = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
        for i in range(degree + 1):
            for j in range(degree + 1 - i):
                kernel = gauss * (x / sigma) ** i * (y / sigma) ** j
                kernels.append(kernel / np.abs(kernel).sum())
    return np.stack(kernels)


def _places(stars: StarList, half: int, reach: int, mask: MaskImage) -> Stamps:
    """Stamps on the bright stars whose cores are whole."""
    sources = stars.sources
    bright = sources.select(~(sources.snr < LEAST_SNR))
    order = np.argsort(-bright.flux, kind="stable")
    shape = (mask.shape[0], mask.shape[1])
    stamps = stamps_at(bright.x[order], bright.y[order], half, reach, shape)
    if len(stamps) == 0:
        return stamps
    masked = gather(mask, stamps) != 0
    core = masked[:, half // 2 : -(half // 2), half // 2 : -(half // 2)]
    whole = ~core.any(axis=(1, 2)) & (masked.mean(axis=(1, 2)) < 0.2)
    return stamps.select(np.flatnonzero(whole)[:MOST_STARS])


def _design(plane: FloatImage, stamps: Stamps, basis: Float64) -> Float64:
    """The plane convolved with every basis kernel under every stamp, shape (n, n_basis, pixels)."""
    reach = basis.shape[1] // 2
    wide = gather(plane, Stamps(stamps.x, stamps.y, stamps.half + reach))
    side = int(scipy.fft.next_fast_len(wide.shape[1] + 2 * reach, real=True))
    spectra = scipy.fft.rfft2(wide.astype(np.float32), s=(side, side))
    kernels = scipy.fft.rfft2(basis.astype(np.float32), s=(side, side))
    inner = slice(2 * reach, 2 * reach + 2 * stamps.half + 1)
    columns = [
        scipy.fft.irfft2(spectra * kernel, s=(side, side))[:, inner, inner] for kernel in kernels
    ]
    return np.stack(columns, axis=1).reshape(len(stamps), len(basis), -1).astype(np.float64)


def _model(design: Float64, phi: Float64, coefficients: Float64) -> Float64:
    local = phi @ coefficients
    return np.asarray(np.einsum("sb,sbp->sp", local, design), dtype=np.float64)


def _solve(design: Float64, target: Float64, weight: Float64, phi: Float64) -> Float64:
    """Solve the weighted least squares; shape (n_terms, n_basis)."""
    weighted = design * weight[:, None, :]
    own = weighted @ design.transpose(0, 2, 1)
    right = (weighted @ target[:, :, None])[:, :, 0]
    n_terms, n_basis = phi.shape[1], design.shape[1]
    matrix = np.einsum("st,su,sbc->tbuc", phi, phi, own, optimize=True)
    matrix = matrix.reshape(n_terms * n_basis, -1)
    vector = np.einsum("st,sb->tb", phi, right).ravel()
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    matrix = matrix * scale[:, None] * scale[None, :] + 1e-6 * np.eye(len(scale))
    return np.asarray(scale * np.linalg.solve(matrix, scale * vector)).reshape(n_terms, n_basis)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _remove(plane, template_part, kernels, powers, least):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = plane.shape
    n_terms, size, _ = kernels.shape
    half = size // 2
    across = (nx + BLOCK - 1) // BLOCK
    for block in numba.prange(((ny + BLOCK - 1) // BLOCK) * across):
        y0, x0 = (block // across) * BLOCK, (block % across) * BLOCK
        y1, x1 = min(ny, y0 + BLOCK), min(nx, x0 + BLOCK)
        ya, yb = max(0, y0 - half), min(ny, y1 + half)
        xa, xb = max(0, x0 - half), min(nx, x1 + half)
        bright = False
        for y in range(ya, yb):
            for x in range(xa, xb):
                bright |= abs(template_part[y, x]) > least
        if not bright:
            continue
        u = (0.5 * (x0 + x1 - 1) - 0.5 * (nx - 1)) / (0.5 * nx)
        v = (0.5 * (y0 + y1 - 1) - 0.5 * (ny - 1)) / (0.5 * ny)
        kernel = np.zeros((size, size), dtype=np.float32)
        for t in range(n_terms):
            kernel += np.float32(u ** powers[t, 0] * v ** powers[t, 1]) * kernels[t]
        width = x1 - x0
        source = np.zeros((y1 - y0 + 2 * half, width + 2 * half), dtype=np.float32)
        for y in range(ya, yb):
            for x in range(xa, xb):
                source[y - y0 + half, x - x0 + half] = template_part[y, x]
        total = np.empty(width, dtype=np.float32)
        for y in range(y0, y1):
            total[:] = 0
            for j in range(size):
                row = source[y - y0 + j]
                for i in range(size):
                    k = kernel[j, i]
                    for x in range(width):
                        total[x] += k * row[x + i]
            for x in range(width):
                plane[y, x0 + x] -= total[x]
