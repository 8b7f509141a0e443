"""What the PSF models leave on the stars, given back to them.

A constant source has one shape in both parts of the proper difference, ``A`` and ``B``, if the
PSFs are right (`core.subtraction.zogy.boxes`). What is wrong with them is the same for all stars
of a region: ``A - B = c ** M`` with a small kernel ``c`` and the sky as both images show it, ``M``.
It is fitted with Gaussians times polynomials (Alard & Lupton 1998, ApJ 503, 325), and
``P_n (1 + c)`` agrees with ``P_r`` on these two images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.fft

from core.polynomials import terms
from core.psf import PSFModel
from core.subtraction.weighted_median import weighted_median
from core.subtraction.zogy.boxes import StarBoxes, centred_transforms, halves
from core.subtraction.zogy.images import KnownImage
from core.subtraction.zogy.matching import Matching

Float64 = npt.NDArray[np.float64]
LEAST_STARS = 5
SCALES = ((0.25, 2), (0.5, 2), (0.9, 1))  # Gaussian sigma over the seeing, degree
LIKELY = 0.03  # size of a coefficient that nothing is known of
LEAST_SIGNAL = 30.0  # sigma, of a star that tells something
BRIGHTEST = 15  # stars that tell how good the model is
LEAST_ERROR = 0.001
ROUNDS = 4
CLIP = 5.0


@dataclass(frozen=True)
class Refinement:
    """The kernel that the PSFs lack.

    Attributes
    ----------
    kernel : ndarray of float64, shape (n_terms, size, size)
        One per polynomial term; they sum to zero.
    order : int
        Of the polynomial.
    stars_used, stars_clipped : int
    """

    kernel: Float64
    order: int
    stars_used: int
    stars_clipped: int

    def applied(self, science: KnownImage, template: KnownImage) -> tuple[KnownImage, KnownImage]:
        """Correct the PSFs, each by as much of it as it is the noisier one."""
        noise2 = science.trust.noise**2, template.trust.noise**2
        share = noise2[0] / (noise2[0] + noise2[1]) if sum(noise2) > 0 else 1.0
        return (
            replace(science, psf=self._corrected(science.psf, share)),
            replace(template, psf=self._corrected(template.psf, share - 1)),
        )

    def _corrected(self, psf: PSFModel, share: float) -> PSFModel:
        """Return ``P (1 + share c)``; products of terms beyond the highest order are left out."""
        order = max(psf.order, self.order)
        n_terms = len(terms(order, 0, 0, psf.shape))
        old = np.zeros((n_terms, psf.size, psf.size))
        old[: len(psf.coefficients)] = psf.coefficients
        side = int(scipy.fft.next_fast_len(psf.size + self.kernel.shape[1], real=True))
        spectra = scipy.fft.rfft2(old, s=(side, side))
        kernels = centred_transforms(self.kernel, side)
        added = np.zeros_like(spectra)
        added[: len(kernels)] = kernels * spectra[0]
        added[1:] += kernels[0] * spectra[1:]
        change = scipy.fft.irfft2(added, s=(side, side))[:, : psf.size, : psf.size]
        planes = old + share * change
        # what falls off the stamp must not change a flux
        wanted = old.sum(axis=(1, 2))
        planes *= wanted[0] / planes[0].sum()
        planes[1:] += ((wanted - planes.sum(axis=(1, 2))) / wanted[0])[1:, None, None] * planes[0]
        return replace(psf, coefficients=planes.astype(np.float32), order=order)


def refine(boxes: StarBoxes, matching: Matching, fwhm: float) -> Refinement | None:
    """Fit the kernel on the stars.

    Every star's own place and sky are fitted along with it. Its flux is not: beyond the window
    nobody sees whether a star is brighter or its PSF wider, and the scale is known.

    Parameters
    ----------
    boxes : StarBoxes
    matching : Matching
    fwhm : float
        Seeing, pixels.

    Returns
    -------
    Refinement or None
        None where there are too few stars.
    """
    basis = _basis(fwhm)
    scale, shift = (at(boxes.x, boxes.y) for at in (matching.flux_scale_at, matching.shift_at))
    parts = halves(boxes, scale, shift)
    n = len(boxes)
    target = boxes.real(parts.science - parts.template).reshape(n, -1)
    seen = parts.seen()
    signal = boxes.real(seen).reshape(n, -1)
    photons = parts.variance.reshape(n, -1)
    snr = np.sqrt((signal**2 / photons).sum(axis=1))
    telling = snr > LEAST_SIGNAL
    if telling.sum() < LEAST_STARS:
        return None
    ky, kx = boxes.frequencies()
    moved = (boxes.real(1j * k * seen).reshape(n, -1) for k in (kx, ky))
    own = np.stack([*moved, np.ones_like(signal)], axis=1)
    kernels = centred_transforms(basis, boxes.grid)
    design = np.stack([boxes.real(seen * kernel).reshape(n, -1) for kernel in kernels], axis=1)
    own, design, target, signal, photons = (
        plane[telling] for plane in (own, design, target, signal, photons)
    )
    order = 2 if len(target) >= 40 else 1 if len(target) >= 15 else 0
    phi = terms(order, boxes.x[telling], boxes.y[telling], matching.shape)
    coefficients = np.zeros((phi.shape[1], len(basis)))
    kept = np.ones(len(target), dtype=bool)
    residual = _without(own, 1 / photons, target[:, None])[:, 0]
    for _ in range(ROUNDS):
        error = _relative_error(residual, signal, photons)
        sigma2 = photons + (error * signal) ** 2
        pull2 = residual**2 / sigma2
        chi2 = np.minimum(pull2, 100).mean(axis=1)
        middle = float(np.median(chi2))
        spread = 1.4826 * float(np.median(np.abs(chi2 - middle)))
        kept = chi2 <= middle + CLIP * max(spread, 0.2 * middle)
        weight = np.where((pull2 < CLIP**2) & kept[:, None], 1 / sigma2, 0)
        free = _without(own, weight, np.concatenate([design, target[:, None]], axis=1))
        coefficients = _solve(free[:, :-1], free[:, -1], weight, phi)
        residual = free[:, -1] - np.einsum("sb,sbp->sp", phi @ coefficients, free[:, :-1])
    kernel = np.tensordot(coefficients, basis, axes=1)
    return Refinement(kernel, order, int(kept.sum()), int((~kept).sum()))


def remaining_error(boxes: StarBoxes, matching: Matching) -> float:
    """Light that is left of the brightest sources, relative to theirs.

    It is the median of the sources, each counting by how well it is seen: one star that outshines
    all others is not forgiven what stays of it, nor does a transient on a galaxy count for much.

    Parameters
    ----------
    boxes : StarBoxes
    matching : Matching
    """
    scale, shift = (at(boxes.x, boxes.y) for at in (matching.flux_scale_at, matching.shift_at))
    parts = halves(boxes, scale, shift)
    n = len(boxes)
    residual = boxes.real(parts.science - parts.template).reshape(n, -1)
    template = boxes.real(parts.template).reshape(n, -1)
    photons = parts.variance.reshape(n, -1)
    of_template = (template**2 / photons).sum(axis=1)
    known = np.argsort(-of_template)[:BRIGHTEST]
    known = known[of_template[known] > LEAST_SIGNAL**2]
    if known.size == 0:
        return 0.0
    residual = residual - np.median(residual, axis=1, keepdims=True)
    excess = np.maximum((residual**2 - photons)[known].sum(axis=1), 0)
    left = np.sqrt(excess / (template[known] ** 2).sum(axis=1))
    return weighted_median(left, of_template[known])


def _relative_error(residual: Float64, signal: Float64, photons: Float64) -> float:
    """What is wrong with the model, relative to it: the median of the brightest stars.

    They show it best and are what it is fitted on, so they must not be clipped for it.
    """
    signal2 = (signal**2).sum(axis=1)
    excess = (residual**2 - photons).sum(axis=1)
    brightest = np.argsort(-signal2 / photons.sum(axis=1))[:BRIGHTEST]
    ratio = excess[brightest] / np.maximum(signal2[brightest], 1e-30)
    return float(np.clip(np.sqrt(max(float(np.median(ratio)), 0)), LEAST_ERROR, 0.1))


def _without(own: Float64, weight: Float64, planes: Float64) -> Float64:
    """Take out of planes, shape (n, m, pixels), what each star's own parameters can explain."""
    weighted = own * weight[:, None, :]
    normal = weighted @ own.transpose(0, 2, 1)
    inverse = np.linalg.pinv(normal, hermitian=True, rcond=1e-10)
    share = inverse @ (weighted @ planes.transpose(0, 2, 1))
    return planes - share.transpose(0, 2, 1) @ own


