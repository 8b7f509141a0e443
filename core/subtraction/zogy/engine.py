"""ZOGY: proper image subtraction, with PSFs, flux scale and shift that vary over the frame.

The method is that of Zackay, Ofek & Gal-Yam 2016 (ApJ 830, 27). It needs no matching kernel: it
takes both PSFs as known and gives the statistic that no other linear one exceeds for finding a
point source that is in one image and not in the other. Neither image is ever deconvolved, and it
does not matter which of them is sharper.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.fft

from core.errors import SubtractionFailed
from core.image import FloatImage, MaskBit
from core.stars import SourceList
from core.subtraction.convolve import compiled_threads
from core.subtraction.difference import Difference
from core.subtraction.finish import assemble
from core.subtraction.pair import Pair
from core.subtraction.quality import EngineFacts, quality_of
from core.subtraction.zogy.boxes import star_boxes
from core.subtraction.zogy.difference_psf import psf_of_difference
from core.subtraction.zogy.images import KnownImage, filled, floors, known
from core.subtraction.zogy.mask import disturbed, holes_of, joined_mask, reach_of
from core.subtraction.zogy.matching import (
    Matching,
    MatchingOptions,
    aperture_scale,
    match,
    rematch,
)
from core.subtraction.zogy.refinement import Refinement, refine, remaining_error
from core.subtraction.zogy.sky import remove_local_sky, remove_smooth_sky, sky_variance
from core.subtraction.zogy.sources import constant_sources, stars_of, unchanged_stars
from core.subtraction.zogy.tiles import ProperPlanes, TileGrid, TileInputs, subtract_tiles
from core.subtraction.zogy.transform import NOISELESS

log = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
TILE = 512  # pixels: the side of a tile that is not given
DOUBTFUL = 0.02  # error of the matching, from which on other PSFs are tried
OF_NEIGHBOURS = 0.05  # of the light in an aperture, where sources are many


@dataclass(frozen=True)
class ZogySettings:
    """Options of the engine; None lets it choose from the images.

    Attributes
    ----------
    tiles : tuple of int, optional
        Number of tiles along y and x; of about 512 pixels a side when None.
    border : int, optional
        Pixels around a tile that are transformed with it and thrown away; one and a half PSF
        stamps when None.
    fit_scale, fit_shift : bool
        Measure the flux scale, and the shift, on the stars.
    scale : float
        Science ADU per template ADU where it is not fitted.
    flux_order, shift_order, background_order : int
        Polynomial orders over the frame; lowered where there are too few stars to hold them.
    fit_psf : bool
        Fit the PSFs that were measured (not those that were given without stars) to the pixels of
        the stars once more (`core.subtraction.zogy.psf_fit`).
    psf_error : float
        Relative error of fluxes that comes with the PSFs, for the quality.
    refine : bool
        Take out of the PSF models what they leave on the stars
        (`core.subtraction.zogy.refinement`).
    astrometric_error : tuple of float, optional
        (x, y) registration noise, pixels; what was measured on the stars when None.
    """

    tiles: tuple[int, int] | None = None
    border: int | None = None
    fit_scale: bool = True
    fit_shift: bool = True
    scale: float = 1.0
    flux_order: int = 2
    shift_order: int = 2
    background_order: int = 2
    fit_psf: bool = True
    psf_error: float = 0.0
    refine: bool = True
    astrometric_error: tuple[float, float] | None = None


@dataclass(frozen=True)
class ZogyResult:
    """What only this engine has; planes are ndarray of float32, shape (ny, nx).

    Attributes
    ----------
    information : F_S, inverse variance of ``flux`` where there is nothing but sky, 1 / ADU²
    significance : S_corr (equation 25): S over its noise, the sources' photons, the registration
        noise and the measured error of the matching included; unit variance on blank sky
    flux, flux_err : F_psf and its 1-sigma error, science ADU
    matching : flux scale and shift
    refinement : what was added to the PSF models, or None
    grid : the tiles
    """

    information: FloatImage
    significance: FloatImage
    flux: FloatImage
    flux_err: FloatImage
    matching: Matching
    refinement: Refinement | None
    grid: TileGrid

    @property
    def score(self) -> FloatImage:
        """S, the matched-filter statistic (equation 17), 1 / ADU."""
        return self.information * self.flux


def subtract(pair: Pair, settings: ZogySettings | None = None, *, threads: int = 1) -> Difference:
    """Subtract the template properly.

    Parameters
    ----------
    pair : Pair
        Both images on one grid, sky-subtracted. Their PSF models are used; a Gaussian of the
        given seeing where there is none.
    settings : ZogySettings, optional
        Options.
    threads : int
        Tiles that are worked on at a time.

    Returns
    -------
    Difference
        ``data`` is D times the noise that gives it the zero-frequency gain of the science image:
        science ADU, white noise on blank sky. ``psf`` is P_D. ``convolved`` is the template's part
        in D, brought to that PSF; it is *not* ``science - data``, since the science image is
        filtered too. ``kernel`` is a `ZogyResult`.

    Raises
    ------
    core.errors.SubtractionFailed
        If the masks leave nothing, or no star tells how the images match.
    """
    settings = settings or ZogySettings()
    started = time.perf_counter()
    with compiled_threads(threads):
        with scipy.fft.set_workers(threads):
            matched = _better_match(pair, settings)
        matched.matching.check_flux_scale()
        science, template = floors(matched.science, matched.template, matched.typical_scale)
        inputs, grid = _inputs(science, template, settings, matched.matching, threads)
        planes = subtract_tiles(inputs, grid, threads=threads)
        return _finish(pair, settings, inputs, grid, planes, matched, started)


@dataclass(frozen=True)
class _Matched:
    science: KnownImage
    template: KnownImage
    matching: Matching
    refinement: Refinement | None
    error: float  # of what is subtracted, relative to it
    doubt: float  # what else may be wrong with it, on the few brightest sources

    @property
    def typical_scale(self) -> float:
        ny, nx = self.matching.shape
        return float(self.matching.flux_scale_at(0.5 * (nx - 1), 0.5 * (ny - 1)))


def _check(science: KnownImage, template: KnownImage) -> None:
    if science.variance is None:
        raise SubtractionFailed(f"{science.name}: ZOGY needs the noise of the science image")
    if (~(science.bad | template.bad)).mean() < 0.005:
        raise SubtractionFailed(
            "the masks leave no usable pixel that both images share; check the masks"
        )


def _better_match(pair: Pair, settings: ZogySettings) -> _Matched:
    """Match with PSFs that are fitted once more; where that is doubtful, as they were measured too.

    In a crowded field the stars of the science image are blends on a sharper template, and the sky
    under them is not that around them: there the PSFs that were measured on each image's own stars
    may be the better ones.
    """
    first = _match(pair, settings, fit_psf=settings.fit_psf)
    if not settings.fit_psf or first.doubt < DOUBTFUL:
        return first
    second = _match(pair, settings, fit_psf=False)
    return second if second.doubt < first.doubt else first


def _match(pair: Pair, settings: ZogySettings, *, fit_psf: bool) -> _Matched:
    """Measure flux scale and shift, and what is wrong with the PSFs, on the stars."""
    stars = stars_of(pair).sources if fit_psf else None
    science = known(pair.science, pair.science_fwhm, stars)
    template = known(pair.template, pair.template_fwhm, stars, pair.shift)
    _check(science, template)
    options = MatchingOptions(
        fit_scale=settings.fit_scale,
        fit_shift=settings.fit_shift,
        scale=settings.scale,
        flux_order=settings.flux_order,
        shift_order=settings.shift_order,
    )
    sources, many = constant_sources(pair, template)
    boxes = star_boxes(science, template, sources)
    matching = match(boxes, options, science.shape)
    if settings.fit_scale and matching.stars_used == 0:
        raise SubtractionFailed(
            "no star is whole and unmasked in both images: the flux scale cannot be measured"
        )
    refinement = None
    if settings.refine and boxes is not None:
        refinement = refine(boxes, matching, max(science.psf.fwhm, template.psf.fwhm))
        if refinement is not None:
            science, template = refinement.applied(science, template)
            boxes = boxes.with_psfs(science, template)
            matching = rematch(boxes, options, matching)
    left = off = 0.0
    if boxes is not None:
        left = remaining_error(boxes, matching)
        if settings.fit_scale:
            off = _against_apertures(science, template, sources, matching)
            off -= OF_NEIGHBOURS if many else 0.0
    # where stars are many, all of them tell better than the brightest what is left (`assemble`)
    known_error = max(off, 0.0) if many else max(off, left)
    return _Matched(science, template, matching, refinement, known_error, max(off, left))


def _against_apertures(
    science: KnownImage, template: KnownImage, sources: SourceList, matching: Matching
) -> float:
    """How far the flux scale is from that of plain apertures, beyond what these are good for."""
    dx, dy = matching.shift_at(0.5 * matching.shape[1], 0.5 * matching.shape[0])
    scale, error = aperture_scale(science, template, sources, (float(dx), float(dy)))
    if not np.isfinite(error):
        return 0.0
    off = abs(float(np.median(matching.flux_scales())) / scale - 1)
    return max(off - 2 * error, 0.0)


def _inputs(
    science: KnownImage,
    template: KnownImage,
    settings: ZogySettings,
    matching: Matching,
    threads: int,
) -> tuple[TileInputs, TileGrid]:
    ny, nx = science.shape
    tiles = settings.tiles or (max(1, round(ny / TILE)), max(1, round(nx / TILE)))
    border = settings.border
    if border is None:
        border = int(1.5 * max(science.psf.size, template.psf.size))
    grid = TileGrid((ny, nx), (min(tiles[0], ny), min(tiles[1], nx)), border)
    science_noise = _tile_noise(science, grid)
    template_noise = _tile_noise(template, grid)
    if template.variance is None:
        centres = np.array([tile.centre for tile in grid])
        scale = matching.flux_scale_at(centres[:, 0], centres[:, 1]).reshape(grid.tiles)
        template_noise = NOISELESS * science_noise / scale
    centre = 0.5 * (nx - 1), 0.5 * (ny - 1)
    shift = matching.shift_at(*centre)
    whole_science, whole_template = filled(
        science,
        template,
        float(matching.flux_scale_at(*centre)),
        (float(shift[0]), float(shift[1])),
        threads=threads,
    )
    return TileInputs(whole_science, whole_template, science_noise, template_noise, matching), grid


def _tile_noise(image: KnownImage, grid: TileGrid) -> Float64:
    """Median noise of each tile's good pixels; of the whole frame's where it has few."""
    whole = image.typical_variance()
    noise = np.zeros(grid.tiles)
    if image.variance is None:
        return noise
    for number, tile in enumerate(grid):
        box = np.s_[tile.y0 : tile.y1 : 4, tile.x0 : tile.x1 : 4]
        good = image.variance[box][~image.bad[box]]
        noise.flat[number] = np.median(good) if good.size > 100 else whole
    return np.sqrt(np.maximum(noise, 0.01 * whole))


def _finish(
    pair: Pair,
    settings: ZogySettings,
    inputs: TileInputs,
    grid: TileGrid,
    planes: ProperPlanes,
    matched: _Matched,
    started: float,
) -> Difference:
    science, template, matching = inputs.science, inputs.template, inputs.matching
    mask = joined_mask(science, template, reach_of(inputs, grid))
    variance = sky_variance(inputs, grid)
    remove_smooth_sky(planes, variance, mask, settings.background_order)
    holes = holes_of(science, template)
    if holes.any():
        far = disturbed(
            holes, planes.flux, planes.flux_variance, mask, reach=2 * science.psf.size, step=2
        )
        mask[far] |= np.uint16(MaskBit.BAD)
    pair = replace(
        pair,
        shift_rms=_astrometric_error(pair, settings, matching),
        stars=unchanged_stars(pair, science, template, matching),
    )
    # the filled images have served, and new memory takes as long as the work in it
    finished = assemble(
        planes.difference, planes.difference_variance, planes.template_difference, mask, pair,
        scaled=science.data,
    )  # fmt: skip
    # what the brightest stars show on D is wrong with every star on S as well
    fluxes = assemble(
        planes.flux, planes.flux_variance, planes.template_flux, mask, pair,
        least_error=finished.model_error, scaled=template.data,
    )  # fmt: skip
    remove_local_sky(finished, fluxes, planes.information, variance, mask)
    result = ZogyResult(
        planes.information, fluxes.scaled, planes.flux, fluxes.noise,
        matching, matched.refinement, grid,
    )  # fmt: skip
    facts = EngineFacts(
        "zogy", matching.flux_scales(), matching.stars_used, matching.stars_clipped,
        (science.psf.size, science.psf.size), "both", started, matching.scale_error,
        science.psf.flux_error,
    )  # fmt: skip
    error = max(finished.model_error, matched.error, settings.psf_error)
    judged = replace(finished, model_error=error)
    return Difference(
        data=finished.data, noise=finished.noise, scaled=finished.scaled,
        convolved=planes.template_difference, mask=mask, psf=psf_of_difference(inputs, grid),
        kernel=result, significance=fluxes.scaled, flux_err=fluxes.noise,
        quality=quality_of(pair, facts, judged, planes.template_difference, mask),
    )  # fmt: skip


def _astrometric_error(pair: Pair, settings: ZogySettings, matching: Matching) -> float:
    """Return the registration noise, pixels per axis: given, or what the stars show."""
    if settings.astrometric_error is not None:
        return float(np.sqrt(0.5 * sum(error**2 for error in settings.astrometric_error)))
    return matching.shift_rms if settings.fit_shift else pair.shift_rms
