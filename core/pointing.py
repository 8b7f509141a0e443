"""The pixel grid of an exposure that is still to come."""

from __future__ import annotations

from collections.abc import Mapping

from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyError
from astropy.wcs import WCS

from core.errors import UnusableInput
from core.reading import read_wcs
from core.tangent import TangentGrid

_ARCSEC = 1 / 3600


def tangential_grid(
    centre: tuple[float, float],
    shape: tuple[int, int],
    pixel_scale: float,
    *,
    position_angle: float = 0.0,
    mirrored: bool = False,
) -> WCS:
    """Return the grid of a detector in gnomonic projection around its centre.

    Parameters
    ----------
    centre : tuple of float
        (ra, dec) in degrees, ICRS.
    shape : tuple of int
        (ny, nx) in pixels.
    pixel_scale : float
        Arcseconds a pixel.
    position_angle : float
        Of the y axis, degrees from north through east.
    mirrored : bool
        East is to the right when the y axis points north.
    """
    ny, nx = shape
    centre_pixel = (0.5 * (nx - 1), 0.5 * (ny - 1))
    wcs = TangentGrid(*centre, pixel_scale * _ARCSEC, position_angle, shape, centre_pixel).wcs
    if mirrored:
        wcs.wcs.cd = wcs.wcs.cd * [-1, 1]
        wcs.wcs.set()
    return wcs


def grid_from_cards(cards: Mapping[str, str | float | int | bool], shape: tuple[int, int]) -> WCS:
    """Return the celestial grid that FITS cards describe, for a detector of ``shape`` (ny, nx).

    Raises
    ------
    core.errors.UnusableInput
        If they are no FITS cards, or do not describe a place on the sky.
    """
    header = Header()
    for keyword, value in cards.items():
        try:
            header[keyword] = value
        except (ValueError, VerifyError, TypeError, KeyError, AttributeError) as error:
            raise UnusableInput(
                f"the pointing's wcs: {keyword} = {value!r} is no FITS card ({error})"
            ) from error
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, shape[1], shape[0]
    wcs = read_wcs(header, "the pointing's wcs")
    assert wcs is not None
    wcs.array_shape = shape
    return wcs
