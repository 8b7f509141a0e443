"""ZOGY: proper image subtraction, with PSFs, flux scale and shift that vary over the frame.

The method is that of Zackay, Ofek & Gal-Yam 2016 (ApJ 830, 27). It needs no matching kernel: it
takes both PSFs as known and gives the statistic that no other linear one exceeds for finding a
point source that is in one image and not in the other. Neither image is ever deconvolved, and it
does not matter which of them is sharper.
"""

from __future__ import annotations

import logging
import time
from dataclasses import astuple, dataclass, replace

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft
import sep

from core.errors import SubtractionFailed
from core.image import FloatImage, MaskBit, MaskImage
from core.polynomials import terms
from core.psf import PSFModel, fwhm_of, stamp_half
from core.stars import SourceList, StarList, find_sources
from core.subtraction.convolve import compiled_threads
from core.subtraction.difference import Difference, SubtractionQuality
from core.subtraction.finish import assemble, sky_statistics
from core.subtraction.mask_growth import grow
from core.subtraction.pair import Pair
from core.subtraction.residual_background import fit_residual_background
from core.subtraction.zogy_boxes import star_boxes
from core.subtraction.zogy_images import KnownImage, disturbed, filled, floors, known
from core.subtraction.zogy_matching import (
    Matching,
    MatchingOptions,
    aperture_scale,
    match,
    rematch,
)
from core.subtraction.zogy_psf_fit import PLENTY
from core.subtraction.zogy_refinement import Refinement, refine, remaining_error
from core.subtraction.zogy_tiles import (
    ProperPlanes,
    Tile,
    TileGrid,
    TileInputs,
    model_of,
    subtract_tiles,
)
from core.subtraction.zogy_transform import NOISELESS, difference_psf, tile_kernels

log = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
BRIGHT_FILL = 20.0  # sigma
CERTAIN = 20.0  # sigma, of a source that a star list may be filled up with
FELT = 0.02  # of a kernel's squared sum
PSF_GRID = 5  # places along a side at which the PSF of the difference is evaluated
SAME_SOURCE = 3.0  # pixels
TILE = 512  # pixels: the side of a tile that is not given


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
        the stars once more (`core.subtraction.zogy_psf_fit`).
    psf_error : float
        Relative error of fluxes that comes with the PSFs, for the quality.
    refine : bool
        Take out of the PSF models what they leave on the stars
        (`core.subtraction.zogy_refinement`).
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
        stars = _stars(pair).sources if settings.fit_psf else None
        science = known(pair.science, pair.science_fwhm, stars)
        template = known(pair.template, pair.template_fwhm, stars, pair.shift)
        _check(science, template)
        with scipy.fft.set_workers(threads):
            matched = _match(science, template, pair, settings)
        science, template = floors(matched.science, matched.template, matched.typical_scale)
        inputs, grid = _inputs(science, template, settings, matched.matching, threads)
        planes = subtract_tiles(inputs, grid, threads=threads)
        mask = _mask(science, template, _reach(inputs, grid))
        return _finish(pair, settings, inputs, grid, planes, mask, matched, started)


@dataclass(frozen=True)
class _Matched:
    science: KnownImage
    template: KnownImage
    matching: Matching
    refinement: Refinement | None
    error: float  # of what is subtracted, relative to it

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


def _match(
    science: KnownImage, template: KnownImage, pair: Pair, settings: ZogySettings
) -> _Matched:
    """Measure flux scale and shift, and what is wrong with the PSFs, on the stars."""
    options = MatchingOptions(
        fit_scale=settings.fit_scale,
        fit_shift=settings.fit_shift,
        scale=settings.scale,
        flux_order=settings.flux_order,
        shift_order=settings.shift_order,
    )
    sources, many = _constant(pair, template)
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
    error = matching.scale_error
    if boxes is not None and not many:
        error = max(error, remaining_error(boxes, matching))
        if settings.fit_scale:
            error = max(error, _against_apertures(science, template, sources, matching))
    return _Matched(science, template, matching, refinement, error)


