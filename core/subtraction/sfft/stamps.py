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
Pixels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stamps:
    """Square pixel regions, all of one size.

    Attributes
    ----------
    x, y : ndarray of int64, shape (n,)
        Centre pixels.
    half : int
        Half-size: a stamp has ``2 * half + 1`` pixels a side.
    off_x, off_y : ndarray of int64, shape (n,), optional
        How far from the centre pixel the source is that a stamp is on; zero when not given. Near
        the edge of the frame a stamp cannot be centred on its source.
    """

    x: Pixels
    y: Pixels
    half: int
    off_x: Pixels | None = None
    off_y: Pixels | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def source_x(self) -> Pixels:
        """Columns of the sources."""
        return self.x if self.off_x is None else self.x + self.off_x

    @property
    def source_y(self) -> Pixels:
        """Rows of the sources."""
        return self.y if self.off_y is None else self.y + self.off_y

    def select(self, keep: npt.NDArray[np.bool_] | Pixels | slice) -> Stamps:
        """Return the stamps that ``keep`` (a boolean mask, indices or a slice) picks."""
        off_x, off_y = (None if off is None else off[keep] for off in (self.off_x, self.off_y))
        return Stamps(self.x[keep], self.y[keep], self.half, off_x, off_y)


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


def stamps_on(
    x: npt.ArrayLike, y: npt.ArrayLike, half: int, reach: int, shape: tuple[int, int]
) -> Stamps:
    """Put a stamp on each source in the frame, moved in where its footprint would stick out.

    What such a stamp holds of its source is enough to tell the kernel there: without it the
    polynomials are extrapolated from stamps that are 20 pixels further in, which left a star at
    9 pixels from the edge with a chi² of 9.

    Parameters
    ----------
    x, y, half, reach, shape
        As for `stamps_at`.

    Returns
    -------
    Stamps
        None where the frame is too small for one.
    """
    xi = np.rint(np.asarray(x, dtype=np.float64)).astype(np.int64)
    yi = np.rint(np.asarray(y, dtype=np.float64)).astype(np.int64)
    margin = half + reach
    ny, nx = shape
    if min(ny, nx) <= 2 * margin:
        nothing = np.zeros(0, dtype=np.int64)
        return Stamps(nothing, nothing, half)
    inside = (xi >= 0) & (yi >= 0) & (xi < nx) & (yi < ny)
    xi, yi = xi[inside], yi[inside]
    cx, cy = np.clip(xi, margin, nx - margin - 1), np.clip(yi, margin, ny - margin - 1)
    return Stamps(cx, cy, half, xi - cx, yi - cy)


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
    info, x, y, good = _block_information(template, variance, usable, side)
    # white noise alone gives side² with a scatter of sqrt(2) side
    usable = (good > 0.5) & (info > 2.0 * side**2)
    order = np.flatnonzero(usable)[np.argsort(-info[usable], kind="stable")]
    order = order[_first_of_each(x[order], y[order], 0.7 * half)]
    telling = int((info[order] > 10.0 * side**2).sum())
    order = order[: max(telling, enough)]
    cells = max(1, int(np.sqrt(limit / 6)))
    cell = (np.clip(y[order] * cells // ny, 0, cells - 1) * cells
            + np.clip(x[order] * cells // nx, 0, cells - 1)).astype(np.int64)  # fmt: skip
    rank = _rank_within(cell)
    chosen = order[np.lexsort((np.arange(order.size), rank))][:limit]
    return stamps_on(x[chosen], y[chosen], half, reach, (ny, nx))


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
    by, bx = -(-ny // side), -(-nx // side)
    info = np.zeros(by * bx)
    cx = np.zeros(by * bx)
    cy = np.zeros(by * bx)
    good = np.zeros(by * bx)
    for row in numba.prange(by):
        for col in range(bx):
            s = 0.0
            sx = 0.0
            sy = 0.0
            n, pixels = 0, 0
            for y in range(row * side, min(ny, (row + 1) * side)):
                for x in range(col * side, min(nx, (col + 1) * side)):
                    pixels += 1
                    if usable[y, x] and variance[y, x] > 0:
                        q = template[y, x] * template[y, x] / variance[y, x]
                        s += q
                        sx += q * x
                        sy += q * y
                        n += 1
            k = row * bx + col
            info[k] = s
            good[k] = n / pixels
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
