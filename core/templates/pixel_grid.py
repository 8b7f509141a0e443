"""The pixel grid that the documented functions are asked for, in one of several ways."""

from __future__ import annotations

import math

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS

from core.errors import UnusableInput
from core.reading import read_wcs
from core.tangent import TangentGrid
from core.templates.wrong_request import WrongRequest, whole_number

_REAL = float | int | np.floating | np.integer


def requested_grid(
    wcs: WCS | None = None,
    shape: tuple[int, int] | None = None,
    width: int | None = None,
    height: int | None = None,
    header: Header | None = None,
    *,
    ra: float | None = None,
    dec: float | None = None,
    fov: float | None = None,
) -> tuple[WCS, tuple[int, int]]:
    """Return the WCS and the shape that the arguments of a documented function mean.

    What is given wins in this order: for the WCS ``wcs``, ``header``, then ``ra``, ``dec`` and
    ``fov`` (north up, east left, square pixels, the field along the longer side); for the size
    ``width`` and ``height``, ``shape``, ``header``, the size that the WCS itself knows.

    Parameters
    ----------
    wcs : WCS or None
        Celestial.
    shape : tuple of int or None
        (height, width).
    width, height : int or None
        Pixels.
    header : Header or None
        With WCS and size.
    ra, dec : float or None
        Centre, degrees (ICRS); a right ascension of more than a turn is understood.
    fov : float or None
        Degrees.

    Returns
    -------
    wcs : WCS
    shape : tuple of int
        (ny, nx).

    Raises
    ------
    WrongRequest
        If they do not make a pixel grid; the message says what is missing or wrong.
    """
    size = _size(wcs, shape, width, height, header)
    if wcs is not None:
        if not wcs.has_celestial:
            raise WrongRequest("wcs has no celestial axes")
        return (wcs if wcs.naxis == 2 else wcs.celestial), size
    if header is not None:
        try:
            found = read_wcs(header, "header")
        except UnusableInput as error:
            raise WrongRequest(str(error)) from error
        assert found is not None
        return found, size
    if ra is None or dec is None or fov is None:
        raise WrongRequest("the pixel grid is not known: give wcs, header, or ra, dec and fov")
    for name, value, low, high in (
        ("ra", ra, -math.inf, math.inf),
        ("dec", dec, -90, 90),
        ("fov", fov, 0, 120),
    ):
        known = isinstance(value, _REAL) and math.isfinite(value)
        if not known or not low <= value <= high or (name == "fov" and value == 0):
            raise WrongRequest(f"{name} = {value!r} is not an angle{_between(low, high)}")
    centre = (0.5 * (size[1] - 1), 0.5 * (size[0] - 1))
    # The plane is flat: the angle at its centre is that of half the field, twice.
    scale = 2 * math.degrees(math.tan(math.radians(fov / 2))) / max(size)
    return TangentGrid(float(ra) % 360, float(dec), scale, 0.0, size, centre).wcs, size


def _between(low: float, high: float) -> str:
    return f" from {low} to {high} degrees" if math.isfinite(high) else " in degrees"


def _size(
    wcs: WCS | None,
    shape: tuple[int, int] | None,
    width: int | None,
    height: int | None,
    header: Header | None,
) -> tuple[int, int]:
    if shape is not None:
        if np.size(shape) != 2:
            raise WrongRequest(f"shape = {shape!r} is not (height, width)")
        height, width = height or shape[0], width or shape[1]
    if header is not None:
        height = height or header.get("NAXIS2") or header.get("ZNAXIS2")
        width = width or header.get("NAXIS1") or header.get("ZNAXIS1")
    if wcs is not None and wcs.pixel_shape is not None:
        height, width = height or wcs.pixel_shape[1], width or wcs.pixel_shape[0]
    for name, value in (("height", height), ("width", width)):
        if value is None:
            raise WrongRequest(f"{name} is not known: give width and height, shape or header")
    return (
        whole_number("height", height, 1, "a number of pixels"),
        whole_number("width", width, 1, "a number of pixels"),
    )