def _against_apertures(
    science: KnownImage, template: KnownImage, sources: SourceList, matching: Matching
) -> float:
    """How far the flux scale is from that of plain apertures, beyond what these are good for."""
    dx, dy = matching.shift_at(0.5 * matching.shape[1], 0.5 * matching.shape[0])
    scale, error = aperture_scale(science, template, sources, (float(dx), float(dy)))
    if not np.isfinite(error):
        return 0.0
    off = abs(float(np.median(_scales(matching))) / scale - 1)
    return max(off - 2 * error, 0.0)


def _constant(pair: Pair, template: KnownImage) -> tuple[SourceList, bool]:
    """The stars that the template has, too, and whether they are many.

    Where they are few, what else the template shows is added, of whatever shape: to compare fluxes
    a galaxy does as well as a star.
    """
    stars = _stars(pair).sources
    flux, error = _aperture_fluxes(template, stars, pair.shift)
    stars = stars.select(flux > 5 * error)
    if len(stars) >= PLENTY or template.variance is None:
        return stars, len(stars) >= PLENTY
    found = find_sources(template.data, np.sqrt(template.variance), template.mask)
    found = found.select(found.clean & (found.snr > CERTAIN))
    if len(found) == 0 or len(stars) == 0:
        return found if len(found) else stars, False
    known_x, known_y = stars.x + pair.shift[0], stars.y + pair.shift[1]
    apart = np.hypot(found.x[:, None] - known_x, found.y[:, None] - known_y).min(axis=1)
    return joined(stars, found.select(apart > SAME_SOURCE)), False


def _aperture_fluxes(
    image: KnownImage, stars: SourceList, shift: tuple[float, float]
) -> tuple[Float64, Float64]:
    """Flux within one seeing of every star, and its error."""
    if len(stars) == 0:
        return np.zeros(0), np.zeros(0)
    noise = 0.0 if image.variance is None else np.sqrt(image.variance)
    flux, error, _ = sep.sum_circle(
        image.data, stars.x + shift[0], stars.y + shift[1], image.psf.fwhm, err=noise,
        mask=image.bad,
    )  # fmt: skip
    return flux, error


def _unchanged(pair: Pair, inputs: TileInputs) -> StarList:
    """The stars of which the template has at least half the light: not what has appeared."""
    stars = _stars(pair)
    ours, _ = _aperture_fluxes(inputs.science, stars.sources, (0.0, 0.0))
    theirs, _ = _aperture_fluxes(inputs.template, stars.sources, pair.shift)
    scale = inputs.matching.flux_scale_at(stars.sources.x, stars.sources.y)
    return replace(stars, sources=stars.sources.select(theirs * scale > 0.5 * ours))


def _stars(pair: Pair) -> StarList:
    if pair.stars is not None:
        return pair.stars
    nothing = np.zeros(0)
    return StarList(SourceList(*(nothing,) * 7, np.zeros(0, dtype=bool)), float("nan"))


def joined(first: SourceList, second: SourceList) -> SourceList:
    """Put two lists of sources behind each other."""
    columns = zip(astuple(first), astuple(second), strict=True)
    return SourceList(*(np.concatenate(pair) for pair in columns))


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


