"""Several images as one: on one grid, at one zero point and one background, and without seams.

Images whose pixels fall onto the grid's own (the sky cells of one Pan-STARRS projection cell) are
pasted; others are interpolated once. Where several cover a pixel their weighted average is taken
(see `core.templates.seams` for the weights); one that is flagged in an image comes from the others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from core.celestial import from_icrs, to_icrs
from core.errors import NoTemplate, UnusableInput
from core.image import ExposureFacts, FloatImage, Image, MaskBit, MaskImage
from core.noise import measure_sky, with_noise
from core.resample import resample
from core.templates.backgrounds import background_offsets
from core.templates.seams import seamless_weights

logger = logging.getLogger(__name__)

_NO_DATA = np.uint16(MaskBit.NO_DATA)
Origin = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Mosaic:
    """What came of several images.

    Attributes
    ----------
    image : Image
        On the grid that was asked for. Pixels of which no image has data are `MaskBit.NO_DATA`; one
        that is flagged in every image has all their flags.
    sources : tuple of str
        Names of the images that are in it.
    origin : ndarray of uint8 (uint16 for more than 255 images), shape (ny, nx), or None
        Index into ``sources`` of the image that contributes most; the largest number of the type
        where nothing does. None where there is one source only.
    """

    image: Image
    sources: tuple[str, ...]
    origin: Origin | None


@dataclass(frozen=True)
class Placed:
    """An image on its part of the grid, at the common zero point.

    Attributes
    ----------
    image : Image
        Data, mask and variance of the part.
    rows, columns : slice
        Where it lies on the grid.
    """

    image: Image
    rows: slice
    columns: slice

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns, to index the grid with."""
        return self.rows, self.columns


def mosaic(
    images: Sequence[Image],
    wcs: WCS,
    shape: tuple[int, int],
    *,
    zero_point: float | None = None,
    shared_noise: bool = False,
    match_backgrounds: bool = True,
    threads: int = 1,
) -> Mosaic:
    """Put several images onto one grid.

    Parameters
    ----------
    images : sequence of Image
        With WCS. A variance that is missing is measured. Either all have a zero point or none.
    wcs : WCS
        Celestial WCS of the grid.
    shape : tuple of int
        (ny, nx) of the grid.
    zero_point : float or None
        AB magnitude of one unit of the result; None for that of the first image.
    shared_noise : bool
        The images were made of the same exposures, so that their noise is the same where they
        overlap, and averaging them makes nothing more precise: the variance is that of fully
        correlated values, ``(sum w sigma / sum w)²`` instead of ``sum w² sigma² / (sum w)²``.
    match_backgrounds : bool
        Remove the differences of the images' backgrounds, measured where they overlap; the mean
        background stays.
    threads : int
        Threads for interpolation.

    Raises
    ------
    core.errors.NoTemplate
        If none of the images lies on the grid.
    core.errors.UnusableInput
        If an image has no WCS, or some have a zero point and some have none.
    """
    target = _common_zero_point(images, zero_point)
    placed = [p for i in images if (p := _placed(i, wcs, shape, target, threads)) is not None]
    if not placed:
        raise NoTemplate(f"none of {len(images)} images lies on the exposure")
    offsets = background_offsets(placed) if match_backgrounds else np.zeros(len(placed))
    image, origin = _combined(placed, offsets, shape, shared_noise)
    facts = _facts([p.image.facts for p in placed], target)
    names = tuple(p.image.name for p in placed)
    return Mosaic(
        image=replace(image, wcs=wcs, facts=facts, name=_name(names)),
        sources=names,
        origin=origin if len(names) > 1 else None,
    )


def _common_zero_point(images: Sequence[Image], wanted: float | None) -> float | None:
    known = [image.facts.zero_point is not None for image in images]
    if any(known) and not all(known):
        name = images[known.index(False)].name
        raise UnusableInput(
            f"{name}: has no zero point while others have one; they cannot be brought to one scale"
        )
    if not all(known):
        return None
    return wanted if wanted is not None else images[0].facts.zero_point


def _placed(
    image: Image, wcs: WCS, shape: tuple[int, int], zero_point: float | None, threads: int
) -> Placed | None:
    """Bring an image onto its part of the grid; None where they do not meet."""
    if image.wcs is None:
        raise UnusableInput(f"{image.name}: has no WCS and cannot be placed in a mosaic")
    box = _covered_box(image, wcs, shape)
    if box is None:
        return None
    if image.variance is None:
        image = with_noise(image, measure_sky(image))
    rows, columns = box
    part = resample(
        image,
        wcs[rows, columns],
        (rows.stop - rows.start, columns.stop - columns.start),
        threads=threads,
    )
    if (part.mask & _NO_DATA).all():
        return None
    if zero_point is not None and image.facts.zero_point is not None:
        part = _rescaled(part, 10 ** (0.4 * (zero_point - image.facts.zero_point)))
    return Placed(part, rows, columns)


