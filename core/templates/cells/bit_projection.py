"""Masks of a survey on another pixel grid, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from core.image import MaskBit, MaskImage
from core.pixel_mapping import sky_mapping
from core.templates.cells.cell import CellImage
from core.templates.cells.survey_bits import Bits

_ROWS = 64  # target rows at a time
_LANCZOS = 3  # pixels to which Lanczos-3 reaches


def mosaicked_bits(
    cells: Sequence[CellImage], wcs: WCS, shape: tuple[int, int], mask: MaskImage, uncovered: int
) -> Bits:
    """Return the masks of several cells on one grid, beside the mosaic of their images.

    Parameters
    ----------
    cells : sequence of CellImage
    wcs : WCS
        Of the grid.
    shape : tuple of int
        (ny, nx) of the grid.
    mask : ndarray of uint16, shape (ny, nx)
        Of the mosaic of the images: wherever it is not 0 a bit is set.
    uncovered : int
        For pixels that no cell covers, or that have no data in any.

    Returns
    -------
    ndarray of int32, shape (ny, nx)
    """
    bits = projected_bits(cells, wcs, shape, uncovered)
    # Interpolation reaches further than one pixel, if only a little comes from there.
    rest = (mask != 0) & (bits == 0)
    if rest.any():
        bits[rest] = projected_bits(cells, wcs, shape, uncovered, reach=_LANCZOS)[rest]
    bits[(mask & MaskBit.NO_DATA) != 0] |= uncovered
    return bits


def projected_bits(
    cells: Sequence[CellImage], wcs: WCS, shape: tuple[int, int], uncovered: int, reach: int = 1
) -> Bits:
    """Return the masks of several cells on one grid.

    A pixel has a bit if one of the cell's pixels around it has it: those within ``reach`` pixels of
    its centre, or within half its own size where that is more. Where several cells cover a pixel it
    has the bits that all of them have, since it can be taken from any.

    Parameters
    ----------
    reach : int
        Pixels.
    cells, wcs, shape, uncovered
        As `mosaicked_bits`.

    Returns
    -------
    ndarray of int32, shape (ny, nx)
    """
    everything = np.int32(-1)
    result = np.full(shape, everything, np.int32)
    for cell in cells:
        assert cell.bits is not None
        assert cell.image.wcs is not None  # `read_cell` requires one
        missing = (cell.image.mask & MaskBit.NO_DATA) != 0
        bits = np.where(missing, cell.bits | uncovered, cell.bits).astype(np.int32)
        mapping = sky_mapping(wcs, shape, cell.image.wcs, cell.image.shape)
        grown: Bits | None = None
        for first in range(0, shape[0], _ROWS):
            last = min(first + _ROWS, shape[0])
            x, y, area = mapping.rows(first, last)
            with np.errstate(invalid="ignore"):
                inside = (
                    (x >= -0.5)
                    & (x <= bits.shape[1] - 0.5)
                    & (y >= -0.5)
                    & (y <= bits.shape[0] - 0.5)
                )
            if not inside.any():
                continue
            if grown is None:
                half = max(reach, int(np.ceil(np.sqrt(np.median(area[inside])) / 2)))
                grown = _grown(bits, half)
            column = np.clip(np.rint(x[inside]).astype(np.int64), 0, bits.shape[1] - 1)
            row = np.clip(np.rint(y[inside]).astype(np.int64), 0, bits.shape[0] - 1)
            result[first:last][inside] &= grown[row, column]
    result[result == everything] = uncovered
    return result


def _grown(bits: Bits, half: int) -> Bits:
    """Return the bits of all pixels in a square of ``2 half + 1`` around each."""
    if not bits.any():
        return bits
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (half, half)
        padded = np.pad(bits, padding)
        length = bits.shape[axis]
        shifted: list[npt.NDArray[np.int32]] = [
            np.take(padded, range(step, step + length), axis=axis) for step in range(2 * half + 1)
        ]
        bits = np.bitwise_or.reduce(shifted)
    return bits