def _basis(fwhm: float) -> Float64:
    """Gaussians times polynomials, shape (n, size, size), each of unit absolute sum, summing to 0.

    The sum is taken out with the widest Gaussian: flux scales are measured elsewhere.
    """
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
    widest = np.exp(-0.5 * (x**2 + y**2) / (SCALES[-1][0] * fwhm) ** 2)
    widest /= widest.sum()
    flat = [kernel - kernel.sum() * widest for kernel in kernels]
    return np.stack([kernel for kernel in flat if np.abs(kernel).sum() > 1e-6])


def _solve(design: Float64, target: Float64, weight: Float64, phi: Float64) -> Float64:
    """Solve the weighted least squares, unlikely coefficients held back; (n_terms, n_basis)."""
    weighted = design * weight[:, None, :]
    own = weighted @ design.transpose(0, 2, 1)
    right = (weighted @ target[:, :, None])[:, :, 0]
    n_terms, n_basis = phi.shape[1], design.shape[1]
    matrix = np.einsum("st,su,sbc->tbuc", phi, phi, own, optimize=True)
    matrix = matrix.reshape(n_terms * n_basis, -1) + np.eye(n_terms * n_basis) / LIKELY**2
    vector = np.einsum("st,sb->tb", phi, right).ravel()
    return np.asarray(np.linalg.solve(matrix, vector)).reshape(n_terms, n_basis)
