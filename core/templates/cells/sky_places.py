"""Places on a frame: where to ask a survey what it has, and where to check what it gave."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from core.celestial import from_icrs, to_icrs
from core.tangent import unit_vectors
from core.templates.index import Frame

FloatArray = npt.NDArray[np.float64]
Places = tuple[FloatArray, FloatArray]

_FINER = 8  # how much finer the lattice is that corners are moved to


def grid_places(frame: Frame, number: int) -> Places:
    """Return ICRS positions of ``number``² places from edge to edge of a frame, in degrees.

    Those for which the projection of the frame has no sky are left out.
    """
    ny, nx = frame.shape
    y, x = np.meshgrid(
        np.linspace(-0.5, ny - 0.5, number), np.linspace(-0.5, nx - 0.5, number), indexing="ij"
    )
    ra, dec = to_icrs(frame.wcs, x, y)
    fine = np.isfinite(ra) & np.isfinite(dec)
    return ra[fine], dec[fine]


def lattice_places(frame: Frame, spacing: float) -> Places:
    """Return the places of a fixed lattice on the sky that lie on a frame, and some at its corners.

    The lattice is the same for all frames, so that neighbouring exposures ask the same questions;
    the corners are those of a finer one, so that exposures a few arcseconds apart do.

    Parameters
    ----------
    frame : Frame
    spacing : float
        Degrees between neighbours, at most.
    """
    _, dec0 = frame.position
    ra, dec = _lattice(dec0 - frame.radius, dec0 + frame.radius, spacing)
    on = _on_frame(frame, ra, dec)
    corners = [
        _near(frame, *corner, spacing / _FINER)
        for corner in zip(*grid_places(frame, 2), strict=True)
    ]
    corner_ra, corner_dec = np.array(corners, dtype=np.float64).reshape(-1, 2).T
    return np.concatenate([ra[on], corner_ra]), np.concatenate([dec[on], corner_dec])


def _lattice(south: float, north: float, spacing: float) -> Places:
    """Return the places of the lattice in a belt of the sky, a little beyond its edges too."""
    ra_all, dec_all = [], []
    rows = range(
        max(int(np.floor(south / spacing)), int(np.ceil(-90 / spacing))),
        min(int(np.ceil(north / spacing)), int(np.floor(90 / spacing))) + 1,
    )
    for row in rows:
        number = _number_in(row * spacing, spacing)
        ra_all.append(np.arange(number) * (360.0 / number))
        dec_all.append(np.full(number, row * spacing))
    return np.concatenate(ra_all), np.concatenate(dec_all)


def _number_in(dec: float, spacing: float) -> int:
    return max(1, int(np.ceil(360 * np.cos(np.radians(dec)) / spacing)))


def _near(frame: Frame, ra: float, dec: float, spacing: float) -> tuple[float, float]:
    """Return the place of a lattice on the frame that is nearest to one; itself if none is."""
    places = []
    for row in range(round(dec / spacing) - 1, round(dec / spacing) + 2):
        if abs(row * spacing) <= 90:
            step = 360.0 / _number_in(row * spacing, spacing)
            columns = round(ra / step) + np.arange(-1, 2)
            places += [(column * step % 360, row * spacing) for column in columns]
    near_ra, near_dec = np.array(places).T
    closeness = unit_vectors(near_ra, near_dec) @ unit_vectors(ra, dec)
    closeness[~_on_frame(frame, near_ra, near_dec)] = -1
    best = int(np.argmax(closeness))
    return (ra, dec) if closeness[best] < 0 else (float(near_ra[best]), float(near_dec[best]))


def on_image(
    wcs: WCS, shape: tuple[int, int], ra: FloatArray, dec: FloatArray
) -> npt.NDArray[np.bool_]:
    """Return which places lie on an image."""
    x, y = from_icrs(wcs, ra, dec)
    with np.errstate(invalid="ignore"):
        return (x >= -0.5) & (x <= shape[1] - 0.5) & (y >= -0.5) & (y <= shape[0] - 0.5)


def thinned(ra: FloatArray, dec: FloatArray, spacing: float) -> Places:
    """Return some of the places so that none of all lies further than ``spacing`` from one."""
    kept_ra: list[float] = []
    kept_dec: list[float] = []
    left = np.ones(ra.size, dtype=bool)
    vectors = unit_vectors(ra, dec)
    reach = np.cos(np.radians(spacing))
    while left.any():
        first = int(np.argmax(left))
        kept_ra.append(float(ra[first]))
        kept_dec.append(float(dec[first]))
        left &= vectors @ vectors[first] < reach
    return np.array(kept_ra), np.array(kept_dec)


def _on_frame(frame: Frame, ra: FloatArray, dec: FloatArray) -> npt.NDArray[np.bool_]:
    # The other half of the sky falls onto a tangent plane too.
    near = unit_vectors(ra, dec) @ frame.centre >= np.cos(np.radians(min(frame.radius, 89.0)))
    on = np.zeros(ra.shape, dtype=bool)
    on[near] = on_image(frame.wcs, frame.shape, ra[near], dec[near])
    return on
