"""Places on a frame: where to ask a survey what it has, and where to check what it gave."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from core.celestial import from_icrs, to_icrs
from core.templates.index import Frame

FloatArray = npt.NDArray[np.float64]
Places = tuple[FloatArray, FloatArray]


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
    """Return the places of a fixed lattice on the sky that lie on a frame, and the frame's corners.

    The lattice is the same for all frames, so that neighbouring exposures ask the same questions.

    Parameters
    ----------
    frame : Frame
    spacing : float
        Degrees between neighbours, at most.
    """
    _, dec0 = frame.position
    ra_all, dec_all = [], []
    rows = range(
        max(int(np.floor((dec0 - frame.radius) / spacing)), int(np.ceil(-90 / spacing))),
        min(int(np.ceil((dec0 + frame.radius) / spacing)), int(np.floor(90 / spacing))) + 1,
    )
    for row in rows:
        number = max(1, int(np.ceil(360 * np.cos(np.radians(row * spacing)) / spacing)))
        ra_all.append(np.arange(number) * (360.0 / number))
        dec_all.append(np.full(number, row * spacing))
    ra: FloatArray = np.concatenate(ra_all)
    dec: FloatArray = np.concatenate(dec_all)
    on = _on_frame(frame, ra, dec)
    corner_ra, corner_dec = grid_places(frame, 2)
    return np.concatenate([ra[on], corner_ra]), np.concatenate([dec[on], corner_dec])


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
    vectors = _vectors(ra, dec)
    reach = np.cos(np.radians(spacing))
    while left.any():
        first = int(np.argmax(left))
        kept_ra.append(float(ra[first]))
        kept_dec.append(float(dec[first]))
        left &= vectors @ vectors[first] < reach
    return np.array(kept_ra), np.array(kept_dec)


def _on_frame(frame: Frame, ra: FloatArray, dec: FloatArray) -> npt.NDArray[np.bool_]:
    # The other half of the sky falls onto a tangent plane too.
    near = _vectors(ra, dec) @ frame.centre >= np.cos(np.radians(min(frame.radius, 89.0)))
    on = np.zeros(ra.shape, dtype=bool)
    on[near] = on_image(frame.wcs, frame.shape, ra[near], dec[near])
    return on


def _vectors(ra: FloatArray, dec: FloatArray) -> FloatArray:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)
