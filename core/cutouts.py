"""Stamps of science, template and difference around a candidate."""

from __future__ import annotations

import numpy as np

from core.exposure import Cutouts
from core.image import FloatImage, Image, MaskBit, MaskImage
from core.subtraction.difference import Difference


def cut_out(
    science: Image, template: Image, difference: Difference, x: float, y: float, size: int
) -> Cutouts:
    """Cut the three stamps; pixels without data, and those beyond the edge, are NaN.

    Parameters
    ----------
    science, template : Image
        On one pixel grid.
    difference : Difference
        Of the two.
    x, y : float
        0-based pixel position of the candidate, which lies in the central pixel of the stamps.
    size : int
        Side of the stamps, odd.
    """
    x0, y0 = round(x) - size // 2, round(y) - size // 2
    no_data = MaskBit.NO_DATA
    either = MaskBit.NO_DATA | MaskBit.TEMPLATE_NO_DATA
    return Cutouts(
        _stamp(science.data, science.mask, no_data, x0, y0, size),
        _stamp(template.data, template.mask, no_data, x0, y0, size),
        _stamp(difference.data, difference.mask, either, x0, y0, size),
        x0,
        y0,
    )


def _stamp(
    data: FloatImage, mask: MaskImage, missing: MaskBit, x0: int, y0: int, size: int
) -> FloatImage:
    stamp = np.full((size, size), np.nan, dtype=np.float32)
    ny, nx = data.shape
    left, right = max(x0, 0), min(x0 + size, nx)
    low, high = max(y0, 0), min(y0 + size, ny)
    if left < right and low < high:
        part = data[low:high, left:right].copy()
        part[(mask[low:high, left:right] & missing) != 0] = np.nan
        stamp[low - y0 : high - y0, left - x0 : right - x0] = part
    return stamp
