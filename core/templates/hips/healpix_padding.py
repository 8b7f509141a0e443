"""What lies around a tile on the sphere, across the edges of tiles and faces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy_healpix import neighbours

from core.templates.hips.healpix import IntArray, nested_number, tile_key

# Pixels of the neighbours around a tile: three for the interpolation, the others for the filter of
# its splines, whose error at the third pixel is then 5e-4 of what is wrong beyond.
PADDING = 12


@dataclass(frozen=True)
class Padding:
    """The pixels around a tile and where they come from; all of shape (n,).

    ``rows`` and ``columns`` are places in the padded tile; ``keys`` the tiles they belong to, ``y``
    and ``x`` their places there.
    """

    rows: IntArray
    columns: IntArray
    keys: IntArray
    y: IntArray
    x: IntArray


def padding_pixels(key: int, order: int, width: int) -> Padding:
    """Return where the pixels of the padding around a tile are to be found.

    Straight on across the edge of a tile is where HEALPix has its neighbours, whatever way round
    the next face lies. At the eight corners where only three faces meet there is no straight on for
    the pixels at the corner of the padding; there is nothing.

    Parameters
    ----------
    key : int
        The tile, as numbered here.
    order : int
        Its order.
    width : int
        Pixels along its sides, a power of two, at least `PADDING`.
    """
    side, full = 2**order, 2**order * width
    face, rest = divmod(key, side * side)
    ty, tx = divmod(rest, side)
    if 0 < tx < side - 1 and 0 < ty < side - 1:
        # All around is on the same face.
        rows, columns = np.nonzero(_frame(width))
        y, x = ty * width + rows - PADDING, tx * width + columns - PADDING
    else:
        ids = _padding_ids(face, ty * width, tx * width, order, width)
        rows, columns = np.nonzero(_frame(width) & (ids >= 0))
        flat = tile_key(ids[rows, columns], order + int(np.log2(width)))
        y, x, face = (flat // full) % full, flat % full, flat // (full * full)
    return Padding(
        rows=rows,
        columns=columns,
        keys=(face * side + y // width) * side + x // width,
        y=y % width,
        x=x % width,
    )


def _frame(width: int) -> npt.NDArray[np.bool_]:
    """Return which pixels of a padded tile are padding."""
    frame = np.ones((width + 2 * PADDING, width + 2 * PADDING), dtype=np.bool_)
    frame[PADDING : PADDING + width, PADDING : PADDING + width] = False
    return frame


def _padding_ids(face: int, y0: int, x0: int, order: int, width: int) -> IntArray:
    """Return the nested numbers of the pixels around a tile that begins at (y0, x0) of a face."""
    depth = order + int(np.log2(width))
    full, size = 2**order * width, width + 2 * PADDING
    begin, end = PADDING, PADDING + width
    ids = np.full((size, size), -1, dtype=np.int64)

    def number(y: npt.ArrayLike, x: npt.ArrayLike) -> IntArray:
        flat = (face * full + y0 + np.asarray(y)) * full + x0 + np.asarray(x)
        return nested_number(flat, depth)

    along = np.arange(width)
    left = _onwards(number(along, 1), number(along, 0), depth)
    right = _onwards(number(along, width - 2), number(along, width - 1), depth)
    for i in range(PADDING):
        ids[begin:end, begin - 1 - i], ids[begin:end, end + i] = left[i], right[i]
    for at in (0, 1, width - 2, width - 1):
        ids[begin + at, begin:end] = number(at, along)
    below = _onwards(ids[begin + 1], ids[begin], depth)
    above = _onwards(ids[end - 2], ids[end - 1], depth)
    for i in range(PADDING):
        ids[begin - 1 - i], ids[end + i] = below[i], above[i]
    return ids


def _onwards(before: IntArray, last: IntArray, depth: int) -> list[IntArray]:
    """Return the next pixels beyond two rows of them, one array each for PADDING steps."""
    rows = []
    for _ in range(PADDING):
        with np.errstate(invalid="ignore"):  # -1 where there is no neighbour
            around = np.asarray(neighbours(np.maximum(last, 0), 2**depth, order="nested"))
        came_from = around == before
        opposite = np.take_along_axis(
            around, ((np.argmax(came_from, axis=0) + 4) % 8)[None, :], axis=0
        )[0]
        found = (last >= 0) & came_from.any(axis=0)
        before, last = last, np.where(found, opposite, -1)
        rows.append(last)
    return rows
