"""The geometry of HEALPix as HiPS uses it: which tile, and where in it.

The sphere is divided into 12 faces, each a square of ``2^K`` x ``2^K`` tiles at order K, each tile
a square of ``width`` x ``width`` pixels: all of equal area (Górski et al. 2005, ApJ 622, 759). Here
x runs from the southern corner of a face to the eastern one and y to the western one, 0 to 1.

Tiles are numbered in the nested scheme in file names, and as ``(face 2^K + y) 2^K + x`` here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


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
