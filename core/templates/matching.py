"""Bringing a template onto the science grid: noise, stars, shift, projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from astropy.wcs import WCS

from core.celestial import from_icrs, pixel_size, to_icrs
from core.errors import NoTemplate
from core.image import Image, MaskBit
from core.noise import measure_sky, with_noise
from core.psf import PSFModel, measure_psf
from core.registration import Places, Registration, register
from core.resample import resample
from core.stars import SourceList, find_sources, select_saturated, select_stars
from core.tangent import FloatArray
from core.templates.template import Template

MARGIN = 40  # pixels of the template kept around the exposure
_LATTICE = 17  # places along each axis of the exposure, at which the template is looked for
_TORN = 4.0  # times the median step from one to the next: there is a pole or an edge of the map
KERNEL_SHIFT = 0.5  # pixels per axis that are left to the matching kernel


@dataclass(frozen=True)
class GriddedTemplate:
    """A template on the science pixel grid, its sky removed.

    Attributes
    ----------
    image : Image
        Data without sky, variance, mask, and the PSF as it is on the science grid.
    fwhm : float
        Seeing in pixels of the science grid.
    sources : SourceList
        Its sources, positions on the science grid.
    shift : tuple of float
        (dx, dy) that was measured against the science image, pixels.
    shift_rms : float
        Scatter around it, photon noise taken out, pixels per axis.
    notes : tuple of str
        What a person should know.
    """

    image: Image
    fwhm: float
    sources: SourceList
    shift: tuple[float, float]
    shift_rms: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Projection:
    """A template on a pixel grid, before it is compared with one exposure of that grid.

    Attributes
    ----------
    image : Image
        Data without sky, variance, mask, and the PSF as it is on the grid.
    places : SourceList
        Its sources, where its own astrometry puts them on the grid.
    seeing : float
        Seeing of its stars in pixels of the grid.
    moved : tuple of float
        (dx, dy) of the stars of the exposure that it was projected for, taken out of the pixels:
        what ``places`` puts at (x, y) lies at (x - dx, y - dy).
    notes : tuple of str
        What a person should know.
    """

    image: Image
    places: SourceList
    seeing: float
    moved: tuple[float, float]
    notes: tuple[str, ...] = ()

    def shift_to(self, science: Image, science_sources: SourceList) -> Registration:
        """Measure where the stars of an exposure on this grid lie."""
        return _shift_between(science_sources, self.places, self.seeing, science)

    def still_fits(self, found: Registration) -> bool:
        """Return whether what is left of a shift is no more than the matching kernel takes up."""
        left = max(abs(found.dx - self.moved[0]), abs(found.dy - self.moved[1]))
        return found.matched == 0 or left <= KERNEL_SHIFT

    def matched(self, found: Registration) -> GriddedTemplate:
        """Return it as it lies against one exposure."""
        notes = list(self.notes)
        dx, dy = (found.dx, found.dy) if found.matched else self.moved
        if found.matched == 0:
            notes.append("too few common stars: the template's position was not checked")
        psf = self.image.psf
        assert psf is not None
        sources = replace(self.places, x=self.places.x - dx, y=self.places.y - dy)
        return GriddedTemplate(self.image, psf.fwhm, sources, (dx, dy), found.rms, tuple(notes))


def to_science_grid(
    template: Template, science: Image, science_sources: SourceList, *, threads: int = 1
) -> GriddedTemplate:
    """Measure the template's noise and stars, its shift, and project it once.

    The shift against the stars of the science image is measured from positions, before the
    projection, so that the pixels are interpolated a single time. A template that is already on
    the grid is not interpolated at all: it is moved by whole pixels, and the kernel takes up the
    rest.

    Parameters
    ----------
    template : Template
        On its own grid or on the science grid.
    science : Image
        Whose grid is wanted.
    science_sources : SourceList
        Sources of the science image.
    threads : int
        Threads for the projection.

    Raises
    ------
    core.errors.NoTemplate
        If nothing of the template lies on the science frame.
    """
    projection, found = project(template, science, science_sources, threads=threads)
    return projection.matched(found)


def project(
    template: Template, science: Image, science_sources: SourceList, *, threads: int = 1
) -> tuple[Projection, Registration]:
    """Do the work of `to_science_grid`; return what can serve other exposures, and the shift."""
    native = template.image if template.on_grid else cropped(template.image, science)
    sky = measure_sky(native)
    native = with_noise(native, sky)
    native = replace(native, data=native.data - sky.level)
    sources = find_sources(native.data, sky.rms, native.mask)
    stars = select_stars(sources)
    if template.on_grid:
        places, scale = sources, 1.0
    else:
        assert native.wcs is not None
        places, scale = _on_grid(sources, native.wcs, science.wcs)
    seeing = stars.fwhm * scale if np.isfinite(stars.fwhm) else science.facts.fwhm or 3.0
    notes = [] if np.isfinite(stars.fwhm) else ["no star on the template: its seeing is assumed"]
    found = _shift_between(science_sources, places, seeing, science)
    if template.on_grid:
        image = _moved_by_pixels(native, round(found.dx), round(found.dy))
    else:
        offset = _in_template_pixels(native.wcs, science, found)
        image = resample(native, science.wcs, science.shape, offset=offset, threads=threads)
    if not (image.mask & MaskBit.NO_DATA == 0).any():
        raise NoTemplate(f"template {native.name} has no usable pixel on the exposure")
    dx, dy = (round(found.dx), round(found.dy)) if template.on_grid else (found.dx, found.dy)
    psf = _psf_on_grid(image, places, (dx, dy), seeing)
    return Projection(replace(image, psf=psf), places, seeing, (dx, dy), tuple(notes)), found


def _psf_on_grid(
    image: Image, places: SourceList, moved: tuple[float, float], seeing: float
) -> PSFModel:
    """Measure the PSF as the projection left it: that of the difference, where it is the wider."""
    assert image.variance is not None
    moved_places = replace(places, x=places.x - moved[0], y=places.y - moved[1])
    stars = select_stars(moved_places)
    rms = np.sqrt(np.maximum(image.variance, 0))
    saturated = select_saturated(moved_places, image.mask)
    return measure_psf(image.data, rms, image.bad, stars.sources, seeing, saturated)


def _shift_between(
    science: SourceList, template: SourceList, fwhm: float, image: Image
) -> Registration:
    """Register on the clean bright sources of both; ``fwhm`` is the template's."""
    ours, theirs = _brightest(science, image.shape), _brightest(template, image.shape)
    return register(ours, theirs, max(fwhm, image.facts.fwhm or 3.0), image.shape)


