"""Several images as one: on one grid, at one zero point and one background, and without seams.

Images whose pixels fall onto the grid's own (the sky cells of one Pan-STARRS projection cell) are
pasted; others are interpolated once. Where several cover a pixel their weighted average is taken
(weights: `core.templates.mosaic.seams`); one that is flagged in an image comes from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from core.errors import NoTemplate, UnusableInput
from core.image import ExposureFacts, Image, MaskBit
from core.templates.mosaic.backgrounds import background_offsets
from core.templates.mosaic.placing import Placed, place
from core.templates.mosaic.seams import SeamlessWeights

_ROWS = 256  # of the mosaic at a time: the sums are four times as large as the result
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
    placed = [p for i in images if (p := place(i, wcs, shape, target, threads)) is not None]
    if not placed:
        raise NoTemplate(f"none of {len(images)} images lies on the exposure")
    offsets = background_offsets(placed) if match_backgrounds else np.zeros(len(placed))
    image, origin = _combined(placed, offsets, shape, shared_noise)
    facts = _facts([p.facts for p in placed], target)
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


def _combined(
    placed: Sequence[Placed],
    offsets: npt.NDArray[np.float64],
    shape: tuple[int, int],
    shared_noise: bool,
) -> tuple[Image, Origin]:
    """Average the images; return the result and where each pixel came from."""
    weights = [SeamlessWeights.of(part, shape) for part in placed]
    image = Image(
        np.empty(shape, np.float32), np.empty(shape, np.uint16), np.empty(shape, np.float32)
    )
    few = len(placed) < 256
    origin: Origin = np.empty(shape, np.uint8) if few else np.empty(shape, np.uint16)
    assert image.variance is not None
    for first in range(0, shape[0], _ROWS):
        rows = slice(first, min(first + _ROWS, shape[0]))
        strip = _Strip(rows, shape[1], np.iinfo(origin.dtype).max)
        for index, (part, offset) in enumerate(zip(placed, offsets, strict=True)):
            strip.add(part, weights[index], float(offset), index, shared_noise)
        strip.finish(placed, offsets, shared_noise)
        image.data[rows], image.variance[rows] = strip.total, strip.noise
        image.mask[rows], origin[rows] = strip.flags, strip.origin
    empty = (image.mask & _NO_DATA) != 0
    if empty.any() and not empty.all():
        for plane in (image.data, image.variance):
            known = plane[~empty]
            plane[empty] = np.median(known[:: max(1, known.size // 100_000)])
    return image, origin


class _Strip:
    """Some rows of a mosaic while they are summed up; all that is needed at a time."""

    def __init__(self, rows: slice, width: int, nowhere: int) -> None:
        shape = rows.stop - rows.start, width
        self.rows = rows
        self.total, self.weights, self.noise, self.best = (
            np.zeros(shape, np.float32) for _ in range(4)
        )
        self.flags = np.zeros(shape, np.uint16)
        self.covered = np.zeros(shape, bool)
        self.origin = np.full(shape, nowhere, np.int32)

    def add(
        self, part: Placed, weights: SeamlessWeights, offset: float, index: int, shared_noise: bool
    ) -> None:
        """Add what an image has of these rows."""
        found = part.on_rows(self.rows)
        if found is None:
            return
        box, cut = found
        mask = part.image.mask[cut]
        weight = np.where(mask == 0, weights.on_rows(cut[0]), np.float32(0))
        self.total[box] += weight * (part.data(cut) - np.float32(offset))
        self.weights[box] += weight
        variance = part.variance(cut)
        self.noise[box] += weight * np.sqrt(variance) if shared_noise else weight**2 * variance
        self.flags[box] |= mask & ~_NO_DATA
        self.covered[box] |= (mask & _NO_DATA) == 0
        first = weight > self.best[box]
        self.origin[box][first] = index
        np.maximum(self.best[box], weight, out=self.best[box])

    def finish(
        self, placed: Sequence[Placed], offsets: npt.NDArray[np.float64], shared_noise: bool
    ) -> None:
        """Turn the sums into averages, and fill what is flagged in every image."""
        good = self.weights > 0
        safe = np.where(good, self.weights, np.float32(1))
        self.total /= safe
        self.noise /= safe
        if shared_noise:
            self.noise *= self.noise
        else:
            self.noise /= safe
        wanted = self.covered & ~good
        self.flags[~self.covered] |= _NO_DATA
        self.flags[good] = 0
        for index, (part, offset) in enumerate(zip(placed, offsets, strict=True)):
            if not wanted.any():
                return
            found = part.on_rows(self.rows)
            if found is None:
                continue
            box, cut = found
            take = wanted[box] & ((part.image.mask[cut] & _NO_DATA) == 0)
            self.total[box][take] = part.data(cut)[take] - np.float32(offset)
            self.noise[box][take] = part.variance(cut)[take]
            self.origin[box][take] = index
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
