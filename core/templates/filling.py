"""What one template leaves bare of an exposure, taken from another.

The pixels of the first stay as they are; only where it has no data over a larger area do those of
the other come in, brought to its zero point and its background. Nothing is blended: where two
templates meet the seeing changes at once, and which pixel is whose is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from scipy.ndimage import maximum_filter, minimum_filter

from core.bands import canonical_band
from core.celestial import from_icrs, to_icrs
from core.errors import UnusableInput
from core.image import Image, MaskBit, MaskImage
from core.pixel_mapping import sky_mapping
from core.templates.combining import grid_around
from core.templates.epochs import Epochs, as_facts
from core.templates.index import Frame
from core.templates.mosaic.backgrounds import background_offsets
from core.templates.mosaic.placing import Placed, place
from core.templates.template import Template, TemplateRequest

WHOLE = 0.99  # of the exposure: what is left is not worth another request
_LEAST_PART = 0.05  # of what is bare, that another template must cover
_PLACES = 65  # along each axis of the exposure, at which it is looked for what is bare
_OVERLAP = 0.05  # of the exposure around what is bare: backgrounds are compared there
_SMALLEST_GAP = 33  # pixels; the core of a saturated star is no gap
_ROWS = 256

Origin = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Filling:
    """How templates are filled.

    Attributes
    ----------
    max_pixels : int
        Larger templates are left as they are.
    threads : int
        For interpolation.
    """

    max_pixels: int = 20_000 * 20_000
    threads: int = 1


def bare_request(template: Template, request: TemplateRequest) -> TemplateRequest | None:
    """Return the request for the part of an exposure that a template leaves bare.

    Parameters
    ----------
    template : Template
        Not on the grid of the exposure.
    request : TemplateRequest
        For the exposure.

    Returns
    -------
    TemplateRequest or None
        For the smallest box around what is bare, a little larger; None where nothing is.
    """
    if request.wcs is None or template.on_grid or template.image.wcs is None:
        return None
    ny, nx = request.shape
    x, y, bare = _bare_places(template.image, request)
    if bare.mean() <= 1 - WHOLE:
        return None
    if _has_tables(request.wcs):  # which astropy does not cut
        return replace(request, min_overlap=_LEAST_PART)
    spans = []
    for places, length in ((y[bare], ny), (x[bare], nx)):
        more = length / (_PLACES - 1) + _OVERLAP * length
        first = max(0, math.floor(places.min() - more))
        spans.append(slice(first, min(length, math.ceil(places.max() + more) + 1)))
    box = spans[0], spans[1]
    shape = box[0].stop - box[0].start, box[1].stop - box[1].start
    return replace(request, wcs=request.wcs[box], shape=shape, min_overlap=_LEAST_PART)


def mismatch(template: Template, other: Template) -> str | None:
    """Return why one template cannot be filled from another; None where it can."""
    for each in (template, other):
        if each.image.facts.zero_point is None:
            return f"{each.facts.template_id} has no zero point"
    bands = [canonical_band(each.facts.band) for each in (template, other)]
    if bands[0] is None or bands[0] != bands[1]:
        return f"{other.facts.template_id} is of band {bands[1] or '(unknown)'}, not {bands[0]}"
    return None


def filled(
    template: Template, other: Template, request: TemplateRequest, filling: Filling
) -> Template:
    """Return a template with its bare part taken from another.

    Parameters
    ----------
    template, other : Template
        Of one band and with zero points (see `mismatch`).
    request : TemplateRequest
        For the exposure.
    filling : Filling

    Returns
    -------
    Template
        On the pixels of the first, continued over the exposure; its ``identity`` is empty.

    Raises
    ------
    core.errors.UnusableInput
        If it would be too large, or the other adds nothing.
    """
    assert request.wcs is not None
    frame = Frame.of(request.wcs, request.shape)
    wcs, shape = grid_around(template.image, frame, max_pixels=filling.max_pixels)
    target = template.image.facts.zero_point
    placed = [
        part
        for image in (template.image, other.image)
        if (part := place(image, wcs, shape, target, filling.threads)) is not None
    ]
    if len(placed) < 2:
        raise UnusableInput(f"{other.facts.template_id} has nothing of what is bare")
    first, second = placed
    offsets = background_offsets(placed)
    image = _laid_out(first, wcs, shape)
    taken = _fill(image, second, float(offsets[1] - offsets[0]))
    if not taken.any():
        raise UnusableInput(f"{other.facts.template_id} has nothing of what is bare")
    _even_out(image)
    sources, origin = _origins(template, other, image, taken, shape)
    share = 1 - float(_bare_places(image, request)[2].mean())
    note = (
        f"{100 * (share - template.facts.overlap):.0f} % of the exposure are filled from "
        f"{other.facts.provider} {other.facts.template_id}, of another seeing"
    )
    spans = Epochs.spanning([_epochs(template), _epochs(other)])
    return Template(
        image=replace(image, notes=(*template.image.notes, note)),
        facts=replace(
            template.facts,
            template_id=f"{template.facts.template_id} + {other.facts.template_id}",
            overlap=share,
            **as_facts(spans),
        ),
        sources=sources,
        origin=origin,
    )


def _bare_places(
    image: Image, request: TemplateRequest
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return x and y of places all over an exposure, and at which an image has no data."""
    assert image.wcs is not None
    assert request.wcs is not None
    height, width = request.shape
    rows, columns = np.linspace(0, height - 1, _PLACES), np.linspace(0, width - 1, _PLACES)
    y, x = (each.ravel() for each in np.meshgrid(rows, columns, indexing="ij"))
    ny, nx = image.shape
    theirs_x, theirs_y = from_icrs(image.wcs, *to_icrs(request.wcs, x, y))
    with np.errstate(invalid="ignore"):
        inside = (theirs_x > -0.5) & (theirs_x < nx - 0.5)
        inside &= (theirs_y > -0.5) & (theirs_y < ny - 0.5)
    row, column = (np.rint(each[inside]).astype(int) for each in (theirs_y, theirs_x))
    bare = np.ones(inside.shape, dtype=bool)
    bare[inside] = (image.mask[row, column] & MaskBit.NO_DATA) != 0
    return x, y, bare


