"""Coarser tiles made of finer ones, after their values have been made linear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from core.image import FloatImage
from core.templates.hips.healpix import IntArray


def finer_keys(keys: IntArray, order: int, deeper: int) -> IntArray:
    """Return the tiles that some tiles are made of, ``deeper`` orders further down."""
    side, parts = 2**order, 2**deeper
    face, rest = keys // (side * side), keys % (side * side)
    y, x = rest // side * parts, rest % side * parts
    j, i = (part.ravel() for part in np.mgrid[:parts, :parts])
    fine = side * parts
    inside = (y[:, None] + j) * fine + x[:, None] + i
    return np.asarray((face[:, None] * fine * fine + inside).ravel(), dtype=np.int64)


def average_tiles(
    tiles: Mapping[int, FloatImage], order: int, deeper: int
) -> dict[int, FloatImage]:
    """Return tiles of some order, each pixel the mean of those that it is made of.

    Parameters
    ----------
    tiles : mapping of int to ndarray of float32, shape (width, width)
        By key, of order ``order + deeper``, as stored in a HiPS; NaN where there is nothing.
    order, deeper : int
        Wanted order, and how many orders further down the tiles are.
    """
    if deeper == 0:
        return dict(tiles)
    parts = 2**deeper
    fine = 2**order * parts
    coarse: dict[int, FloatImage] = {}
    for key, tile in tiles.items():
        face, rest = divmod(key, fine * fine)
        y, x = divmod(rest, fine)
        width = tile.shape[0]
        part = width // parts
        above = (face * 2**order + y // parts) * 2**order + x // parts
        if above not in coarse:
            coarse[above] = np.full((width, width), np.nan, np.float32)
        # As stored, x runs from the bottom row to the top one and y along the rows.
        row, column = (parts - 1 - x % parts) * part, (y % parts) * part
        coarse[above][row : row + part, column : column + part] = block_means(tile, parts)
    return coarse


def block_means(values: FloatImage, size: int) -> FloatImage:
    """Return the mean of every block of ``size`` x ``size`` pixels.

    A block is NaN, no data, if more than a quarter of its pixels are not finite.

    Parameters
    ----------
    values : ndarray of float32, shape (ny size, nx size)
    size : int
        Pixels.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
    """
    ny, nx = values.shape[0] // size, values.shape[1] // size
    blocks = values.reshape(ny, size, nx, size)
    fine = np.isfinite(blocks)
    number = fine.sum(axis=(1, 3))
    total = np.where(fine, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    enough = 4 * number >= 3 * size * size
    return np.where(enough, total / np.maximum(number, 1), np.nan).astype(np.float32)
