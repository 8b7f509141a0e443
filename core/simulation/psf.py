"""An analytic point spread function that varies over the field."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import roots_genlaguerre

FloatArray = npt.NDArray[np.float64]
Profile = Literal["moffat", "gaussian"]


@lru_cache(maxsize=16)
def moffat_mixture(beta: float = 3.5, n: int = 4) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Write a circular Moffat profile as a short sum of Gaussians.

    A Moffat is a Gaussian averaged over an inverse-gamma distribution of its variance,
    ``(1 + r²/α²)^-β = 1/Γ(β) ∫ t^(β-1) e^-t e^(-t r²/α²) dt``, so the generalised Gauss-Laguerre
    rule gives a mixture of positive weights whose total flux is exactly one. Convolving,
    shifting and Fourier transforming it then is algebra.

    Parameters
    ----------
    beta : float
        Moffat exponent, above 1.
    n : int
        Number of Gaussians.

    Returns
    -------
    weights : tuple of float
        Flux of each Gaussian; they add up to 1.
    variances : tuple of float
        Variance per axis of each, pixels², for a profile whose FWHM is 1 pixel.
    """
    nodes, weights = roots_genlaguerre(n, beta - 2.0)
    weights = weights / weights.sum()
    variances = 1.0 / (2.0 * nodes)

    def profile(radius: float) -> float:
        return float(np.sum(weights / variances * np.exp(-0.5 * radius**2 / variances)))

    half = 0.5 * profile(0.0)
    radius = brentq(lambda r: profile(r) - half, 1e-3, 5.0)
    variances = variances / (2.0 * radius) ** 2
    return tuple(map(float, weights)), tuple(map(float, variances))


@dataclass(frozen=True)
class SimulatedPSF:
    """An effective PSF (pixel response included): a sum of concentric elliptical Gaussians.

    It is sampled at pixel centres. FWHM and ellipticity are smooth functions of the place.

    Attributes
    ----------
    fwhm : float
        Mean full width at half maximum over the field, pixels (geometric mean of the axes).
    shape : tuple of int
        (ny, nx) of the frame.
    weights, variances : tuple of float
        The mixture for a FWHM of one pixel.
    fwhm_terms : tuple of float
        Coefficients of u, v, u² - 1/3, uv, v² - 1/3 in the relative change of the FWHM, where u
        and v run from -1 to 1 over the frame.
    e1_terms, e2_terms : tuple of float
        Coefficients of 1, u, v in the two components of the ellipticity.
    """

    fwhm: float
    shape: tuple[int, int]
    weights: tuple[float, ...]
    variances: tuple[float, ...]
    fwhm_terms: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)
    e1_terms: tuple[float, ...] = (0.0, 0.0, 0.0)
    e2_terms: tuple[float, ...] = (0.0, 0.0, 0.0)

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        shape: tuple[int, int],
        fwhm: float,
        variation: float = 0.1,
        ellipticity: float = 0.03,
        profile: Profile = "moffat",
        beta: float = 3.5,
    ) -> SimulatedPSF:
        """Draw a PSF whose FWHM varies by at most ``variation`` (relative) over the frame."""
        if profile == "gaussian":
            weights: tuple[float, ...] = (1.0,)
            variances: tuple[float, ...] = (1.0 / (8.0 * np.log(2.0)),)
        else:
            weights, variances = moffat_mixture(beta)
        terms = rng.normal(size=5) * (1.0, 1.0, 0.6, 0.6, 0.6)
        grid = np.linspace(-1.0, 1.0, 33)
        u, v = np.meshgrid(grid, grid)
        peak = np.abs(_quadratic(terms, u, v)).max()
        angle = rng.uniform(0.0, np.pi)
        lean = 0.5 * ellipticity * np.array([np.cos(2 * angle), np.sin(2 * angle)])
        slopes = rng.normal(size=(2, 2))
        slopes *= 0.5 * ellipticity / max(np.abs(slopes).sum(axis=1).max(), 1e-9)
        return cls(
            fwhm=fwhm,
            shape=shape,
            weights=weights,
            variances=variances,
            fwhm_terms=tuple(map(float, terms * (variation / peak))),
            e1_terms=(float(lean[0]), *map(float, slopes[0])),
            e2_terms=(float(lean[1]), *map(float, slopes[1])),
        )

    def fwhm_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> FloatArray:
        """Return the FWHM in pixels at the given places."""
        u, v = self._unit(x, y)
        return self.fwhm * (1.0 + _quadratic(np.asarray(self.fwhm_terms), u, v))

    def covariance_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> FloatArray:
        """Return the covariance (xx, xy, yy) of a component of unit variance, shape (..., 3)."""
        u, v = self._unit(x, y)
        e1 = self.e1_terms[0] + self.e1_terms[1] * u + self.e1_terms[2] * v
        e2 = self.e2_terms[0] + self.e2_terms[1] * u + self.e2_terms[2] * v
        size = self.fwhm_at(x, y) ** 2 / np.sqrt(1.0 - e1**2 - e2**2)
        return np.stack([size * (1.0 + e1), size * e2, size * (1.0 - e1)], axis=-1)

    def at(
        self, x: float, y: float, size: int = 41, dx: float = 0.0, dy: float = 0.0
    ) -> FloatArray:
        """Return the PSF at a place as a stamp.

        Parameters
        ----------
        x, y : float
            Place on the frame, 0-based pixels.
        size : int
            Side of the stamp, odd.
        dx, dy : float
            Offset of the PSF's centre from the centre of the middle pixel.

        Returns
        -------
        ndarray of float64, shape (size, size)
            Flux in each pixel of a source of unit flux; not renormalised to the stamp.
        """
        axis = np.arange(size, dtype=float) - size // 2
        px, py = np.meshgrid(axis - dx, axis - dy)
        xx, xy, yy = self.covariance_at(x, y)
        det = xx * yy - xy**2
        distance2 = (yy * px**2 - 2.0 * xy * px * py + xx * py**2) / det
        stamp = np.zeros_like(px)
        for weight, variance in zip(self.weights, self.variances, strict=True):
            norm = weight / (2.0 * np.pi * variance * np.sqrt(det))
            stamp += norm * np.exp(-0.5 * distance2 / variance)
        return stamp

    def transfer_at(self, x: float, y: float, n: int = 64) -> FloatArray:
        """Return the Fourier transform of the centred PSF on `numpy.fft.fftfreq`'s n × n grid."""
        k = 2.0 * np.pi * np.fft.fftfreq(n)
        kx, ky = np.meshgrid(k, k)
        xx, xy, yy = self.covariance_at(x, y)
        quadratic = xx * kx**2 + 2.0 * xy * kx * ky + yy * ky**2
        total = np.zeros_like(kx)
        for weight, variance in zip(self.weights, self.variances, strict=True):
            total += weight * np.exp(-0.5 * variance * quadratic)
        return total

    def _unit(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        ny, nx = self.shape
        u = 2.0 * np.asarray(x, dtype=float) / max(nx - 1, 1) - 1.0
        v = 2.0 * np.asarray(y, dtype=float) / max(ny - 1, 1) - 1.0
        return u, v


def _quadratic(terms: FloatArray, u: FloatArray, v: FloatArray) -> FloatArray:
    return (
        terms[0] * u
        + terms[1] * v
        + terms[2] * (u**2 - 1.0 / 3.0)
        + terms[3] * u * v
        + terms[4] * (v**2 - 1.0 / 3.0)
    )
