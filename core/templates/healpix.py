"""The geometry of HEALPix as HiPS uses it: which tile, and where in it.

The sphere is divided into 12 faces, each a square of ``2^K`` x ``2^K`` tiles at order K, each tile
a square of ``width`` x ``width`` pixels: all of equal area (Górski et al. 2005, ApJ 622, 759). Here
x runs from the southern corner of a face to the eastern one and y to the western one, 0 to 1.

Tiles are numbered in the nested scheme in file names, and as ``(face 2^K + y) 2^K + x`` here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy_healpix import neighbours
from numba import njit

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

PADDING = 3  # pixels of the neighbours around a tile: what Lanczos-3 reaches


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


def pixel_size(order: int, width: int) -> float:
    """Return the square root of the area of a HiPS pixel, degrees."""
    return float(np.degrees(np.sqrt(4 * np.pi / 12)) / (2.0**order * width))


def nested_number(keys: npt.ArrayLike, order: int) -> IntArray:
    """Return the number in the nested scheme of tiles, from the key used here."""
    keys, side = np.asarray(keys, np.int64), 2**order
    face, rest = keys // (side * side), keys % (side * side)
    return face * side * side + _spread(rest % side) + 2 * _spread(rest // side)


def tile_key(numbers: npt.ArrayLike, order: int) -> IntArray:
    """Return the key used here of tiles, from the number in the nested scheme."""
    numbers, side = np.asarray(numbers, np.int64), 2**order
    face, rest = numbers // (side * side), numbers % (side * side)
    return (face * side + _gather(rest >> 1)) * side + _gather(rest)


def padding_pixels(key: int, order: int, width: int) -> Padding:
    """Return where the pixels of the padding around a tile are to be found.

    Straight on across the edge of a tile is where HEALPix has its neighbours, whatever way round
    the next face lies. At the eight corners where only three faces meet there is no straight on for
    three by three pixels; there is nothing.

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


def _spread(values: IntArray) -> IntArray:
    """Put a zero bit in front of every bit."""
    v = values.astype(np.uint64)
    for shift, mask in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        v = (v | (v << np.uint64(shift))) & np.uint64(mask)
    return v.astype(np.int64)


def _gather(values: IntArray) -> IntArray:
    """Keep every second bit, beginning with the lowest."""
    v = values.astype(np.uint64) & np.uint64(0x5555555555555555)
    for shift, mask in (
        (1, 0x3333333333333333),
        (2, 0x0F0F0F0F0F0F0F0F),
        (4, 0x00FF00FF00FF00FF),
        (8, 0x0000FFFF0000FFFF),
        (16, 0x00000000FFFFFFFF),
    ):
        v = (v | (v >> np.uint64(shift))) & np.uint64(mask)
    return v.astype(np.int64)


@njit(cache=True, nogil=True, inline="always")
def face_position(vx, vy, vz):  # type: ignore[no-untyped-def]
    """Return the face (0 to 11) of a direction and x and y on it.

    Parameters
    ----------
    vx, vy, vz : float
        Unit vector in the frame of the HiPS.
    """
    # Quarters of a turn, 0 to 4.
    turn = np.arctan2(vy, vx) * (2.0 / np.pi)
    if turn < 0.0:
        turn += 4.0
    if turn >= 4.0:
        turn = 0.0
    if abs(vz) <= 2.0 / 3.0:
        # The belt: lines of equal x and y are straight in (longitude, sine of latitude).
        rising = 0.5 + turn + 0.75 * vz
        falling = 0.5 + turn - 0.75 * vz
        r = int(np.floor(rising))
        f = int(np.floor(falling))
        if f == r:
            face = 4 + (f % 4)
        elif f < r:
            face = f % 4
        else:
            face = 8 + (r % 4)
        return face, rising - r, 1.0 - (falling - f)
    quarter = min(3, int(turn))
    part = turn - quarter
    # sqrt(3 (1 - |z|)), without losing digits at the pole.
    distance = np.sqrt(3.0 * (vx * vx + vy * vy) / (1.0 + abs(vz)))
    if vz > 0:
        return quarter, 1.0 - (1.0 - part) * distance, 1.0 - part * distance
    return 8 + quarter, part * distance, (1.0 - part) * distance


@njit(cache=True, nogil=True)
def positions_along(start, step, side, faces, x, y):  # type: ignore[no-untyped-def] # pragma: no cover
    """Find the places on faces of directions that lie evenly on a line.

    Between places that are calculated, eight pixels apart, a parabola goes through three of them;
    where it is off by more than a thousandth of a pixel half-way, or the face or the formula for
    it changes, every place is calculated.

    Parameters
    ----------
    start, step : ndarray of float64, shape (3,)
        The directions are ``start + i step``, not normalised, in the frame of the HiPS.
    side : float
        Pixels along a face.
    faces : ndarray of int64, shape (n,)
        Filled with the face of each.
    x, y : ndarray of float64, shape (n,)
        Filled with the places on it, in pixels from its corner.
    """
    n = faces.size
    knots = np.empty((5, 2))
    for first in range(0, n, 16):
        smooth = True
        face, cap = 0, False
        for k in range(5):
            knot_face, knot_cap, knots[k, 0], knots[k, 1] = _position(start, step, first + 4 * k)
            if k == 0:
                face, cap = knot_face, knot_cap
            elif knot_face != face or knot_cap != cap:
                smooth = False
                break
        if smooth:
            for axis in range(2):
                out = x if axis == 0 else y
                low, middle, high = knots[0, axis], knots[2, axis], knots[4, axis]
                slope = (high - low) / 16.0
                bend = (high - 2.0 * middle + low) / 128.0
                for t in (-4.0, 4.0):
                    known = knots[1, axis] if t < 0.0 else knots[3, axis]
                    if abs(middle + t * (slope + t * bend) - known) * side > 1e-3:
                        smooth = False
                for i in range(first, min(first + 16, n)):
                    t = i - first - 8.0
                    out[i] = side * (middle + t * (slope + t * bend))
            for i in range(first, min(first + 16, n)):
                faces[i] = face
        if not smooth:
            for i in range(first, min(first + 16, n)):
                faces[i], _, px, py = _position(start, step, i)
                x[i] = side * px
                y[i] = side * py


@njit(cache=True, nogil=True, inline="always")
def _position(start, step, i):  # type: ignore[no-untyped-def] # pragma: no cover
    """Return face, whether it is in a cap, and the place on the face of one direction."""
    vx = start[0] + i * step[0]
    vy = start[1] + i * step[1]
    vz = start[2] + i * step[2]
    length = np.sqrt(vx * vx + vy * vy + vz * vz)
    face, px, py = face_position(vx / length, vy / length, vz / length)
    return face, abs(vz) > 2.0 / 3.0 * length, px, py