def _rescaled(image: Image, factor: float) -> Image:
    if factor == 1:
        return image
    assert image.variance is not None
    facts = image.facts
    return replace(
        image,
        data=image.data * np.float32(factor),
        variance=image.variance * np.float32(factor * factor),
        facts=replace(
            facts,
            gain=None if facts.gain is None else facts.gain / factor,
            saturation=None if facts.saturation is None else facts.saturation * factor,
        ),
    )


def _covered_box(image: Image, wcs: WCS, shape: tuple[int, int]) -> tuple[slice, slice] | None:
    """Return the rows and columns of the grid that an image may cover."""
    assert image.wcs is not None
    ny, nx = image.shape
    # A grid over the whole image: an edge alone would not tell where one lies around a pole.
    y, x = np.meshgrid(np.linspace(-0.5, ny - 0.5, 17), np.linspace(-0.5, nx - 0.5, 17))
    column, row = from_icrs(wcs, *to_icrs(image.wcs, x, y))
    fine = np.isfinite(column) & np.isfinite(row)
    if not fine.any():
        return None
    spans = []
    for places, length in ((row[fine], shape[0]), (column[fine], shape[1])):
        # Between the points the edge bulges a little.
        slack = 2 + 0.002 * float(np.ptp(places))
        first = max(0, int(np.floor(places.min() - slack)))
        last = min(length, int(np.ceil(places.max() + slack)) + 1)
        if first >= last:
            return None
        spans.append(slice(first, last))
    return spans[0], spans[1]


def _combined(
    placed: Sequence[Placed],
    offsets: npt.NDArray[np.float64],
    shape: tuple[int, int],
    shared_noise: bool,
) -> tuple[Image, Origin]:
    """Average the images; return the result and where each pixel came from."""
    total, weights, noise, best = (np.zeros(shape, np.float32) for _ in range(4))
    origin: Origin = np.full(
        shape, *((255, np.uint8) if len(placed) <= 255 else (65535, np.uint16))
    )
    flags = np.zeros(shape, np.uint16)
    covered = np.zeros(shape, bool)
    for index, (part, offset) in enumerate(zip(placed, offsets, strict=True)):
        image, box = part.image, part.box
        assert image.variance is not None
        here = (image.mask & _NO_DATA) == 0
        weight = np.where(image.mask == 0, seamless_weights(part, shape), np.float32(0))
        total[box] += weight * (image.data - np.float32(offset))
        weights[box] += weight
        if shared_noise:
            noise[box] += weight * np.sqrt(image.variance)
        else:
            noise[box] += weight * weight * image.variance
        flags[box] |= image.mask & ~_NO_DATA
        covered[box] |= here
        first = weight > best[box]
        origin[box][first] = index
        np.maximum(best[box], weight, out=best[box])
    good = weights > 0
    safe = np.where(good, weights, np.float32(1))
    data: FloatImage = np.asarray(total / safe, dtype=np.float32)
    spread = (noise / safe) ** 2 if shared_noise else noise / safe**2
    variance: FloatImage = np.asarray(spread, dtype=np.float32)
    flags |= np.where(covered, 0, _NO_DATA)
    mask: MaskImage = np.where(good, 0, flags).astype(np.uint16)
    _take_flagged(placed, offsets, covered & ~good, data, variance, origin)
    empty = ~covered
    if empty.any() and covered.any():
        data[empty] = np.median(data[covered][:: max(1, int(covered.sum()) // 100_000)])
        variance[empty] = np.median(variance[covered][:: max(1, int(covered.sum()) // 100_000)])
    image = Image(
        data=np.ascontiguousarray(data), mask=mask, variance=np.ascontiguousarray(variance)
    )
    return image, origin


def _take_flagged(
    placed: Sequence[Placed],
    offsets: npt.NDArray[np.float64],
    wanted: npt.NDArray[np.bool_],
    data: FloatImage,
    variance: FloatImage,
    origin: Origin,
) -> None:
    """Fill pixels that are flagged everywhere with the first image that has something there."""
    if not wanted.any():
        return
    wanted = wanted.copy()
    for index, (part, offset) in enumerate(zip(placed, offsets, strict=True)):
        image, box = part.image, part.box
        assert image.variance is not None
        take = wanted[box] & ((image.mask & _NO_DATA) == 0)
        data[box][take] = image.data[take] - np.float32(offset)
        variance[box][take] = image.variance[take]
        origin[box][take] = index
        wanted[box][take] = False


def _facts(facts: Sequence[ExposureFacts], zero_point: float | None) -> ExposureFacts:
    """Return what is true of the whole."""

    def known(field: str) -> list[float]:
        return [v for f in facts if (v := getattr(f, field)) is not None]

    gains, times, saturation = known("gain"), known("exposure_time"), known("saturation")
    middles = known("mjd_mid")
    bands = {f.band for f in facts}
    return ExposureFacts(
        gain=float(np.mean(gains)) if len(gains) == len(facts) else None,
        saturation=min(saturation) if len(saturation) == len(facts) else None,
        exposure_time=float(np.median(times)) if times else None,
        mjd_mid=float(np.mean(middles)) if len(middles) == len(facts) else None,
        band=bands.pop() if len(bands) == 1 else None,
        zero_point=zero_point,
        zero_point_origin=facts[0].zero_point_origin if zero_point is not None else None,
    )


def _name(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
