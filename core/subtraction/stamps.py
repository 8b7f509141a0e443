"""Where the kernel is fitted: square stamps that carry information about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from core.image import FloatImage

BoolImage = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Stamps:
    """Square pixel regions, all of one size.

    Attributes
    ----------
    x, y : ndarray of int64, shape (n,)
        Centre pixels.
    half : int
        Half-size: a stamp has ``2 * half + 1`` pixels a side.
    """

    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    half: int

    def __len__(self) -> int:
        return len(self.x)

    def select(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Stamps:
        """Return the stamps that ``keep`` (a boolean mask or indices) picks."""
        return Stamps(self.x[keep], self.y[keep], self.half)


def stamps_at(
    x: npt.ArrayLike, y: npt.ArrayLike, half: int, reach: int, shape: tuple[int, int]
) -> Stamps:
    """Put a stamp on each place whose stamp and kernel footprint lie inside the frame.

    Parameters
    ----------
    x, y : array_like
        0-based pixel positions.
    half : int
        Half-size of a stamp.
    reach : int
        Half-size of the kernel: pixels needed beyond the stamp.
    shape : tuple of int
        (ny, nx) of the frame.
    """
    xi = np.rint(np.asarray(x, dtype=np.float64)).astype(np.int64)
    yi = np.rint(np.asarray(y, dtype=np.float64)).astype(np.int64)
    margin = half + reach
    ny, nx = shape
    inside = (xi >= margin) & (yi >= margin) & (xi < nx - margin) & (yi < ny - margin)
    return Stamps(xi[inside], yi[inside], half)


def spread(stamps: Stamps, limit: int, shape: tuple[int, int]) -> Stamps:
    """Order stamps by their rank in their cell of a coarse grid, and take the first.

    Parameters
    ----------
    stamps : Stamps
        Best first.
    limit : int
        The most stamps to return.
    shape : tuple of int
        (ny, nx) of the frame.
    """
    if len(stamps) == 0:
        return stamps
    cells = max(1, int(np.sqrt(limit / 6)))
    cell_x = np.clip(stamps.x * cells // shape[1], 0, cells - 1)
    cell_y = np.clip(stamps.y * cells // shape[0], 0, cells - 1)
    rank = _rank_within(cell_y * cells + cell_x)
    return stamps.select(np.lexsort((np.arange(len(stamps)), rank))[:limit])


def informative_stamps(
    template: FloatImage,
    variance: FloatImage,
    usable: BoolImage,
    half: int,
    reach: int,
    *,
    limit: int,
    enough: int = 60,
) -> Stamps:
    """Choose stamps by how much they tell about the kernel, evenly over the frame.

    The frame is cut into blocks of a stamp's size; a block's information is the sum of
    ``template² / variance``. A block is centred on its flux, and the best blocks of each cell of a
    coarse grid are taken, so that no corner is left to extrapolation.

    Parameters
    ----------
    template : ndarray of float32, shape (ny, nx)
        Sky-subtracted.
    variance : ndarray of float32, shape (ny, nx)
        Of the template itself.
    usable : ndarray of bool, shape (ny, nx)
        Where a pixel may be used.
    half, reach : int
        Half-sizes of the stamp and of the kernel.
    limit : int
        The most stamps to return.
    enough : int
        So many stamps do without the blocks that hold more noise than light.
    """
    side = 2 * half + 1
    ny, nx = template.shape
    info, cx, cy, good = _block_information(template, variance, usable, side)
    margin = half + reach
    x = np.clip(np.rint(cx), margin, nx - margin - 1)
    y = np.clip(np.rint(cy), margin, ny - margin - 1)
    # white noise alone gives side² with a scatter of sqrt(2) side
    usable = (good > 0.5) & (info > 2.0 * side**2)
    order = np.flatnonzero(usable)[np.argsort(-info[usable], kind="stable")]
    if order.size == 0 or nx <= 2 * margin or ny <= 2 * margin:
        empty = np.zeros(0, dtype=np.int64)
        return Stamps(empty, empty, half)
    order = order[_first_of_each(x[order], y[order], 0.7 * half)]
    telling = int((info[order] > 10.0 * side**2).sum())
    order = order[: max(telling, enough)]
    cells = max(1, int(np.sqrt(limit / 6)))
    cell = (np.clip(y[order] * cells // ny, 0, cells - 1) * cells
            + np.clip(x[order] * cells // nx, 0, cells - 1)).astype(np.int64)  # fmt: skip
    rank = _rank_within(cell)
    chosen = order[np.lexsort((np.arange(order.size), rank))][:limit]
    return Stamps(x[chosen].astype(np.int64), y[chosen].astype(np.int64), half)


def _first_of_each(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], distance: float
) -> npt.NDArray[np.bool_]:
    """Leave out places that lie close to an earlier one: blocks that share a star."""
    keep = np.ones(len(x), dtype=bool)
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(distance, output_type="ndarray")
    for first, second in np.sort(pairs[np.argsort(pairs.min(axis=1), kind="stable")], axis=1):
        if keep[first]:
            keep[second] = False
    return keep


def _rank_within(group: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many earlier elements share each element's group."""
    by_group = np.argsort(group, kind="stable")
    ordered = group[by_group]
    first = np.r_[True, ordered[1:] != ordered[:-1]]
    start = np.maximum.accumulate(np.where(first, np.arange(ordered.size), 0))
    rank = np.empty_like(group)
    rank[by_group] = np.arange(ordered.size) - start
    return rank


@numba.njit(parallel=True, fastmath=True, cache=True)
def _block_information(template, variance, usable, side):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = template.shape
    by, bx = ny // side, nx // side
    info = np.zeros(by * bx)
    cx = np.zeros(by * bx)
    cy = np.zeros(by * bx)
    good = np.zeros(by * bx)
    for row in numba.prange(by):
        for col in range(bx):
            s = 0.0
            sx = 0.0
            sy = 0.0
            n = 0
            for y in range(row * side, (row + 1) * side):
                for x in range(col * side, (col + 1) * side):
                    if usable[y, x] and variance[y, x] > 0:
                        q = template[y, x] * template[y, x] / variance[y, x]
                        s += q
                        sx += q * x
                        sy += q * y
                        n += 1
            k = row * bx + col
            info[k] = s
            good[k] = n / (side * side)
            if s > 0:
                cx[k] = sx / s
                cy[k] = sy / s
    return info, cx, cy, good


def gather(image: npt.NDArray[Any], stamps: Stamps) -> npt.NDArray[Any]:
    """Return the pixels of an image under every stamp, shape (n_stamps, side, side)."""
    offsets = np.arange(-stamps.half, stamps.half + 1)
    return image[
        (stamps.y[:, None] + offsets)[:, :, None], (stamps.x[:, None] + offsets)[:, None, :]
    ]