def _brightest(sources: SourceList, shape: tuple[int, int], limit: int = 1500) -> Places:
    ny, nx = shape
    inside = (sources.x > -20) & (sources.y > -20) & (sources.x < nx + 20) & (sources.y < ny + 20)
    good = np.flatnonzero(sources.clean & inside & (sources.snr > 10))
    good = good[np.argsort(-sources.flux[good])][:limit]
    return Places(sources.x[good], sources.y[good], sources.snr[good])


def _on_grid(sources: SourceList, native: WCS, grid: WCS) -> tuple[SourceList, float]:
    """Return the sources with positions on another grid, and how much larger they look there."""
    if len(sources) == 0:
        return sources, 1.0
    x, y = from_icrs(grid, *to_icrs(native, sources.x, sources.y))
    finite = np.isfinite(x) & np.isfinite(y)
    scale = pixel_size(native) / pixel_size(grid)
    moved = replace(sources, x=np.asarray(x), y=np.asarray(y)).select(finite)
    return replace(moved, half_light=moved.half_light * scale), scale


def _in_template_pixels(
    native: WCS | None, science: Image, found: Registration
) -> tuple[float, float]:
    """Turn a displacement on the science grid into one on the template's, at the centre."""
    if found.matched == 0 or native is None or science.wcs is None:
        return 0.0, 0.0
    ny, nx = science.shape
    cx, cy = 0.5 * (nx - 1), 0.5 * (ny - 1)
    x, y = from_icrs(native, *to_icrs(science.wcs, [cx, cx + found.dx], [cy, cy + found.dy]))
    return float(x[1] - x[0]), float(y[1] - y[0])


def _moved_by_pixels(image: Image, dx: int, dy: int) -> Image:
    """Move an image by whole pixels so that what was at (x + dx, y + dy) lies at (x, y)."""
    if dx == 0 and dy == 0:
        return image
    ny, nx = image.shape
    data = np.zeros_like(image.data)
    mask = np.full_like(image.mask, MaskBit.NO_DATA)
    variance = None if image.variance is None else np.full_like(image.variance, 1.0)
    to = (slice(max(0, -dy), min(ny, ny - dy)), slice(max(0, -dx), min(nx, nx - dx)))
    of = (slice(max(0, dy), min(ny, ny + dy)), slice(max(0, dx), min(nx, nx + dx)))
    data[to], mask[to] = image.data[of], image.mask[of]
    if variance is not None and image.variance is not None:
        variance[:] = np.median(image.variance)
        variance[to] = image.variance[of]
    return replace(image, data=data, mask=mask, variance=variance)


def _torn(x: FloatArray, y: FloatArray) -> bool:
    """Return whether neighbouring places of a lattice are far apart on the template somewhere.

    A pole, or the edge of an all-sky map, lies in the frame or next to it then, and the frame is no
    single piece of the template.
    """
    steps = np.concatenate(
        [np.hypot(np.diff(x, axis=axis), np.diff(y, axis=axis)).ravel() for axis in (0, 1)]
    )
    steps = steps[np.isfinite(steps)]
    return bool(steps.size and steps.max() > _TORN * np.median(steps))


def cropped(image: Image, science: Image) -> Image:
    """Cut a template to the exposure's surroundings, so that its cost does not follow its size.

    Raises
    ------
    core.errors.NoTemplate
        If the exposure lies outside.
    """
    if image.wcs is None or science.wcs is None:
        return image
    ny, nx = science.shape
    # All over the frame: what lies farthest out on the template need not be at the frame's edge.
    columns, rows = np.linspace(0, nx - 1, _LATTICE), np.linspace(0, ny - 1, _LATTICE)
    lattice = [plane.ravel() for plane in np.meshgrid(columns, rows)]
    x, y = from_icrs(image.wcs, *to_icrs(science.wcs, *lattice))
    good = np.isfinite(x) & np.isfinite(y)
    if good.sum() < 8:
        return image
    if _torn(x.reshape(_LATTICE, _LATTICE), y.reshape(_LATTICE, _LATTICE)):
        return image
    height, width = image.shape
    x0, x1 = int(x[good].min()) - MARGIN, int(x[good].max()) + MARGIN + 1
    y0, y1 = int(y[good].min()) - MARGIN, int(y[good].max()) + MARGIN + 1
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise NoTemplate(f"template {image.name} does not overlap the exposure")
    x0, y0, x1, y1 = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
    if (x1 - x0) * (y1 - y0) > 0.8 * width * height:
        return image
    box = (slice(y0, y1), slice(x0, x1))
    return replace(
        image,
        data=np.ascontiguousarray(image.data[box]),
        mask=np.ascontiguousarray(image.mask[box]),
        variance=None if image.variance is None else np.ascontiguousarray(image.variance[box]),
        wcs=image.wcs[box],
    )
