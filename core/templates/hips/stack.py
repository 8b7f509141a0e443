"""Tiles side by side: each with the edges of its neighbours around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.image import FloatImage
from core.templates.hips.healpix import IntArray
from core.templates.hips.healpix_padding import PADDING, padding_pixels


@dataclass(frozen=True)
class TileStack:
    """Tiles of one order, each with the edges of its neighbours around it.

    Attributes
    ----------
    order : int
        Their order.
    width : int
        Pixels along the side of a tile.
    keys : ndarray of int64, shape (n,)
        Which tiles (see `core.templates.hips.healpix`), ascending.
    pixels : ndarray of float32, shape (n, width + 2 PADDING, width + 2 PADDING)
        Indexed by y and x of HEALPix, not as tiles are stored; NaN where there is nothing.
    """

    order: int
    width: int
    keys: IntArray
    pixels: npt.NDArray[np.float32]


def stack_tiles(tiles: Mapping[int, FloatImage], order: int, width: int) -> TileStack:
    """Put the edges of their neighbours around tiles.

    Parameters
    ----------
    tiles : mapping of int to ndarray of float32, shape (width, width)
        By key; as stored in a HiPS . At least one.
    order, width : int
        Of the tiles.
    """
    keys = np.array(sorted(tiles), dtype=np.int64)
    pixels = np.full((keys.size, width + 2 * PADDING, width + 2 * PADDING), np.nan, np.float32)
    inside = slice(PADDING, PADDING + width)
    for place, key in enumerate(keys):
        pixels[place, inside, inside] = _along_faces(tiles[int(key)])
    for place, key in enumerate(keys):
        around = padding_pixels(int(key), order, width)
        slots = np.searchsorted(keys, around.keys).clip(max=keys.size - 1)
        have = keys[slots] == around.keys
        values = pixels[slots[have], around.y[have] + PADDING, around.x[have] + PADDING]
        pixels[place, around.rows[have], around.columns[have]] = values
    return TileStack(order, width, keys, pixels)


def _along_faces(tile: FloatImage) -> FloatImage:
    """Turn a tile as stored, north-east down and north-west right, into HEALPix y and x."""
    return tile[::-1, :].T
