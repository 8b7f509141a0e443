"""How a point spread function varies over a frame: in size and shape first, by pixels where known.

Free polynomials in every pixel of a PSF need bright stars everywhere; with ten bright stars among
two hundred of S/N 5 to 50 they left 5 % of scatter in PSF fluxes over the field. What varies in a
real PSF is its size and its ellipticity before anything else: three amplitudes a star.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Float64 = npt.NDArray[np.float64]
STEP = 0.04  # relative stretch, to take derivatives by
INNER = 0.01  # of the peak: the pixels that tell how the rest varies
LEAST = 0.002  # of the PSF's own profile: the smallest change of shape that is allowed for


def fit_variation(
    basis: Float64, stamps: Float64, weight: Float64, mean: Float64, modes: Float64
) -> Float64:
    """Fit stamps of stars by a mean, its changes of size and shape, and a free rest.

    The changes of size and ellipticity are polynomials over the frame. Of what they leave, each
    pixel's mean is free; how that varies over the frame is shrunk towards nothing: its prior is a
    share of the PSF's profile, and the share is as large as the pixels show it to be beyond their
    noise (empirical Bayes; Efron and Morris 1973).

    Parameters
    ----------
    basis : ndarray of float64, shape (n_stars, n_terms)
        Polynomial terms at the stars; the first is 1.
    stamps, weight : ndarray of float64, shape (n_stars, side²)
        Of unit flux, and their inverse variances; zero weight leaves a pixel out.
    mean : ndarray of float64, shape (side²,)
        The PSF in the middle of the frame, roughly.
    modes : ndarray of float64, shape (3, side²)
        How it changes with size and shape (`shape_modes`).

    Returns
    -------
    ndarray of float64, shape (n_terms, side²)
    """
    n_terms = basis.shape[1]
    if n_terms == 1:
        normal, right = _normal_equations(basis, stamps, weight)
        return _solved(normal, right)
    amplitudes = _fit_amplitudes(basis, stamps - mean, weight, modes)
    coarse = amplitudes @ modes
    coarse[0] += mean
    normal, right = _normal_equations(basis, stamps - basis @ coarse, weight)
    profile2 = np.maximum(coarse[0], 0) ** 2
    inner = np.flatnonzero(profile2 > INNER**2 * profile2.max())
    inverse = np.asarray(np.linalg.inv(normal[inner]), dtype=np.float64)
    free = (inverse @ right[inner, :, None])[..., 0]
    for term in range(1, n_terms):
        excess = _excess(free[:, term], inverse[:, term, term], profile2[inner])
        share2 = max(excess, LEAST**2)
        normal[:, term, term] += 1.0 / np.maximum(share2 * profile2, 1e-30)
    return coarse + _solved(normal, right)


def excess_size(
    stamps: Float64, weight: Float64, model: Float64, larger: Float64
) -> tuple[Float64, Float64]:
    """Measure by how much each stamp is larger than its model, and the error of that.

    Parameters
    ----------
    stamps, weight : ndarray of float64, shape (n_stars, side²)
        As for `fit_variation`.
    model : ndarray of float64, shape (n_stars, side²)
        The PSF at each star.
    larger : ndarray of float64, shape (side²,)
        How the PSF changes with the logarithm of its size (the first of `shape_modes`).

    Returns
    -------
    excess, error : ndarray of float64, shape (n_stars,)
        Logarithm of the size; the flux is fitted as well.
    """
    light = weight * model
    rest = stamps - model
    power, cross = np.einsum("sp,sp->s", light, model), light @ larger
    inertia = weight @ larger**2
    free = np.maximum(inertia - cross**2 / np.maximum(power, 1e-300), 1e-300)
    by_flux = cross / np.maximum(power, 1e-300) * np.einsum("sp,sp->s", light, rest)
    rest *= weight
    return (rest @ larger - by_flux) / free, 1.0 / np.sqrt(free)


def shape_modes(mean: Float64) -> Float64:
    """Return how a stamp changes with the logarithm of its size, and with two ellipticities.

    Parameters
    ----------
    mean : ndarray of float64, shape (side²,)

    Returns
    -------
    ndarray of float64, shape (3, side²)
    """
    side = round(np.sqrt(mean.size))
    half = side // 2
    spline = ndimage.spline_filter(mean.reshape(side, side), order=3)
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)

    def stretched(xx: float, xy: float, yy: float) -> Float64:
        """The stamp at places A (x, y), of unchanged flux."""
        at = [xy * x + yy * y + half, xx * x + xy * y + half]
        values: Float64 = ndimage.map_coordinates(
            spline, at, order=3, prefilter=False, mode="nearest"
        )
        return abs(xx * yy - xy**2) * values.ravel()

    modes = []
    for xx, xy, yy in ((1.0, 0.0, 1.0), (1.0, 0.0, -1.0), (0.0, 1.0, 0.0)):
        ends = [stretched(1 + e * xx, e * xy, 1 + e * yy) for e in (-STEP, STEP)]
        modes.append((ends[0] - ends[1]) / (2 * STEP))
    return np.array(modes)


def _fit_amplitudes(basis: Float64, rest: Float64, weight: Float64, modes: Float64) -> Float64:
    """Fit polynomials to the amplitudes of the modes; shape (n_terms, n_modes)."""
    n_terms, n_modes = basis.shape[1], len(modes)
    products = (modes[:, None] * modes[None, :]).reshape(n_modes**2, -1)
    own = (weight @ products.T).reshape(-1, n_modes, n_modes)
    right = (weight * rest) @ modes.T
    normal = np.einsum("st,su,skl->tkul", basis, basis, own, optimize=True)
    normal = normal.reshape(n_terms * n_modes, -1)
    normal += (1e-9 * np.trace(normal) + 1e-30) * np.eye(len(normal))
    vector = (basis.T @ right).ravel()
    solution: Float64 = np.linalg.solve(normal, vector).reshape(n_terms, n_modes)
    return solution


def _excess(value: Float64, variance: Float64, profile2: Float64) -> float:
    """Return the mean square of ``value / profile`` beyond that of its noise."""
    weight = profile2 / variance**2
    power = float((weight * profile2).sum())
    return float((weight * (value**2 - variance)).sum()) / max(power, 1e-300)


def _normal_equations(basis: Float64, stamps: Float64, weight: Float64) -> tuple[Float64, Float64]:
    """Return matrix and vector of the weighted polynomial fit of every pixel."""
    n_terms = basis.shape[1]
    products = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1)
    normal = (weight.T @ products).reshape(-1, n_terms, n_terms)
    ridge: Float64 = 1e-6 * np.trace(normal, axis1=1, axis2=2) / n_terms + 1e-30
    normal += ridge[:, None, None] * np.eye(n_terms)
    return normal, (weight * stamps).T @ basis


def _solved(normal: Float64, right: Float64) -> Float64:
    """Return the solutions, shape (n_terms, pixels)."""
    return np.asarray(np.linalg.solve(normal, right[..., None])[..., 0].T, dtype=np.float64)
