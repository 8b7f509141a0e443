"""The cells that a survey cuts the sky into: what a cell is, and its pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.wcs import WCS

from core.asinh import AsinhScale
from core.celestial import from_icrs
from core.errors import UnusableInput
from core.fitsfile import card, open_fits
from core.headerfacts import read_facts
from core.image import FloatImage, Image, MaskBit
from core.reading import read_wcs
from core.templates.cells.survey_bits import Bits, SurveyBits
from core.templates.epochs import Epochs

MARGIN = 60  # pixels of a cell that are kept around the exposure


_OLD_KEYWORDS = {f"PC00{i}00{j}": f"PC{i}_{j}" for i in (1, 2) for j in (1, 2)}
MAX_PIXELS = 20_000 * 20_000
Box = tuple[slice, slice]
Path = str | os.PathLike[str]


def stated_epochs(header: Header) -> Epochs | None:
    """Return the epochs that the header of a cell states."""
    return Epochs.of_headers((header,))


@dataclass(frozen=True)
class Cell:
    """A piece of a survey's sky in one band, and where its planes are.

    Attributes
    ----------
    name : str
        As the survey calls it.
    image, noise, mask : str
        URLs.
    otherwise : Cell or None
        Where to look if the archive has no such file.
    """

    name: str
    image: str
    noise: str
    mask: str
    otherwise: Cell | None = None


@dataclass(frozen=True)
class CellFormat:
    """How a survey stores its cells.

    Attributes
    ----------
    noise : {'variance', 'weight'}
        What the noise plane holds: variance, or inverse variance. An asinh scale in its own header
        is undone.
    bits : SurveyBits
        Of the mask plane.
    zero_point : float or None
        AB magnitude of one unit; None to read it from each header.
    frame : str
        RADESYS of headers that have none.
    epochs : callable
        Given the header of an image plane, returns its epochs.
    """

    noise: Literal["variance", "weight"]
    bits: SurveyBits
    zero_point: float | None = None
    frame: str = "ICRS"
    epochs: Callable[[Header], Epochs | None] = stated_epochs


@dataclass(frozen=True)
class CellImage:
    """The pixels of a cell, or of a part of it.

    Attributes
    ----------
    image : Image
        Linear fluxes, variance, flags.
    bits : ndarray of int32, shape (ny, nx), or None
        The survey's own mask, where it was kept.
    n_frames : int
        Exposures that it was made of; 1 where that is not known.
    epochs : Epochs or None
        When they were taken, if that is stated.
    """

    image: Image
    bits: Bits | None
    n_frames: int = 1
    epochs: Epochs | None = None


@dataclass(frozen=True)
class _Plane:
    """An image as stored, with its header."""

    path: Path
    header: Header
    shape: tuple[int, int]
    hdu: int

    @classmethod
    def of(cls, path: Path) -> _Plane:
        file = open_fits(path, max_pixels=0)
        hdu = next((h for h in file.hdus if h.is_image), None)
        if hdu is None:
            raise UnusableInput(f"{file.path}: holds no two-dimensional image")
        return cls(path, hdu.header, hdu.shape, hdu.index)

    def pixels(self, box: Box) -> npt.NDArray[np.generic]:
        """Return the physical values of a part, in native byte order."""
        file = open_fits(self.path, max_pixels=MAX_PIXELS)
        return np.ascontiguousarray(file.pixels(file.hdus[self.hdu])[box])


def read_cell(
    files: tuple[Path, Path, Path],
    name: str,
    layout: CellFormat,
    around: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
) -> CellImage | None:
    """Read a cell, or the part of it that lies around some places.

    Parameters
    ----------
    files : tuple of path
        Image, noise and mask plane.
    name : str
        Of the cell.
    layout : CellFormat
        How the planes are stored.
    around : (ra, dec) or None
        Places in degrees, ICRS; the smallest box that holds them, with a margin, is read. None for
        the whole cell.

    Returns
    -------
    CellImage or None
        None where no place lies on the cell, or near it.

    Raises
    ------
    core.errors.UnusableInput
        If a plane cannot be read, the planes have different shapes, or WCS or zero point are
        missing.
    """
    planes = [_Plane.of(path) for path in files]
    image, noise, mask = planes
    if not image.shape == noise.shape == mask.shape:
        raise UnusableInput(
            f"{name}: image, noise and mask have the shapes {image.shape}, {noise.shape} and "
            f"{mask.shape}; fetch the cell again"
        )
    wcs = cell_wcs(image.header, name, layout)
    box = (slice(0, image.shape[0]), slice(0, image.shape[1]))
    if around is not None:
        found = box_around(wcs, image.shape, *around)
        if found is None:
            return None
        box = found
    data = _linear(image.pixels(box), image.header)
    variance = _variance(_linear(noise.pixels(box), noise.header), layout)
    bits = _bits(mask.pixels(box))
    part = as_image(data, variance, bits, layout)
    facts = read_facts((image.header,)).facts
    if layout.zero_point is not None:
        facts = replace(facts, zero_point=layout.zero_point, zero_point_origin="header")
    if facts.zero_point is None:
        raise UnusableInput(f"{name}: its header states no zero point, or no exposure time")
    frames = card(image.header, "NINPUTS")
    return CellImage(
        replace(part, wcs=shifted(wcs, box), facts=replace(facts, mjd_mid=None), name=name),
        bits,
        n_frames=frames if isinstance(frames, int) and frames > 0 else 1,
        epochs=layout.epochs(image.header),
    )


def touches(
    path: Path, name: str, layout: CellFormat, around: tuple[npt.ArrayLike, npt.ArrayLike]
) -> bool:
    """Return whether some place lies on a cell or near it, as the header of its image says."""
    return box_around(*footprint(path, name, layout), *around) is not None


def footprint(path: Path, name: str, layout: CellFormat) -> tuple[WCS, tuple[int, int]]:
    """Return WCS and shape (ny, nx) of a cell, as the header of its image says."""
    plane = _Plane.of(path)
    return cell_wcs(plane.header, name, layout), plane.shape


def cell_wcs(header: Header, name: str, layout: CellFormat) -> WCS:
    """Return the WCS of a cell; old keywords such as ``PC001001`` are understood."""
    header = header.copy()
    if not card(header, "RADESYS"):
        header["RADESYS"] = layout.frame
    # astropy understands them too, but warns at every one of them.
    for old, new in _OLD_KEYWORDS.items():
        if old in header and new not in header:
            header.rename_keyword(old, new)
    wcs = read_wcs(header, name)
    assert wcs is not None  # it is required
    return wcs


def box_around(
    wcs: WCS, shape: tuple[int, int], ra: npt.ArrayLike, dec: npt.ArrayLike, margin: int = MARGIN
) -> Box | None:
    """Return the rows and columns that hold some places, with a margin; None where none do."""
    x, y = from_icrs(wcs, ra, dec)
    fine = np.isfinite(x) & np.isfinite(y)
    if not fine.any():
        return None
    spans = []
    for places, length in ((y[fine], shape[0]), (x[fine], shape[1])):
        first = max(0, math.floor(places.min()) - margin)
        last = min(length, math.ceil(places.max()) + margin + 1)
        if first >= last:
            return None
        spans.append(slice(first, last))
    return spans[0], spans[1]


def shifted(wcs: WCS, box: Box, bins: int = 1) -> WCS:
    """Return the WCS of a part of an image, whose pixels may be binned.

    Parameters
    ----------
    wcs : WCS
        Without distortions.
    box : (slice, slice)
        Rows and columns; their starts may be negative.
    bins : int
        So many pixels of each axis become one.
    """
    part = wcs.deepcopy()
    # FITS counts pixels from 1, and the middle of the first bin lies (bins - 1) / 2 further on.
    part.wcs.crpix = [
        (part.wcs.crpix[axis] - box[1 - axis].start - 0.5) / bins + 0.5 for axis in (0, 1)
    ]
    if bins > 1:
        if part.wcs.has_cd():
            part.wcs.cd = part.wcs.cd * bins
        else:
            part.wcs.cdelt = part.wcs.cdelt * bins
    part.pixel_shape = None
    part.wcs.set()
    return part


def _linear(stored: npt.NDArray[np.generic], header: Header) -> FloatImage:
    scale = AsinhScale.from_header(header)
    return stored.astype(np.float32) if scale is None else scale.linear(stored)


def _variance(noise: FloatImage, layout: CellFormat) -> FloatImage:
    """Return the variance, NaN where there is none."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        variance = 1 / noise if layout.noise == "weight" else noise
        return np.where((noise > 0) & np.isfinite(variance), variance, np.float32(np.nan))


def _bits(stored: npt.NDArray[np.generic]) -> Bits:
    if stored.dtype.kind == "f":  # the archive's cutouts of masks hold NaN for zero
        stored = np.nan_to_num(stored)
    return stored.astype(np.int32)


def as_image(data: FloatImage, variance: FloatImage, bits: Bits, layout: CellFormat) -> Image:
    """Return an image of planes: what is missing is flagged, and filled with something finite.

    Parameters
    ----------
    data, variance : ndarray of float32, shape (ny, nx)
        Linear; NaN where there is none. Changed in place.
    bits : ndarray of int32, shape (ny, nx)
        The survey's mask.
    layout : CellFormat
    """
    mask = layout.bits.decoded(bits)
    missing = ~(np.isfinite(data) & np.isfinite(variance))
    mask[missing] |= np.uint16(MaskBit.NO_DATA)
    holes = (mask & MaskBit.NO_DATA) != 0
    if holes.any():
        for plane, empty in ((data, 0.0), (variance, 1.0)):
            known = plane[~holes]
            plane[holes] = (
                np.median(known[:: max(1, known.size // 100_000)]) if (known.size) else empty
            )
    return Image(np.ascontiguousarray(data), mask, np.ascontiguousarray(variance))
