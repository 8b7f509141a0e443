"""How much the backgrounds of overlapping images differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from core.templates.mosaic.placing import Placed

_LEAST_SHARED = 500  # pixels; fewer say too little
_MOST_SHARED = 400_000  # pixels; more make the median slow and nothing better
_WEAK = 1e-9  # weight of the guess from the skies themselves, against that of a pixel


def background_offsets(placed: Sequence[Placed]) -> npt.NDArray[np.float64]:
    """Return what each image's background lies above the common one.

    The differences of all pairs are measured where they overlap, by the median of the differences
    of the pixels, which the stars leave alone since both images hold them. One least-squares
    solution makes them consistent; their mean over the images, weighted by the pixels, is zero, so
    that the level of the whole stays. An image that overlaps no other is brought to the others by
    the medians of its own pixels and theirs.

    Parameters
    ----------
    placed : sequence of core.templates.mosaic.placing.Placed
        At one zero point.

    Returns
    -------
    ndarray of float64, shape (len(placed),)
        To be subtracted.
    """
    number = len(placed)
    if number < 2:
        return np.zeros(number)
    levels, sizes = np.empty(number), np.empty(number)
    for index, part in enumerate(placed):
        step = _step(part.image.data.size)
        cut = slice(None, None, step), slice(None, None, step)
        values = part.data(cut)[part.image.mask[cut] == 0]
        levels[index] = np.median(values) if values.size else 0.0
        sizes[index] = max(values.size, 1) * step * step
    normal, right = np.zeros((number, number)), np.zeros(number)

    def add(i: int, j: int, difference: float, weight: float) -> None:
        for one, other, sign in ((i, j, 1), (j, i, -1)):
            normal[one, one] += weight
            normal[one, other] -= weight
            right[one] += sign * weight * difference

    for i in range(number):
        for j in range(i + 1, number):
            shared = _difference(placed[i], placed[j])
            if shared is not None:
                add(i, j, *shared)
            add(i, j, levels[i] - levels[j], _WEAK)
    # The gauge: the mean over all pixels stays where it is.
    share = sizes / sizes.sum()
    scale = np.trace(normal) / number
    return np.asarray(np.linalg.solve(normal + scale * np.outer(share, share), right))


def _difference(one: Placed, other: Placed) -> tuple[float, float] | None:
    """Return the background of one minus that of another, and how many pixels say so."""
    boxes = []
    for axis in ("rows", "columns"):
        first, second = getattr(one, axis), getattr(other, axis)
        low, high = max(first.start, second.start), min(first.stop, second.stop)
        if low >= high:
            return None
        boxes.append((low, high, first.start, second.start))
    (y0, y1, ya, yb), (x0, x1, xa, xb) = boxes
    step = _step((y1 - y0) * (x1 - x0))
    a = slice(y0 - ya, y1 - ya, step), slice(x0 - xa, x1 - xa, step)
    b = slice(y0 - yb, y1 - yb, step), slice(x0 - xb, x1 - xb, step)
    good = (one.image.mask[a] == 0) & (other.image.mask[b] == 0)
    values = (one.data(a) - other.data(b))[good]
    if values.size < _LEAST_SHARED:
        return None
    return float(np.median(values)), float(values.size)


def _step(size: int) -> int:
    """Return the distance of the pixels to look at, so that they are not too many."""
    return max(1, math.ceil(math.sqrt(size / _MOST_SHARED)))
