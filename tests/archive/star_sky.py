"""A sky of stars whose places and magnitudes are known, drawn onto any WCS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales

from core.celestial import from_icrs
from tests.unit.made_frames import add_gaussians

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StarSky:
    """Stars: ICRS degrees, AB magnitudes (of every band), and the seeing in arcsec."""

    ra: FloatArray
    dec: FloatArray
    mag: FloatArray
    fwhm: float = 1.2

    @classmethod
    def lattice(
        cls,
        wcs: WCS,
        shape: tuple[int, int],
        step: int,
        mag: tuple[float, float] = (17.0, 17.0),
        fwhm: float = 1.2,
        seed: int = 1,
    ) -> StarSky:
        """Put a star every ``step`` pixels of a grid, displaced at random within its pixel."""
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[step // 2 : shape[0] : step, step // 2 : shape[1] : step]
        y = y.ravel() + rng.uniform(-0.5, 0.5, y.size)
        x = x.ravel() + rng.uniform(-0.5, 0.5, x.size)
        ra, dec = wcs.all_pix2world(x, y, 0)
        return cls(ra, dec, rng.uniform(*mag, x.size), fwhm)

    def places(self, wcs: WCS) -> tuple[FloatArray, FloatArray]:
        """Return the 0-based pixels of the stars."""
        return from_icrs(wcs, self.ra, self.dec)

    def fluxes(self, zero_point: float) -> FloatArray:
        """Return the stars' fluxes."""
        return np.asarray(10 ** (0.4 * (zero_point - self.mag)))

    def drawn(self, wcs: WCS, shape: tuple[int, int], zero_point: float) -> FloatArray:
        """Return an image of the stars, without sky and noise."""
        scale = float(np.mean(proj_plane_pixel_scales(wcs))) * 3600
        x, y = self.places(wcs)
        near = (x > -50) & (x < shape[1] + 50) & (y > -50) & (y < shape[0] + 50)
        pixels = np.zeros(shape)
        add_gaussians(pixels, x[near], y[near], self.fluxes(zero_point)[near], self.fwhm / scale)
        return pixels
