"""Between pixels and the sky, whatever frame a WCS is written in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from astropy.coordinates import ICRS, BaseCoordinateFrame, SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area, wcs_to_celestial_frame

FloatArray = npt.NDArray[np.float64]


def celestial_frame(wcs: WCS) -> BaseCoordinateFrame:
    """Return the frame of a WCS; ICRS where astropy does not know it (below a second off)."""
    try:
        return wcs_to_celestial_frame(wcs)
    except ValueError:
        return ICRS()


def change_frame(
    lon: FloatArray, lat: FloatArray, here: BaseCoordinateFrame, there: BaseCoordinateFrame
) -> tuple[FloatArray, FloatArray]:
    """Turn positions in degrees from one frame into another; NaN stays NaN."""
    if here.is_equivalent_frame(there):
        return lon, lat
    fine = np.isfinite(lon) & np.isfinite(lat)
    there_lon, there_lat = np.full(lon.shape, np.nan), np.full(lat.shape, np.nan)
    moved = SkyCoord(lon[fine], lat[fine], unit="deg", frame=here).transform_to(there)
    there_lon[fine] = moved.spherical.lon.deg
    there_lat[fine] = moved.spherical.lat.deg
    return there_lon, there_lat


def pixel_size(wcs: WCS) -> float:
    """Return the side of a square of a pixel's area at the reference point, degrees."""
    return float(np.sqrt(proj_plane_pixel_area(wcs.celestial)))


def to_icrs(wcs: WCS, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return ICRS right ascension and declination of 0-based pixels, degrees.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Celestial, in any frame (FK5, galactic ...), with any distortion.
    x, y : array_like, shape (n,)

    Returns
    -------
    ra, dec : ndarray of float64, shape (n,)
        ``0 <= ra < 360``; NaN where the projection has no sky.
    """
    lon, lat = to_sky(wcs, np.ravel(x).astype(np.float64), np.ravel(y).astype(np.float64))
    ra, dec = change_frame(lon, lat, celestial_frame(wcs), ICRS())
    return np.mod(ra, 360.0), dec


def from_icrs(wcs: WCS, ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the 0-based pixels of ICRS positions in degrees; NaN where there are none."""
    lon, lat = np.ravel(ra).astype(np.float64), np.ravel(dec).astype(np.float64)
    return to_pixels(wcs, *change_frame(lon, lat, ICRS(), celestial_frame(wcs)))


def to_sky(wcs: WCS, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return longitude and latitude of 0-based pixels, degrees, in the frame of the WCS."""
    if x.size == 0:
        return np.zeros(0), np.zeros(0)
    world = np.asarray(wcs.all_pix2world(np.stack([x, y], axis=-1), 0))
    return world[:, wcs.wcs.lng].copy(), world[:, wcs.wcs.lat].copy()


def to_pixels(wcs: WCS, lon: FloatArray, lat: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the 0-based pixels of places in the frame of the WCS; NaN where there are none."""
    world = np.empty((lon.size, 2))
    world[:, wcs.wcs.lng], world[:, wcs.wcs.lat] = lon, lat
    fine = np.isfinite(world).all(axis=1)
    pixels = np.full((lon.size, 2), np.nan)
    if fine.any():
        pixels[fine] = wcs.all_world2pix(world[fine], 0, tolerance=1e-6, maxiter=30, quiet=True)
    return pixels[:, 0].copy(), pixels[:, 1].copy()