def _reach(inputs: TileInputs, grid: TileGrid) -> int:
    """How far a pixel that was filled is felt: half-size of the box that holds both kernels of D,
    but for a part that noise hides."""
    tiles = list(grid)
    number = (grid.tiles[0] // 2) * grid.tiles[1] + grid.tiles[1] // 2
    model = model_of(inputs, grid, tiles[number], divmod(number, grid.tiles[1]))
    side = int(scipy.fft.next_fast_len(2 * model.science_psf.shape[1] + 1, real=True))
    squared = tile_kernels(model, (side, side))[:2] ** 2
    away = np.abs(np.fft.fftfreq(side) * side)
    distance = np.maximum(away[:, None], away[None, :])
    for half in range(1, side // 2):
        outside = (squared * (distance > half)).sum(axis=(1, 2))
        if outside.sum() < FELT * squared.sum():
            return half
    return side // 2


def _mask(science: KnownImage, template: KnownImage, reach: int) -> MaskImage:
    """Join both masks, each grown by the kernels, and saturated cores by the seeing."""
    mask = science.mask.copy()
    fwhm = max(science.psf.fwhm, template.psf.fwhm)
    for image, bit in ((science, MaskBit.BAD), (template, MaskBit.TEMPLATE_BAD)):
        _flag(mask, grow(image.bad, reach, reach), bit)
        wide = max(reach, int(np.ceil(fwhm)))
        _flag(mask, grow(_has(image.mask, MaskBit.SATURATED), wide, wide), bit)
    _flag(mask, _has(template.mask, MaskBit.SATURATED), MaskBit.TEMPLATE_SATURATED)
    _flag(mask, _has(template.mask, MaskBit.NO_DATA), MaskBit.TEMPLATE_NO_DATA)
    edge = max(reach, int(np.ceil(2.5 * fwhm)))
    for side in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
        mask[side] |= np.uint16(MaskBit.EDGE)
    return mask


def _has(mask: MaskImage, bit: MaskBit) -> npt.NDArray[np.bool_]:
    return (mask & np.uint16(bit)) != 0


def _flag(mask: MaskImage, where: npt.NDArray[np.bool_], bit: MaskBit) -> None:
    _set_bit(mask.reshape(-1), where.reshape(-1), np.uint16(bit))


@numba.njit(parallel=True, cache=True)
def _set_bit(mask, where, bit):  # type: ignore[no-untyped-def] # pragma: no cover
    for i in numba.prange(mask.size):
        if where[i]:
            mask[i] |= bit


def _finish(
    pair: Pair,
    settings: ZogySettings,
    inputs: TileInputs,
    grid: TileGrid,
    planes: ProperPlanes,
    mask: MaskImage,
    matched: _Matched,
    started: float,
) -> Difference:
    matching = inputs.matching
    _remove_background(planes, inputs, grid, mask, settings)
    error = settings.astrometric_error
    if error is None:
        measured = matching.shift_rms if settings.fit_shift else pair.shift_rms
        error = (measured, measured)
    rms = float(np.sqrt(0.5 * (error[0] ** 2 + error[1] ** 2)))
    holes = _holes(inputs)
    if holes.any():
        score = np.asarray(planes.flux / np.sqrt(planes.flux_variance), dtype=np.float32)
        far = disturbed(holes, score, mask == 0, reach=2 * inputs.science.psf.size, step=2)
        mask[far] |= np.uint16(MaskBit.BAD)
    with_error = replace(pair, shift_rms=rms, stars=_unchanged(pair, inputs))
    finished = assemble(
        planes.difference, planes.difference_variance, planes.template_difference, mask, with_error
    )
    fluxes = assemble(planes.flux, planes.flux_variance, planes.template_flux, mask, with_error)
    if finished.model_error > fluxes.model_error:
        # what the brightest stars show on D is wrong with every star on S as well
        extra = np.float32(finished.model_error**2 - fluxes.model_error**2)
        fluxes.noise[:] = np.sqrt(fluxes.noise**2 + extra * planes.template_flux**2)
        fluxes.scaled[:] = planes.flux / fluxes.noise
    result = ZogyResult(
        planes.information, fluxes.scaled, planes.flux, fluxes.noise,
        matching, matched.refinement, grid,
    )  # fmt: skip
    sky_mean, sky_chi2 = sky_statistics(
        finished.scaled, planes.template_difference, finished.noise, mask
    )
    scales = _scales(matching)
    side = inputs.science.psf.size
    quality = SubtractionQuality(
        engine="zogy",
        kernel_sum=float(np.median(scales)),
        kernel_sum_spread=float(np.std(scales) / np.median(scales)),
        star_chi2=finished.star_chi2,
        sky_chi2=sky_chi2,
        sky_mean=sky_mean,
        shift=pair.shift,
        shift_rms=rms,
        stars_used=matching.stars_used,
        stars_clipped=matching.stars_clipped,
        kernel_shape=(side, side),
        convolved="both",
        seconds=time.perf_counter() - started,
        model_error=max(finished.model_error, matched.error, settings.psf_error),
    )
    return Difference(
        data=finished.data, noise=finished.noise, scaled=finished.scaled,
        convolved=planes.template_difference, mask=mask, psf=_difference_psf(inputs, grid),
        kernel=result, quality=quality, significance=fluxes.scaled, flux_err=fluxes.noise,
    )  # fmt: skip


def _holes(inputs: TileInputs) -> npt.NDArray[np.bool_]:
    """Where bright pixels are missing: a per cent of a star's core is more than any threshold.

    Pixels that are bad in both images, saturated ones, bright ones that were filled, and bright
    ones on the edge, behind which the rest of a star lies.
    """
    holes = inputs.science.bad & inputs.template.bad
    edge = np.zeros_like(holes)
    edge[[0, -1], :] = edge[:, [0, -1]] = True
    for image in (inputs.science, inputs.template):
        rows, columns = np.nonzero(image.bad | edge)
        level = BRIGHT_FILL * np.sqrt(image.typical_variance())
        bright = np.abs(image.data[rows, columns]) > level
        bright |= _has(image.mask[rows, columns], MaskBit.SATURATED)
        holes[rows[bright], columns[bright]] = True
    return holes


def _scales(matching: Matching) -> Float64:
    """The flux scale on a 9 by 9 grid over the frame."""
    ny, nx = matching.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    return matching.flux_scale_at(x, y)


def _remove_background(
    planes: ProperPlanes,
    inputs: TileInputs,
    grid: TileGrid,
    mask: MaskImage,
    settings: ZogySettings,
) -> None:
    """Take the differential sky out of difference and flux."""
    background = fit_residual_background(
        planes.difference, planes.difference_variance, mask, settings.background_order
    )
    planes.difference[:] -= background
    # a constant sky b has S = b / (sigma_n² + beta² sigma_r²), and F_psf = S / F_S
    background /= _sky_variance(inputs, grid) * planes.information
    planes.flux[:] -= background


def _sky_variance(inputs: TileInputs, grid: TileGrid) -> np.float32:
    """Variance of D on blank sky, ADU²; the median tile's."""
    centres = np.array([tile.centre for tile in grid])
    scale = inputs.matching.flux_scale_at(centres[:, 0], centres[:, 1]).reshape(grid.tiles)
    return np.float32(np.median(inputs.science_noise**2 + (scale * inputs.template_noise) ** 2))


def _difference_psf(inputs: TileInputs, grid: TileGrid) -> PSFModel:
    """Fit P_D at a grid of places as `core.psf` fits a PSF; unit sum, side lobes included."""
    ny, nx = grid.shape
    order = max(inputs.science.psf.order, inputs.template.psf.order)
    side = int(scipy.fft.next_fast_len(4 * inputs.science.psf.size, real=True))
    stamps, places = [], []
    for y in np.linspace(0, ny - 1, PSF_GRID):
        for x in np.linspace(0, nx - 1, PSF_GRID):
            index = int(y * grid.tiles[0] / ny), int(x * grid.tiles[1] / nx)
            row, column = round(y), round(x)
            around = Tile(row, row + 1, column, column + 1)
            stamps.append(difference_psf(model_of(inputs, grid, around, index), (side, side)))
            places.append((column, row))
    n = len(places)
    half = max(stamp_half(inputs.science.psf.fwhm), inputs.science.psf.size // 2)
    cut = np.roll(np.stack(stamps), (half, half), axis=(1, 2))[:, : 2 * half + 1, : 2 * half + 1]
    at = np.array(places)
    basis = terms(order, at[:, 0], at[:, 1], (ny, nx))
    planes = np.linalg.lstsq(basis, cut.reshape(n, -1), rcond=None)[0].reshape(
        -1, 2 * half + 1, 2 * half + 1
    )
    total = planes.sum(axis=(1, 2))
    mean = planes[0] / total[0]
    normalised = np.stack([mean] + [(p - p.sum() * mean) / total[0] for p in planes[1:]])
    return PSFModel(
        normalised.astype(np.float32), order, (ny, nx), fwhm_of(mean), inputs.science.psf.n_stars
    )
