"""Compiling what only the first template would wait for, or loading it from the disk's cache."""

from __future__ import annotations

import numpy as np

from core.pointing import tangential_grid
from core.tangent import TangentGrid
from core.templates.hips.projection import project_tiles, tiles_under
from core.templates.hips.stack import stack_tiles

_SHAPE = (24, 24)
_ORDER = 6
_WIDTH = 64


def warm_hips() -> None:
    """Put empty tiles onto a small plane, on the same ways as real ones."""
    scale = 58.6 / np.sqrt(3) / 2**_ORDER / _WIDTH  # degrees, about that of the tiles' pixels
    wcs = tangential_grid((45.0, 10.0), _SHAPE, 3600 * scale)
    grid = TangentGrid.around(wcs, _SHAPE, scale)
    axes = np.eye(3)
    tiles = {
        int(key): np.zeros((_WIDTH, _WIDTH), dtype=np.float32)
        for key in tiles_under(grid, _ORDER, axes)
    }
    project_tiles(stack_tiles(tiles, _ORDER, _WIDTH), grid, axes, pixel_area=scale**2)
