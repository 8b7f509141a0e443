"""HiPS tiles onto a tangent plane: every pixel by the exact geometry, interpolated once.

A HEALPix grid is no image: its pixels are diamonds whose shape changes with latitude, with a kink
where the polar caps begin, and across the edges of faces the rows turn into columns. No WCS
describes more than a part of it, so the tiles are put onto a plane here, with the same quintic
splines as in `core.resample` (its pixels are diamonds: seen from the plane their scale differs with
the direction), at the scale of the HiPS. From there they are projected onto the exposure like any
other template, once its shift against the stars is known.

The values in tiles are those of the survey's images, interpolated when the HiPS was made and not
scaled with the area of pixels: flux per pixel *of the survey's images*, whatever the size of the
HiPS pixels; and averages of four, not sums, from order to order. Flux in a pixel of the plane is
therefore the value times the pixel's area, over the area of a pixel of the survey.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from numba import njit

from core.image import FloatImage, MaskBit, MaskImage
from core.lanczos import lanczos_table, row_weights, window_sum
from core.spline import spline_coefficients, spline_table
from core.tangent import FloatArray, TangentGrid
from core.templates.hips.healpix import IntArray, face_position, positions_along
from core.templates.hips.healpix_padding import PADDING
from core.templates.hips.stack import TileStack

_ROWS = 64
_LOOK = 16  # pixels between the places at which the tiles under a grid are looked for
_AROUND = 20  # pixels around the grid in which they are looked for too

_BAD_SHARE = 0.1  # as in core.resample
_NO_DATA = int(MaskBit.NO_DATA)
_SATURATED = int(MaskBit.SATURATED)


def tiles_under(grid: TangentGrid, order: int, rotation: FloatArray) -> IntArray:
    """Return the tiles on which a grid lies, ascending.

    Parameters
    ----------
    grid : TangentGrid
        With pixels much smaller than a tile.
    order : int
        Of the tiles.
    rotation : ndarray of float64, shape (3, 3)
        From ICRS to the frame of the HiPS.
    """
    ny, nx = grid.shape
    x, y = (np.arange(-_AROUND, n + _AROUND + _LOOK, _LOOK, dtype=np.float64) for n in (nx, ny))
    keys = _keys_at(x, y, *_axes(grid, rotation), *grid.centre, 2**order)
    return np.unique(keys)


def tiles_at(vectors: FloatArray, order: int, rotation: FloatArray) -> IntArray:
    """Return the tiles on which some directions lie, ascending.

    Parameters
    ----------
    vectors : ndarray of float64, shape (n, 3)
        Unit vectors, ICRS.
    order, rotation
        As `tiles_under`.
    """
    return np.unique(_keys_of(np.ascontiguousarray(vectors @ rotation.T), 2**order))


def project_tiles(
    stack: TileStack,
    grid: TangentGrid,
    rotation: FloatArray,
    *,
    pixel_area: float | None,
    saturation: float = np.inf,
    threads: int = 1,
) -> tuple[FloatImage, MaskImage]:
    """Interpolate tiles on a grid with quintic splines.

    Parameters
    ----------
    stack : TileStack
        At least those under the grid.
    grid : TangentGrid
        Its pixels should be about as large as those of the tiles.
    rotation : ndarray of float64, shape (3, 3)
        From ICRS to the frame of the HiPS.
    pixel_area : float or None
        Square degrees of the pixels that the values are fluxes of: then fluxes are conserved, each
        pixel holding the flux that falls on it. None: the values themselves.
    saturation : float
        Pixels that lie between ones of at least this value are flagged.
    threads : int
        Threads to work with.

    Returns
    -------
    data : ndarray of float32, shape grid.shape
        NaN where there is no data.
    mask : ndarray of uint16, shape grid.shape
        `MaskBit` NO_DATA and SATURATED.
    """
    data = np.empty(grid.shape, np.float32)
    mask = np.empty(grid.shape, np.uint16)
    area = 0.0 if pixel_area is None else pixel_area * np.radians(1.0) ** 2
    table, lanczos = spline_table(), lanczos_table()
    coefficients = _coefficients(stack, threads)
    axes = _axes(grid, rotation)

    def work(first: int) -> None:
        rows = slice(first, min(first + _ROWS, grid.shape[0]))
        _sample(
            *axes,
            grid.centre[0],
            grid.centre[1] - first,
            2**stack.order,
            stack.keys,
            stack.pixels,
            coefficients,
            table,
            lanczos,
            area,
            saturation,
            data[rows],
            mask[rows],
        )

    starts = range(0, grid.shape[0], _ROWS)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))
    else:
        for first in starts:
            work(first)
    return data, mask


def _coefficients(stack: TileStack, threads: int) -> npt.NDArray[np.float32]:
    """Return the splines' coefficients of all tiles; NaN where there is no pixel."""
    result = np.empty_like(stack.pixels)

    def work(place: int) -> None:
        tile = stack.pixels[place]
        holes = ~np.isfinite(tile)
        result[place] = spline_coefficients(tile, holes.astype(np.uint16), 0.0)
        result[place][holes] = np.nan

    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(work, range(len(stack.pixels))))
    return result


