"""Bringing one image onto its part of a larger grid: pasted if it can be, else interpolated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS

from core.celestial import from_icrs, to_icrs
from core.errors import UnusableInput
from core.image import ExposureFacts, FloatImage, Image, MaskBit
from core.noise import measure_sky, with_noise
from core.resample import resample

_WHOLE = 1e-4  # pixels; an image that is closer to the pixels of the grid is pasted
_POINTS = 17  # along each axis of an image, at which it is carried to the grid

Box = tuple[slice, slice]


@dataclass(frozen=True)
class Placed:
    """An image on its part of a grid.

    Attributes
    ----------
    image : Image
        The part, with variance; where nothing had to be interpolated it is a view of the original.
    rows, columns : slice
        Where it lies on the grid.
    factor : float
        By which its fluxes are to be multiplied to be at the common zero point.
    """

    image: Image
    rows: slice
    columns: slice
    factor: float = 1.0

    @property
    def facts(self) -> ExposureFacts:
        """The facts of the image at the common zero point."""
        facts = self.image.facts
        return replace(
            facts,
            gain=None if facts.gain is None else facts.gain / self.factor,
            saturation=None if facts.saturation is None else facts.saturation * self.factor,
        )

    def data(self, cut: Box) -> FloatImage:
        """Return the fluxes of a piece of the part, at the common zero point."""
        data = self.image.data[cut]
        return data if self.factor == 1 else data * np.float32(self.factor)

    def variance(self, cut: Box) -> FloatImage:
        """Return the variance of a piece of the part, at the common zero point."""
        assert self.image.variance is not None  # `place` sees to it
        variance = self.image.variance[cut]
        return variance if self.factor == 1 else variance * np.float32(self.factor**2)

    def on_rows(self, rows: slice) -> tuple[Box, Box] | None:
        """Return where this lies on some rows of the grid, and which piece of it; None if not."""
        first, last = max(rows.start, self.rows.start), min(rows.stop, self.rows.stop)
        if first >= last:
            return None
        whole = slice(0, self.columns.stop - self.columns.start)
        return (
            (slice(first - rows.start, last - rows.start), self.columns),
            (slice(first - self.rows.start, last - self.rows.start), whole),
        )


def place(
    image: Image, wcs: WCS, shape: tuple[int, int], zero_point: float | None, threads: int = 1
) -> Placed | None:
    """Bring an image onto its part of a grid.

    Parameters
    ----------
    image : Image
        With a WCS; a variance that is missing is measured.
    wcs : WCS
        Of the grid.
    shape : tuple of int
        (ny, nx) of the grid.
    zero_point : float or None
        The common one.
    threads : int
        For interpolation.

    Returns
    -------
    Placed or None
        None where nothing of the image lies on the grid.

    Raises
    ------
    core.errors.UnusableInput
        If the image has no WCS.
    """
    if image.wcs is None:
        raise UnusableInput(f"{image.name}: has no WCS and cannot be placed in a mosaic")
    factor = 1.0
    if zero_point is not None and image.facts.zero_point is not None:
        factor = float(10 ** (0.4 * (zero_point - image.facts.zero_point)))
    # A grid over the whole image: an edge alone would not tell where one lies around a pole.
    ny, nx = image.shape
    y, x = np.meshgrid(
        np.linspace(0, ny - 1, _POINTS), np.linspace(0, nx - 1, _POINTS), indexing="ij"
    )
    column, row = from_icrs(wcs, *to_icrs(image.wcs, x, y))
    fine = np.isfinite(column) & np.isfinite(row)
    if not fine.any():
        return None
    if image.variance is None:
        image = with_noise(image, measure_sky(image))
    shift = _whole_shift(column - x.ravel(), row - y.ravel())
    if shift is not None:
        return _pasted(image, shape, *shift, factor)
    box = _box(row[fine], column[fine], shape)
    if box is None:
        return None
    rows, columns = box
    size = rows.stop - rows.start, columns.stop - columns.start
    part = resample(image, wcs[rows, columns], size, threads=threads)
    if ((part.mask & MaskBit.NO_DATA) != 0).all():
        return None
    return Placed(part, rows, columns, factor)


def _whole_shift(dx: np.ndarray, dy: np.ndarray) -> tuple[int, int] | None:
    """Return the shift in whole pixels that is the same everywhere, None where there is none."""
    if not (np.isfinite(dx).all() and np.isfinite(dy).all()):
        return None
    whole = round(float(dx[0])), round(float(dy[0]))
    if max(np.abs(dx - whole[0]).max(), np.abs(dy - whole[1]).max()) < _WHOLE:
        return whole
    return None


def _pasted(image: Image, shape: tuple[int, int], dx: int, dy: int, factor: float) -> Placed | None:
    spans, cuts = [], []
    for shift, length, size in ((dy, image.shape[0], shape[0]), (dx, image.shape[1], shape[1])):
        first, last = max(0, shift), min(size, shift + length)
        if first >= last:
            return None
        spans.append(slice(first, last))
        cuts.append(slice(first - shift, last - shift))
    cut = cuts[0], cuts[1]
    assert image.variance is not None
    if ((image.mask[cut] & MaskBit.NO_DATA) != 0).all():
        return None
    part = replace(
        image,
        data=image.data[cut],
        mask=image.mask[cut],
        variance=image.variance[cut],
        psf=None,
    )
    return Placed(part, spans[0], spans[1], factor)


def _box(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> Box | None:
    """Return the rows and columns of the grid that an image may cover, from points all over it."""
    spans = []
    for places, length in ((row, shape[0]), (column, shape[1])):
        # Between the points the edge bulges a little, and pixels reach half a pixel further.
        slack = 3 + 0.002 * float(np.ptp(places))
        first = max(0, int(np.floor(places.min() - slack)))
        last = min(length, int(np.ceil(places.max() + slack)) + 1)
        if first >= last:
            return None
        spans.append(slice(first, last))
    return spans[0], spans[1]
