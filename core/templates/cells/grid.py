"""The pixel grid on which cells become one image, and how much of a frame they cover."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from core.celestial import from_icrs
from core.image import MaskBit, MaskImage
from core.templates.cells.cell import MARGIN, CellImage, shifted
from core.templates.cells.sky_places import FloatArray, grid_places, on_image
from core.templates.index import Frame

_PLACES = 65  # along each axis of a frame


def native_grid(cells: Sequence[CellImage], frame: Frame) -> tuple[WCS, tuple[int, int]]:
    """Return the pixel grid of the cell that covers most of a frame, extended to all of the frame.

    Parameters
    ----------
    cells : sequence of CellImage
        At least one, and one of them must lie on the frame.
    frame : Frame

    Returns
    -------
    wcs : WCS
    shape : tuple of int
        (ny, nx) of what the cells cover of the frame, with a margin.
    """
    ra, dec = grid_places(frame, _PLACES)
    shares = [np.count_nonzero(_on_cell(cell, ra, dec)) for cell in cells]
    wcs = _wcs(cells[int(np.argmax(shares))])
    covered = covered_by(cells, ra, dec)
    if covered.any():
        ra, dec = ra[covered], dec[covered]
    x, y = from_icrs(wcs, ra, dec)
    rows, columns = (
        slice(math.floor(np.nanmin(places)) - MARGIN, math.ceil(np.nanmax(places)) + MARGIN + 1)
        for places in (y, x)
    )
    shape = rows.stop - rows.start, columns.stop - columns.start
    return shifted(wcs, (rows, columns)), shape


def covered_by(
    cells: Sequence[CellImage], ra: FloatArray, dec: FloatArray
) -> npt.NDArray[np.bool_]:
    """Return which places lie on a cell."""
    covered = np.zeros(ra.shape, dtype=bool)
    for cell in cells:
        covered |= _on_cell(cell, ra, dec)
    return covered


def covered_share(mask: MaskImage, wcs: WCS, frame: Frame) -> float:
    """Return the share of a frame on which an image has data."""
    ra, dec = grid_places(frame, _PLACES)
    ny, nx = mask.shape
    inside = on_image(wcs, (ny, nx), ra, dec)
    x, y = from_icrs(wcs, ra[inside], dec[inside])
    column = np.clip(np.rint(x).astype(int), 0, nx - 1)
    row = np.clip(np.rint(y).astype(int), 0, ny - 1)
    good = (mask[row, column] & MaskBit.NO_DATA) == 0
    return float(np.count_nonzero(good)) / _PLACES**2


def _on_cell(cell: CellImage, ra: FloatArray, dec: FloatArray) -> npt.NDArray[np.bool_]:
    return on_image(_wcs(cell), cell.image.shape, ra, dec)


def _wcs(cell: CellImage) -> WCS:
    assert cell.image.wcs is not None  # `read_cell` requires one
    return cell.image.wcs
