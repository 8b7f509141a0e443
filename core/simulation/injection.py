"""Where to hide transients, and how bright they must be for a signal-to-noise ratio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage
from core.simulation.psf import FloatArray, SimulatedPSF
from core.simulation.sky import Galaxies

_GRID = 64  # of the Fourier transforms
_PATIENCE = 2000  # misses in a row that mean that the frame is full


@dataclass(frozen=True)
class NoiseBudget:
    """All that decides how well a point source on the difference can be measured.

    Attributes
    ----------
    science_variance, template_variance : ndarray of float32, shape (ny, nx)
        True variances, ADU² of each image, without the source itself.
    science_psf, template_psf : SimulatedPSF
        True point spread functions.
    flux_scale : float
        Science ADU per template ADU.
    electrons_per_adu : float
        Of the science image, for the source's own Poisson noise.
    """

    science_variance: FloatImage
    template_variance: FloatImage
    science_psf: SimulatedPSF
    template_psf: SimulatedPSF
    flux_scale: float
    electrons_per_adu: float

    def snr(
        self, x: float, y: float, flux: float, template_place: tuple[float, float] | None = None
    ) -> float:
        """Return the signal-to-noise ratio that the best possible measurement would reach.

        For images with locally white noise of variances V_s and V_t and transfer functions P_s
        and P_t the optimum over all linear statistics of the two images is
        ``F² · mean_k |P_s P_t|² / (|P_t|² V_s + f² |P_s|² V_t)`` (Zackay, Ofek & Gal-Yam 2016,
        ApJ 830, 27, their equation 13 squared and summed). The local V are harmonic means under
        the squared PSF, with the source's own Poisson noise in the image that it is in.

        Parameters
        ----------
        x, y : float
            Place on the science image, 0-based pixels.
        flux : float
            Flux on the difference, science ADU; the sign does not matter.
        template_place : tuple of float, optional
            The same place on the template's pixels, where that differs.

        Returns
        -------
        float
            The ratio, positive.
        """
        tx, ty = template_place or (x, y)
        stamp, pixels = _stamp(self.science_variance, x, y)
        psf = self.science_psf.at(x, y, stamp.shape[0], x - round(x), y - round(y))[pixels]
        own = max(flux, 0.0) * psf / self.electrons_per_adu
        science = _harmonic(psf, stamp[pixels] + own)
        stamp, pixels = _stamp(self.template_variance, tx, ty)
        psf = self.template_psf.at(tx, ty, stamp.shape[0], tx - round(tx), ty - round(ty))[pixels]
        template = _harmonic(psf, stamp[pixels]) * self.flux_scale**2
        ps2 = self.science_psf.transfer_at(x, y, _GRID) ** 2
        pt2 = self.template_psf.transfer_at(tx, ty, _GRID) ** 2
        information = ps2 * pt2 / (pt2 * science + ps2 * template + 1e-300)
        return float(abs(flux) * np.sqrt(information.mean()))

    def flux_for(self, x: float, y: float, snr: float, sign: float = 1.0) -> float:
        """Return the flux in science ADU that reaches ``snr`` at a place, own noise included.

        With a ``sign`` of -1 the source is one that the science image lacks; its own noise, then
        in the template alone, is neglected.
        """
        flux = sign * snr / self.snr(x, y, sign)
        for _ in range(8):
            flux *= snr / self.snr(x, y, flux)
        return flux


def draw_places(
    rng: np.random.Generator,
    n: int,
    shape: tuple[int, int],
    keep_out: npt.NDArray[np.bool_],
    taken: tuple[FloatArray, FloatArray] | None = None,
    separation: float = 20.0,
    margin: float = 32.0,
) -> tuple[FloatArray, FloatArray]:
    """Draw places that are apart from each other and outside ``keep_out``.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    n : int
        How many.
    shape : tuple of int
        (ny, nx) of the frame.
    keep_out : ndarray of bool, shape (ny, nx)
        Where nothing may be put.
    taken : tuple of ndarray, optional
        (x, y) of places already in use.
    separation, margin : float
        The least distance to another place, and to the edge, pixels.

    Returns
    -------
    x, y : ndarray of float64, shape (m,)
        At most ``n``: a frame without room gets fewer.
    """
    ny, nx = shape
    xs, ys = (list(taken[0]), list(taken[1])) if taken else ([], [])
    start = len(xs)
    misses = 0
    while len(xs) - start < n and misses < _PATIENCE:
        misses += 1
        x = rng.uniform(margin, nx - 1 - margin)
        y = rng.uniform(margin, ny - 1 - margin)
        if _is_free(x, y, xs, ys, keep_out, separation):
            xs.append(x)
            ys.append(y)
            misses = 0
    return np.array(xs[start:]), np.array(ys[start:])


def draw_places_on_galaxies(
    rng: np.random.Generator,
    n: int,
    galaxies: Galaxies,
    shape: tuple[int, int],
    keep_out: npt.NDArray[np.bool_],
    faint: float = 20.5,
    separation: float = 20.0,
    margin: float = 32.0,
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp]]:
    """Draw places on galaxies, at an offset that follows their light.

    Returns
    -------
    x, y : ndarray of float64, shape (m,)
        At most ``n`` places.
    host : ndarray of int, shape (m,)
        Index of the galaxy.
    """
    ny, nx = shape
    covariance = galaxies.covariance()
    xs: list[float] = []
    ys: list[float] = []
    hosts: list[int] = []
    for i in rng.permutation(np.flatnonzero(galaxies.mag < faint)):
        if len(xs) >= n:
            break
        cxx, cxy, cyy = covariance[i]
        offset = np.linalg.cholesky([[cxx, cxy], [cxy, cyy]]) @ rng.normal(0.0, 0.7, 2)
        x, y = galaxies.x[i] + offset[0], galaxies.y[i] + offset[1]
        inside = margin <= x <= nx - 1 - margin and margin <= y <= ny - 1 - margin
        if inside and _is_free(x, y, xs, ys, keep_out, separation):
            xs.append(float(x))
            ys.append(float(y))
            hosts.append(int(i))
    return np.array(xs), np.array(ys), np.array(hosts, dtype=np.intp)


def keep_out_map(
    defects: npt.NDArray[np.bool_],
    star_light: FloatArray,
    limit: float,
    radius: int = 8,
) -> npt.NDArray[np.bool_]:
    """Return where a hidden source could not be told from a defect or from a bright star.

    Parameters
    ----------
    defects : ndarray of bool, shape (ny, nx)
        Saturated and bad pixels.
    star_light : ndarray of float64, shape (ny, nx)
        Light of the stars alone, ADU.
    limit : float
        Stars that are brighter than this per pixel are kept clear.
    radius : int
        How far to stay away, pixels.
    """
    blocked = defects | (star_light > limit)
    return ndimage.maximum_filter(blocked, size=2 * radius + 1)


def _is_free(
    x: float,
    y: float,
    xs: list[float],
    ys: list[float],
    keep_out: npt.NDArray[np.bool_],
    separation: float,
) -> bool:
    if keep_out[round(y), round(x)]:
        return False
    near = np.hypot(np.asarray(xs) - x, np.asarray(ys) - y)
    return bool(near.size == 0 or near.min() >= separation)


def _stamp(
    variance: FloatImage, x: float, y: float, half: int = 12
) -> tuple[FloatArray, tuple[slice, slice]]:
    """Cut a stamp around a place; also say which part of the full stamp lies on the image."""
    ny, nx = variance.shape
    cx, cy = round(x), round(y)
    full = np.zeros((2 * half + 1, 2 * half + 1))
    y0, y1 = max(cy - half, 0), min(cy + half + 1, ny)
    x0, x1 = max(cx - half, 0), min(cx + half + 1, nx)
    if y1 <= y0 or x1 <= x0:
        raise ValueError(f"({x:.1f}, {y:.1f}) is not on the image of {nx} x {ny} pixels")
    pixels = (slice(y0 - cy + half, y1 - cy + half), slice(x0 - cx + half, x1 - cx + half))
    full[pixels] = variance[y0:y1, x0:x1]
    return full, pixels


def _harmonic(psf: FloatArray, variance: FloatArray) -> float:
    """Return the harmonic mean of the variance under the squared PSF."""
    weight = psf**2
    return float(weight.sum() / np.sum(weight / variance))
