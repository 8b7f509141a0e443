"""Several templates of a folder as one, where none covers the exposure alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from core.celestial import from_icrs, to_icrs
from core.errors import UnusableInput
from core.image import Image
from core.templates.cells.sky_places import grid_places
from core.templates.index import Frame

MARGIN = 60  # pixels of the template around the exposure
_LEAST_GAIN = 0.01  # of the exposure, that another image must add
_MOST_IMAGES = 16
_EDGE = 33  # places along each axis of the exposure

_Each = TypeVar("_Each")


def choose_together(
    candidates: Sequence[_Each], covered: Callable[[_Each], npt.NDArray[np.bool_]]
) -> tuple[list[_Each], float]:
    """Choose those that cover most together, and few of them.

    Parameters
    ----------
    candidates : sequence
        The best first: it is taken in any case, and of two that add the same the better one.
    covered : callable
        Returns which places of the exposure one covers, all of one shape.

    Returns
    -------
    chosen : list
        In the order in which they were chosen.
    share : float
        Of the places, that they cover.
    """
    maps = [covered(each) for each in candidates]
    chosen = [0]
    together = maps[0].copy()
    while len(chosen) < _MOST_IMAGES:
        gains = [float((each & ~together).mean()) for each in maps]
        best = int(np.argmax(gains))
        if gains[best] < _LEAST_GAIN:
            break
        chosen.append(best)
        together |= maps[best]
    return [candidates[n] for n in chosen], float(together.mean())


def grid_around(image: Image, frame: Frame, *, max_pixels: int) -> tuple[WCS, tuple[int, int]]:
    """Return a pixel grid over an exposure and a margin, at the scale of a template.

    It is the grid of the template itself, continued, if that is a plain tangential projection: its
    pixels need not be interpolated then. Else it is one that touches the sky at its centre.

    Parameters
    ----------
    image : Image
        The template; with a WCS.
    frame : Frame
        Of the exposure.
    max_pixels : int
        The most that the grid may have.

    Returns
    -------
    wcs : WCS
    shape : tuple of int
        (ny, nx).

    Raises
    ------
    core.errors.UnusableInput
        If the grid would be larger.
    """
    assert image.wcs is not None
    wcs = image.wcs.celestial.deepcopy() if _is_plain(image.wcs) else _tangent(image)
    x, y = from_icrs(wcs, *grid_places(frame, _EDGE))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UnusableInput(f"{image.name}: its projection does not reach over the exposure")
    x0, y0 = math.floor(x.min()) - MARGIN, math.floor(y.min()) - MARGIN
    shape = math.ceil(y.max()) + MARGIN + 1 - y0, math.ceil(x.max()) + MARGIN + 1 - x0
    if shape[0] * shape[1] > max_pixels:
        raise UnusableInput(
            f"{image.name}: the exposure has {shape[1]} x {shape[0]} pixels of this template, more "
            f"than the limit of {max_pixels}"
        )
    wcs.wcs.crpix = [wcs.wcs.crpix[0] - x0, wcs.wcs.crpix[1] - y0]
    wcs.wcs.set()
    wcs.pixel_shape = None
    return wcs, shape


def _is_plain(wcs: WCS) -> bool:
    tables = (wcs.sip, wcs.cpdis1, wcs.cpdis2, wcs.det2im1, wcs.det2im2)
    plain = all(name.endswith("-TAN") for name in wcs.celestial.wcs.ctype)
    return plain and all(each is None for each in tables)


def _tangent(image: Image) -> WCS:
    """Return a tangential projection with the scale and the orientation of an image's centre."""
    assert image.wcs is not None
    ny, nx = image.shape
    cx, cy = (nx - 1) / 2, (ny - 1) / 2
    ra, dec = to_icrs(image.wcs, [cx, cx - 1, cx + 1, cx, cx], [cy, cy, cy, cy - 1, cy + 1])
    plane = WCS(naxis=2)
    plane.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    plane.wcs.crval = [ra[0], dec[0]]
    plane.wcs.crpix = [1.0, 1.0]
    plane.wcs.cd = np.eye(2)
    plane.wcs.radesys = "ICRS"
    plane.wcs.set()
    xi, eta = from_icrs(plane, ra, dec)  # degrees
    plane.wcs.cd = 0.5 * np.array(
        [[xi[2] - xi[1], xi[4] - xi[3]], [eta[2] - eta[1], eta[4] - eta[3]]]
    )
    plane.wcs.crpix = [cx + 1, cy + 1]
    plane.wcs.set()
    return plane
