"""Cells with fewer, larger pixels, and the files in which they are kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from core.errors import UnusableInput
from core.fitsfile import card, open_fits
from core.headerfacts import read_facts
from core.image import MaskBit
from core.templates.cells.cell import (
    MAX_PIXELS,
    CellFormat,
    CellImage,
    Path,
    as_image,
    box_around,
    cell_wcs,
    shifted,
    stated_epochs,
)

_BAD_SHARE = 0.125  # of the pixels of a bin, for which the others make up: one of nine


def binned(cell: CellImage, bins: int, layout: CellFormat) -> CellImage:
    """Return a cell with ``bins`` x ``bins`` pixels made one.

    Fluxes add up (so that the zero point stays), and so do their variances. Bad pixels never enter
    the sums. Where they are no more than an eighth of a bin the others make up for them, and the
    bin is good; its variance is that much larger. Elsewhere, and wherever a pixel is saturated, the
    bin takes over their bits; its value is still that of the others where those are the majority,
    and none where too many are missing.
    The bits that are no defects are all kept. Bins begin at the reference pixel, so that the bins
    of all cells of one projection lie on one grid.
    """
    image = cell.image
    assert cell.bits is not None
    assert image.wcs is not None
    assert image.variance is not None
    starts = [math.floor(image.wcs.wcs.crpix[axis] - 1) % bins for axis in (1, 0)]
    counts = [(length - start) // bins for length, start in zip(image.shape, starts, strict=True)]
    if min(counts) < 1:
        raise UnusableInput(f"{image.name}: is smaller than one bin of {bins} pixels")
    box = (
        slice(starts[0], starts[0] + counts[0] * bins),
        slice(starts[1], starts[1] + counts[1] * bins),
    )

    def blocks(plane: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return plane[box].reshape(counts[0], bins, counts[1], bins)

    pixels = bins * bins
    good = blocks(image.mask == 0)
    there = blocks((image.mask & MaskBit.NO_DATA) == 0)
    number = good.sum(axis=(1, 3))
    saturated = blocks((image.mask & MaskBit.SATURATED) != 0).any(axis=(1, 3))
    lost = ((pixels - number) > _BAD_SHARE * pixels) | saturated
    # A flagged value is better than none where there are few good ones: it only has to be smooth.
    use = np.where((number * 2 > pixels)[:, None, :, None], good, there)
    used = use.sum(axis=(1, 3))
    part = (np.float32(pixels) / np.maximum(used, 1)).astype(np.float32)
    missing = pixels - there.sum(axis=(1, 3))
    enough = (used * 2 > pixels) & (missing <= _BAD_SHARE * pixels)
    data, variance = (
        np.where(enough, np.where(use, blocks(plane), 0).sum(axis=(1, 3)) * part, np.nan)
        for plane in (image.data, image.variance)
    )
    variance *= part
    # Bits that are no defects are all kept, those of bad pixels where their bin is lost.
    kept = np.where(good | lost[:, None, :, None], blocks(cell.bits), 0)
    bits = np.bitwise_or.reduce(np.bitwise_or.reduce(kept, 3), 1)
    small = as_image(data.astype(np.float32), variance.astype(np.float32), bits, layout)
    facts = image.facts
    return replace(
        cell,
        image=replace(small, wcs=shifted(image.wcs, box, bins), facts=facts, name=image.name),
        bits=bits,
    )


def write_cell(cell: CellImage, path: Path) -> None:
    """Write a cell as one file of three extensions, for `read_written_cell`."""
    image = cell.image
    assert image.wcs is not None
    header = image.wcs.to_header()
    facts, epochs = image.facts, cell.epochs
    for keyword, value in (
        ("MJD-BEG", None if epochs is None else epochs.first),
        ("MJD-END", None if epochs is None else epochs.last),
        ("ZP", facts.zero_point),
        ("EXPTIME", facts.exposure_time),
        ("GAIN", facts.gain),
        ("BAND", facts.band),
        ("NINPUTS", cell.n_frames),
    ):
        if value is not None:
            header[keyword] = value
    data = np.where((image.mask & MaskBit.NO_DATA) != 0, np.float32(np.nan), image.data)
    fits.HDUList(
        [
            fits.PrimaryHDU(data, header),
            fits.ImageHDU(image.variance, name="VARIANCE"),
            fits.ImageHDU(cell.bits, name="BITS"),
        ]
    ).writeto(path, overwrite=True, output_verify="silentfix")


def read_written_cell(
    path: Path,
    name: str,
    layout: CellFormat,
    around: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> CellImage | None:
    """Read what `write_cell` wrote; parameters as `read_cell`."""
    file = open_fits(path, max_pixels=MAX_PIXELS)
    data, variance, bits = file.hdus[:3]
    wcs = cell_wcs(data.header, name, layout)
    box = (slice(0, data.shape[0]), slice(0, data.shape[1]))
    if around is not None:
        found = box_around(wcs, data.shape, *around)
        if found is None:
            return None
        box = found
    planes = [np.ascontiguousarray(file.pixels(hdu)[box]) for hdu in (data, variance, bits)]
    image = as_image(planes[0], planes[1], planes[2], layout)
    facts = read_facts((data.header,)).facts
    frames = card(data.header, "NINPUTS")
    return CellImage(
        replace(image, wcs=shifted(wcs, box), facts=replace(facts, mjd_mid=None), name=name),
        planes[2],
        n_frames=frames if isinstance(frames, int) else 1,
        epochs=stated_epochs(data.header),
    )
