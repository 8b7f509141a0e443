"""Where an exposure lies on the sky, from its headers alone."""

from __future__ import annotations

from astropy.wcs import WCS

from core.exposure import Exposure
from core.fitsfile import open_fits
from core.reading import choose_hdu, read_wcs, with_overrides


def read_grid(exposure: Exposure) -> tuple[WCS, tuple[int, int]]:
    """Return the WCS and the shape of an exposure's image; no pixel is kept.

    Parameters
    ----------
    exposure : Exposure
        Its science file, HDU and header overrides.

    Returns
    -------
    wcs : astropy.wcs.WCS
    shape : tuple of int
        (ny, nx).

    Raises
    ------
    core.errors.InputUnavailable, core.errors.UnusableInput, core.errors.InvalidEvent
        As `core.reading.read_exposure`.
    """
    file = open_fits(exposure.science, max_pixels=0, only_primary=exposure.hdu in (None, 0))
    hdu = choose_hdu(file, exposure.hdu)
    header = with_overrides(hdu.header, exposure.header_overrides, exposure.science)
    wcs = read_wcs(header, exposure.science)
    assert wcs is not None
    return wcs, hdu.shape