def _axes(grid: TangentGrid, rotation: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    point, step_x, step_y = grid.axes
    return rotation @ point, rotation @ step_x, rotation @ step_y


@njit(cache=True, nogil=True)
def _keys_of(vectors, side):  # type: ignore[no-untyped-def] # pragma: no cover
    keys = np.empty(vectors.shape[0], np.int64)
    for i in range(vectors.shape[0]):
        face, x, y = face_position(vectors[i, 0], vectors[i, 1], vectors[i, 2])
        tx = min(max(int(np.floor(x * side)), 0), side - 1)
        ty = min(max(int(np.floor(y * side)), 0), side - 1)
        keys[i] = (face * side + ty) * side + tx
    return keys


@njit(cache=True, nogil=True)
def _keys_at(xs, ys, point, step_x, step_y, cx, cy, side):  # type: ignore[no-untyped-def] # pragma: no cover
    keys = np.empty((ys.size, xs.size), np.int64)
    for j in range(ys.size):
        for i in range(xs.size):
            v = point + (xs[i] - cx) * step_x + (ys[j] - cy) * step_y
            v /= np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
            face, x, y = face_position(v[0], v[1], v[2])
            tx = min(max(int(np.floor(x * side)), 0), side - 1)
            ty = min(max(int(np.floor(y * side)), 0), side - 1)
            keys[j, i] = (face * side + ty) * side + tx
    return keys


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"})
def _sample(  # type: ignore[no-untyped-def] # pragma: no cover
    point,
    step_x,
    step_y,
    cx,
    cy,
    side,
    keys,
    tiles,
    coefficients,
    table,
    lanczos,
    area,
    saturation,
    data,
    mask,
):
    """Splines at every pixel, and Lanczos-3 with what there is beside a hole.

    ``area`` in steradian, 0 to leave the values alone.
    """
    padded = tiles.shape[1]
    width = padded - 2 * PADDING
    flat = coefficients.ravel()
    taps = table.ravel()
    lanczos_taps = lanczos.ravel()
    saturates = np.isfinite(saturation)
    steps = table.shape[0] - 1
    # The solid angle of a pixel at the tangent point; it falls with the cube of the distance.
    step2 = step_x[0] * step_x[0] + step_x[1] * step_x[1] + step_x[2] * step_x[2]
    face, slot = np.int64(-1), -1
    x0, y0 = 0.0, 0.0
    nx = data.shape[1]
    faces, xs, ys = np.empty(nx, np.int64), np.empty(nx), np.empty(nx)
    for r in range(data.shape[0]):
        dy = r - cy
        positions_along(point - cx * step_x + dy * step_y, step_x, side * width, faces, xs, ys)
        for c in range(nx):
            px = xs[c] - x0
            py = ys[c] - y0
            if faces[c] != face or not (0.0 <= px < width and 0.0 <= py < width):
                face = faces[c]
                tx = min(max(int(xs[c]) // width, 0), side - 1)
                ty = min(max(int(ys[c]) // width, 0), side - 1)
                x0 = float(tx * width)
                y0 = float(ty * width)
                px = min(max(xs[c] - x0, 0.0), float(width))
                py = min(max(ys[c] - y0, 0.0), float(width))
                key = (face * side + ty) * side + tx
                place = np.searchsorted(keys, key)
                slot = place if place < keys.size and keys[place] == key else -1
            if slot < 0:
                data[r, c] = np.nan
                mask[r, c] = _NO_DATA
                continue
            px -= 0.5
            py -= 0.5
            ix = int(np.floor(px))
            iy = int(np.floor(py))
            sx = (px - ix) * steps
            sy = (py - iy) * steps
            kx = min(int(sx), steps - 1)
            ky = min(int(sy), steps - 1)
            ay = np.float32(sy - ky)
            b = np.uint64(6 * ky)
            wx = row_weights(taps, np.uint64(6 * kx), np.float32(sx - kx))
            # Pixel i of the tile is pixel i + PADDING of the padded one, and the window begins
            # at i - 2.
            qx = ix + PADDING - 2
            qy = iy + PADDING - 2
            first = np.uint64((slot * padded + qy) * padded + qx)
            total = window_sum(flat, first, np.uint64(padded), wx, taps, b, ay)
            flags = 0
            if saturates:
                for j in range(1, 5):
                    for i in range(1, 5):
                        if tiles[slot, qy + j, qx + i] >= saturation:
                            flags = _SATURATED
            if not np.isfinite(total):
                wx = row_weights(lanczos_taps, np.uint64(6 * kx), np.float32(sx - kx))
                wy = row_weights(lanczos_taps, b, ay)
                total = np.float32(0.0)
                weight = np.float32(0.0)
                lost = np.float32(0.0)
                everything = np.float32(0.0)
                for j in range(6):
                    for i in range(6):
                        share = wy[j] * wx[i]
                        if share == 0.0:
                            continue
                        everything += abs(share)
                        value = tiles[slot, qy + j, qx + i]
                        if np.isfinite(value):
                            total += share * value
                            weight += share
                        else:
                            lost += abs(share)
                if lost > _BAD_SHARE * everything:
                    data[r, c] = np.nan
                    mask[r, c] = flags | _NO_DATA
                    continue
                total /= weight
            if area > 0.0:
                far = 1.0 + step2 * ((c - cx) * (c - cx) + dy * dy)
                total *= np.float32(step2 / (far * np.sqrt(far) * area))
            data[r, c] = total
            mask[r, c] = flags