def _has_tables(wcs: WCS) -> bool:
    return any(each is not None for each in (wcs.cpdis1, wcs.cpdis2, wcs.det2im1, wcs.det2im2))


def _laid_out(part: Placed, wcs: WCS, shape: tuple[int, int]) -> Image:
    """Return an image on a whole grid, `MaskBit.NO_DATA` where it does not lie."""
    image = replace(
        part.image,
        data=np.zeros(shape, np.float32),
        mask=np.full(shape, MaskBit.NO_DATA, np.uint16),
        variance=np.ones(shape, np.float32),
        wcs=wcs,
    )
    box, whole = (part.rows, part.columns), (slice(None), slice(None))
    assert image.variance is not None
    image.data[box], image.variance[box] = part.data(whole), part.variance(whole)
    image.mask[box] = part.image.mask
    return image


def _fill(image: Image, part: Placed, offset: float) -> npt.NDArray[np.bool_]:
    """Put a part into the gaps of an image, in place; return where that was."""
    box, whole = (part.rows, part.columns), (slice(None), slice(None))
    taken = np.zeros(image.shape, dtype=bool)
    taken[box] = _gaps(image.mask)[box] & ((part.image.mask & MaskBit.NO_DATA) == 0)
    inside = taken[box]
    assert image.variance is not None
    image.data[box][inside] = part.data(whole)[inside] - np.float32(offset)
    image.variance[box][inside] = part.variance(whole)[inside]
    image.mask[box][inside] = part.image.mask[inside]
    return taken


def _gaps(mask: MaskImage) -> npt.NDArray[np.bool_]:
    """Return where there are no data over at least a square of `_SMALLEST_GAP`."""
    bare = ((mask & MaskBit.NO_DATA) != 0).astype(np.uint8)
    # What lies beyond the grid is bare too, so that a strip along its edge is a gap.
    eroded = minimum_filter(bare, _SMALLEST_GAP, mode="constant", cval=1)
    opened = maximum_filter(eroded, _SMALLEST_GAP, mode="constant", cval=0)
    return np.asarray((opened != 0) & (bare != 0))


def _even_out(image: Image) -> None:
    """Fill what is left bare with something finite, as everywhere."""
    empty = (image.mask & MaskBit.NO_DATA) != 0
    assert image.variance is not None
    if empty.any():
        for plane in (image.data, image.variance):
            known = plane[~empty]
            plane[empty] = np.median(known[:: max(1, known.size // 100_000)])


def _origins(
    template: Template,
    other: Template,
    image: Image,
    taken: npt.NDArray[np.bool_],
    shape: tuple[int, int],
) -> tuple[tuple[str, ...], Origin]:
    """Return the names of all sources, and which of them each pixel is of."""
    own, theirs = (each.sources or (each.facts.template_id,) for each in (template, other))
    sources = *own, *theirs
    few = len(sources) < 256
    origin: Origin = np.full(shape, 255, np.uint8) if few else np.full(shape, 65535, np.uint16)
    has_data = (image.mask & MaskBit.NO_DATA) == 0
    for each, first, where in (
        (template, 0, has_data & ~taken),
        (other, len(own), has_data & taken),
    ):
        _carry_origin(each, first, image, where, origin)
    return sources, origin


def _carry_origin(
    template: Template, first: int, image: Image, where: npt.NDArray[np.bool_], origin: Origin
) -> None:
    """Note which of a template's sources some pixels are of; the numbers begin at ``first``."""
    if template.origin is None:
        origin[where] = first
        return
    assert image.wcs is not None
    assert template.image.wcs is not None
    ny, nx = template.image.shape
    nowhere = np.iinfo(template.origin.dtype).max
    mapping = sky_mapping(image.wcs, image.shape, template.image.wcs, template.image.shape)
    for row in range(0, image.shape[0], _ROWS):
        rows = slice(row, min(row + _ROWS, image.shape[0]))
        x, y, _ = mapping.rows(rows.start, rows.stop)
        wanted = where[rows] & np.isfinite(x) & np.isfinite(y)
        column = np.clip(np.rint(x[wanted]).astype(int), 0, nx - 1)
        line = np.clip(np.rint(y[wanted]).astype(int), 0, ny - 1)
        of = template.origin[line, column].astype(np.int64)
        values = np.where(of == nowhere, np.iinfo(origin.dtype).max, of + first)
        origin[rows][wanted] = values.astype(origin.dtype)


def _epochs(template: Template) -> Epochs | None:
    first, last = template.facts.mjd_first, template.facts.mjd_last
    return None if first is None or last is None else Epochs(first, last)
