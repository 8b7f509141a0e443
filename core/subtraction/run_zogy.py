"""`run_zogy`: proper subtraction on loose arrays, with the documented names and planes."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import QualityRejected
from core.image import FloatImage, Image
from core.noise import Sky, measure_sky
from core.psf import PSFModel, fwhm_of, gaussian_psf
from core.stars import SourceList, StarList, find_sources, select_stars
from core.subtraction.noise_maps import NoiseArgument, as_image, with_noise_argument
from core.subtraction.pair import Pair
from core.subtraction.zogy import ZogySettings, subtract
from core.subtraction.zogy.bright_stars import bright_stars
from core.subtraction.zogy.psf_fit import PLENTY, fit_psf, seeing_of
from core.verbosity import Verbose, say

log = logging.getLogger(__name__)

NO_PSF = 0.1  # error of what is measured with a PSF that no star tells
UNKNOWN_FWHM = 3.0  # pixels, of a frame without a star


def run_zogy(
    image: npt.ArrayLike,
    template: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    template_mask: npt.ArrayLike | None = None,
    err: NoiseArgument = None,
    template_err: NoiseArgument = None,
    image_psf: PSFModel | npt.ArrayLike | None = None,
    template_psf: PSFModel | npt.ArrayLike | None = None,
    image_gain: float | None = None,
    template_gain: float | None = None,
    image_fwhm: float | None = None,
    template_fwhm: float | None = None,
    scale: float | None = None,
    psf_clean: float = 0,
    dx: float | None = 0.25,
    dy: float | None = 0.25,
    nx: int | None = 1,
    ny: int | None = None,
    overlap: int | None = 50,
    fit_scale: bool = True,
    fit_shift: bool = True,
    good_regions: npt.ArrayLike | None = None,
    image_obj: Any = None,
    template_obj: Any = None,
    get_psf: bool = False,
    get_Fpsf: bool = False,
    nthreads: int = 0,
    verbose: Verbose = False,
    *,
    get_noise: bool = False,
    get_scaled: bool = False,
    get_difference: bool = False,
    **kwargs: Any,
) -> list[Any]:
    """Subtract a template properly (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27).

    Parameters
    ----------
    image, template : array_like, shape (ny, nx)
        On one pixel grid. Their skies are measured and removed.
    mask, template_mask : array_like of bool, shape (ny, nx), optional
        True = bad.
    err, template_err : ndarray, bool or None
        Per-pixel RMS; built from the background's RMS and, with a gain, from the photon noise of
        the sources when it is not an array.
    image_psf, template_psf : core.psf.PSFModel or ndarray of odd size, optional
        Measured from the stars when None, position-dependent; no external program is run.
    image_gain, template_gain : float, optional
        Electrons per ADU.
    image_fwhm, template_fwhm : float, optional
        Seeing, pixels, to measure the PSF with; measured when None.
    scale : float, optional
        Flux of a source on the template over its flux on the image. Measured on the stars when
        None, and refined when ``fit_scale``.
    psf_clean : float
        PSF values below this fraction of the peak are set to zero. Zero leaves that to the engine,
        which smooths the wings instead (`core.subtraction.zogy.psf`).
    dx, dy : float or None
        Registration noise, pixels. None takes what the stars show, as the pipeline does: the
        documented 0.25 is several times what registered images have, and at that value hides
        real sources on every galaxy and bright star.
    nx, ny : int, optional
        Number of tiles; ``ny`` is ``nx`` when None. ``nx=None`` takes tiles of about 512 pixels,
        as the pipeline does. PSF, flux scale and shift vary within a tile to first order.
    overlap : int or None
        Border of a tile, pixels; from the sizes of the PSFs when None.
    fit_scale, fit_shift : bool
        Fit flux scale and sub-pixel shift, both varying over the frame.
    good_regions : array_like of bool, shape (ny, nx), optional
        Only stars where it is True are used for scale and shift.
    image_obj : astropy.table.Table, optional
        Objects with columns ``x`` and ``y`` (0-based) to use as stars.
    template_obj : astropy.table.Table, optional
        Not needed: scale and shift are measured on the pixels of both images.
    get_psf, get_Fpsf : bool
        See below.
    nthreads : int
        Threads; all of the machine's when 0.
    verbose : bool or callable
        True logs at INFO; a callable is handed the lines.
    get_noise, get_scaled, get_difference : bool
        Also return, at the end: the noise map of D, D over its noise, and the
        `core.subtraction.difference.Difference` with everything that is known.
    **kwargs
        Options of an external PSF program are accepted and not used.

    Returns
    -------
    list
        ``[D, S_corr, P_D (get_psf), Fpsf, Fpsf_err (get_Fpsf)]``. D and the fluxes are in ADU of
        the image, float32; S_corr has unit variance on blank sky; P_D is the PSF of D at the
        centre of the frame, of unit sum. Names, defaults and order are those of the published
        function of that name; that one's D is in its own units.

    Raises
    ------
    core.errors.SubtractionFailed
        If there is nothing to match on.
    ValueError
        If arrays do not have one two-dimensional shape, or a PSF is none.
    """
    if kwargs:
        log.warning("run_zogy measures PSFs itself; not used: %s", ", ".join(sorted(kwargs)))
    threads = nthreads or os.cpu_count() or 1
    first = as_image(image, mask, image_gain, "the science image")
    second = as_image(template, template_mask, template_gain, "the template")
    if first.shape != second.shape:
        raise ValueError(f"image and template differ in shape: {first.shape}, {second.shape}")
    with ThreadPoolExecutor(min(2, threads)) as pool:
        one = pool.submit(_described, first, err)
        two = pool.submit(_described, second, template_err)
        described = one.result()
        stars = _stars(*described, image_obj, good_regions)
        seeing = image_fwhm or _finite(stars.fwhm)
        first_psf = pool.submit(_psf, described[0], stars, image_psf, seeing, psf_clean)
        described_ = two.result()
        theirs = stars if len(stars) >= PLENTY else _stars(*described_, None, None)
        seeing = template_fwhm or (None if theirs is stars else _finite(theirs.fwhm))
        reference = replace(
            described_[0], psf=_psf(described_[0], theirs, template_psf, seeing, psf_clean)
        )
        science = replace(described[0], psf=first_psf.result())
    assert science.psf is not None
    assert reference.psf is not None
    known = (image_psf is not None or science.psf.n_stars > 0) and (
        template_psf is not None or reference.psf.n_stars > 0
    )
    pair = Pair(science, reference, science.psf.fwhm, reference.psf.fwhm, stars)
    settings = ZogySettings(
        tiles=None if nx is None else (ny or nx, nx),
        border=overlap,
        fit_scale=fit_scale or scale is None,
        flux_order=2 if fit_scale else 0,
        fit_shift=fit_shift,
        scale=1.0 if scale is None else 1.0 / scale,
        fit_psf=False,
        psf_error=0.0 if known else NO_PSF,
        astrometric_error=None if dx is None or dy is None else (dx, dy),
    )
    difference = subtract(pair, settings, threads=threads)
    say(log, verbose, "ZOGY: %s", difference.quality)
    result = difference.kernel
    planes: list[Any] = [difference.data, result.significance]
    if get_psf:
        height, width = science.shape
        planes.append(difference.psf.at(0.5 * (width - 1), 0.5 * (height - 1)))
    if get_Fpsf:
        planes += [result.flux, result.flux_err]
    if get_noise:
        planes.append(difference.noise)
    if get_scaled:
        planes.append(difference.scaled)
    if get_difference:
        planes.append(difference)
    return planes


def _described(image: Image, err: NoiseArgument) -> tuple[Image, FloatImage]:
    """Give an image its noise, take its sky away, and return the RMS of that, too."""
    try:
        image, sky = with_noise_argument(image, True if err is None or err is False else err)
        sky = sky or measure_sky(image)
    except QualityRejected:  # without noise: as it is, and any scatter will do to find its stars
        level = np.full(image.shape, np.median(image.data), dtype=np.float32)
        scatter = np.float32(max(float(np.std(image.data)), 1e-6))
        sky = Sky(
            level, np.full(image.shape, 1e-3 * scatter, dtype=np.float32), float(level[0, 0]), 0.0
        )
    # the level is not needed any more, and new memory costs more than the subtraction
    return replace(image, data=np.subtract(image.data, sky.level, out=sky.level)), sky.rms


def _psf(
    image: Image,
    stars: StarList,
    psf: PSFModel | npt.ArrayLike | None,
    fwhm: float | None,
    psf_clean: float,
) -> PSFModel:
    """Take the PSF that was given, or measure it on the stars of the science image."""
    if psf is not None:
        return _cleaned(_as_model(psf, image.shape), psf_clean)
    sources = stars.sources
    highest = 2.5 * (_finite(stars.fwhm) or UNKNOWN_FWHM)
    seeing = fwhm or seeing_of(image.data, image.bad, sources, highest) or UNKNOWN_FWHM
    model = gaussian_psf(seeing, image.shape)
    if image.variance is not None:
        model = fit_psf(image.data, image.variance, image.bad, sources, model)
    return _cleaned(model, psf_clean)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _as_model(psf: PSFModel | npt.ArrayLike, shape: tuple[int, int]) -> PSFModel:
    if isinstance(psf, PSFModel):
        return psf
    stamp = np.asarray(psf, dtype=np.float64)
    square = stamp.ndim == 2 and stamp.shape[0] == stamp.shape[1] and stamp.shape[0] % 2 == 1
    if not square or not np.isfinite(stamp).all() or stamp.sum() <= 0:
        raise ValueError(
            f"a PSF must be a PSFModel or a centred square stamp of odd size with a positive sum, "
            f"not an array of shape {stamp.shape}"
        )
    stamp = stamp / stamp.sum()
    return PSFModel(stamp.astype(np.float32)[None], 0, shape, fwhm_of(stamp))


def _cleaned(psf: PSFModel, fraction: float) -> PSFModel:
    if fraction <= 0:
        return psf
    keep = psf.coefficients[0] >= fraction * psf.coefficients[0].max()
    planes = np.where(keep, psf.coefficients, 0).astype(np.float64)
    total = planes[0].sum()
    planes /= total
    for i in range(1, len(planes)):
        planes[i] -= planes[i].sum() * planes[0]
    return replace(psf, coefficients=planes.astype(np.float32))


def _stars(
    image: Image, rms: FloatImage, objects: Any, good_regions: npt.ArrayLike | None
) -> StarList:
    """Find the stars, or take those that were given, where they may be used."""
    stars = bright_stars(image.data, rms, image.mask) if objects is None else None
    if stars is None:
        stars = select_stars(find_sources(image.data, rms, image.mask))
    if objects is not None:
        x = np.asarray(objects["x"], dtype=np.float64)
        y = np.asarray(objects["y"], dtype=np.float64)
        names = getattr(objects, "colnames", None) or list(objects.keys())
        flux = np.asarray(objects["flux"], dtype=np.float64) if "flux" in names else np.ones(len(x))
        unknown = np.full(len(x), np.nan)
        whole = np.ones(len(x), dtype=bool)
        stars = StarList(
            SourceList(x, y, flux, unknown, unknown, np.ones(len(x)), unknown, whole), stars.fwhm
        )
    if good_regions is None:
        return stars
    good = np.asarray(good_regions, dtype=bool)
    if good.shape != image.shape:
        raise ValueError(f"good_regions has shape {good.shape}, not {image.shape}")
    x = np.clip(np.rint(stars.sources.x).astype(int), 0, image.shape[1] - 1)
    y = np.clip(np.rint(stars.sources.y).astype(int), 0, image.shape[0] - 1)
    return replace(stars, sources=stars.sources.select(good[y, x]))
