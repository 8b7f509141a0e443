"""`run_sfft`: SFFT on loose arrays, with the documented names, defaults and order of planes."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import QualityRejected
from core.image import Image
from core.noise import Sky, measure_sky
from core.psf import measure_psf
from core.stars import SourceList, StarList, find_sources, select_stars
from core.subtraction.noise_maps import (
    NoiseArgument,
    as_image,
    with_noise_argument,
    with_photons_of_new_sources,
)
from core.subtraction.pair import Pair
from core.subtraction.sfft import SFFTSettings, subtract
from core.subtraction.sfft.kernel_choice import choose_kernel_shape
from core.verbosity import Verbose, say

log = logging.getLogger(__name__)

DOCUMENTED_KERNEL = (7, 7)
DOCUMENTED_RIDGE = 1e-6
DEFAULT_FWHM = 3.0  # pixels, where no star shows the seeing
SEEING_WINDOWS = (512, 1024, 2048)  # pixels
ENOUGH_STARS = 25  # for the seeing


def run_sfft(
    image: npt.ArrayLike,
    template: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    template_mask: npt.ArrayLike | None = None,
    err: NoiseArgument = None,
    template_err: NoiseArgument = None,
    image_gain: float | None = None,
    template_gain: float | None = None,
    kernel_shape: tuple[int, int] | None = DOCUMENTED_KERNEL,
    kernel_poly_order: int = 2,
    bg_poly_order: int = 2,
    flux_poly_order: int = 1,
    flux_penalty: float = 1000.0,
    ridge: float = DOCUMENTED_RIDGE,
    sigma_clip: float = 3.0,
    max_iter: int = 5,
    obj: Any = None,
    obj_size: int | None = None,
    get_convolved: bool = False,
    get_scaled: bool = False,
    get_noise: bool = False,
    get_kernel: bool = False,
    verbose: Verbose = False,
    *,
    threads: int | None = None,
) -> Any:
    """Subtract a template from an image by SFFT with a spatially varying kernel.

    Parameters
    ----------
    image, template : array_like, shape (ny, nx)
        On one pixel grid. Sky may be there or not; its level is taken out before the fit.
    mask, template_mask : array_like of bool, shape (ny, nx), optional
        True = bad. The template's is grown by the kernel's footprint.
    err, template_err : ndarray, bool or None
        Per-pixel RMS; True builds it (background RMS, and photon noise with the gain). Without
        any, the pixels are weighted alike and ``noise`` comes from the image's own scatter.
    image_gain, template_gain : float, optional
        Electrons per ADU.
    kernel_shape : tuple of int or None
        (ky, kx), odd. None chooses from both seeings, as the pipeline does: the documented 7x7
        cannot turn a 3 pixel seeing into a 6 pixel one. What the wings of stars lack beyond the
        rim of a kernel is measured on the brightest of them and taken away
        (`core.subtraction.sfft.kernel_wings`); traces remain round stars that are saturated in the
        template, in frames with fewer than 8 bright stars, and where the kernel is too small for
        its own core.
    kernel_poly_order, bg_poly_order, flux_poly_order : int
        Polynomial orders of kernel, differential background and flux scale. They are lowered
        where there are too few stars to hold them.
    flux_penalty, ridge : float
        Weight of the soft constraint on the kernel's sum, and Tikhonov term on the kernel alone,
        both relative to the mean diagonal of the normal matrix, so that they mean the same on
        images of any scale.
    sigma_clip : float
        On normalised residuals. Values below 5 are taken as 5: at 3, the photon noise of bright
        stars alone is clipped and the information goes with it.
    max_iter : int
        The most iterations.
    obj : astropy.table.Table, optional
        Objects with columns ``x`` and ``y`` (0-based) to fit around; ``fwhm`` sets the size of
        the regions. Without it the whole frame is looked through for the blocks that carry
        information about the kernel.
    obj_size : int, optional
        Half-size of the region around each object, pixels; 3 median ``fwhm``, or 15.
    get_convolved, get_noise, get_scaled, get_kernel : bool
        Also return, in this order: the convolved template (differential background included), the
        noise map, the noise-scaled difference, the `core.subtraction.sfft.SFFTResult`.
    verbose : bool or callable
        True logs at INFO; a callable is handed the lines.
    threads : int, optional
        Threads for compiled loops; all that the process was started with when None.

    Returns
    -------
    ndarray or list of ndarray
        The difference, or ``[difference, convolved, noise, scaled, kernel]`` with those asked for.
        float32; NaN nowhere. Masked pixels hold the difference of whatever the images hold.

    Raises
    ------
    core.errors.SubtractionFailed
        If there is nothing to match, or no kernel matches it.
    ValueError
        If arrays do not have one two-dimensional shape.

    Notes
    -----
    What a kernel is put together from (pixels, splines) follows from its size and both seeings;
    ``kernel`` holds its pixels all the same. Stamps that only one image shows have no say, nor
    has a seeing that was misjudged: where the fit is poor, the other image is convolved as well,
    and the better of both taken.

    With ``err=True`` the noise of known sources comes from the matched template, and that of new
    ones from the difference itself.

    When the template is clearly the blurrier image, the science image is convolved instead
    (`core.subtraction.sfft.subtract`); ``convolved`` is then the template, scaled.
    """
    science = as_image(image, mask, image_gain, "the science image")
    reference = as_image(template, template_mask, template_gain, "the template")
    if science.shape != reference.shape:
        raise ValueError(f"image and template differ in shape: {science.shape}, {reference.shape}")
    science, sky = with_noise_argument(science, err)
    reference = with_noise_argument(reference, template_err)[0]
    if science.variance is None:
        science = replace(science, variance=measure_sky(science).rms ** 2)
    # where the noise was built here, that of the sky is known apart from that of the sources
    alone = np.square(sky.rms, out=sky.rms) if sky and science.facts.gain else None
    del sky
    with ThreadPoolExecutor(2 if threads != 1 else 1) as pool:
        fwhm, reference_fwhm = pool.map(_seeing, (science, reference))
    fwhm = fwhm if np.isfinite(fwhm) else DEFAULT_FWHM
    chosen, stamp_half = _around(obj, obj_size)
    pair = Pair(
        science,
        reference,
        fwhm,
        reference_fwhm if np.isfinite(reference_fwhm) else min(fwhm, DEFAULT_FWHM),
        chosen,
        sky_variance=alone,
    )
    settings = SFFTSettings(
        kernel_shape=kernel_shape,
        kernel_order=kernel_poly_order,
        background_order=bg_poly_order,
        flux_order=flux_poly_order,
        flux_penalty=flux_penalty,
        ridge=ridge,
        clip=max(sigma_clip, 5.0),
        iterations=max(1, max_iter),
        stamp_half=stamp_half,
    )
    _warn_of_a_small_kernel(kernel_shape, pair)
    difference = with_photons_of_new_sources(
        subtract(pair, settings, threads=threads or _all_threads())
    )
    say(log, verbose, "SFFT: %s", difference.quality)
    planes: list[Any] = [difference.data]
    if get_convolved:
        planes.append(difference.convolved)
    if get_noise:
        planes.append(difference.noise)
    if get_scaled:
        planes.append(difference.scaled)
    if get_kernel:
        planes.append(difference.kernel)
    return planes if len(planes) > 1 else planes[0]


def _warn_of_a_small_kernel(shape: tuple[int, int] | None, pair: Pair) -> None:
    """Say so where a kernel ends well inside what the two PSFs differ by."""
    needed = choose_kernel_shape(*sorted((pair.template_fwhm, pair.science_fwhm)))
    if shape is not None and min(shape) < 0.55 * needed[0]:
        log.warning(
            "a kernel of %dx%d pixels is small for seeing of %.1f and %.1f pixels: what it lacks "
            "is measured on bright stars, but rings may remain around saturated ones and where "
            "there are few; kernel_shape=None chooses %dx%d",
            *shape, pair.science_fwhm, pair.template_fwhm, *needed,
        )  # fmt: skip


def _all_threads() -> int:
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def _seeing(image: Image) -> float:
    """Measure the seeing in the middle of the frame, pixels; NaN without a star.

    The fit itself looks for its places over the whole frame; the seeing only chooses its scale,
    and the bright stars of the smallest window that holds enough of them tell it.
    """
    fwhm = float("nan")
    for window in SEEING_WINDOWS:
        fwhm, n_stars = _seeing_within(image, window // 2)
        if n_stars >= ENOUGH_STARS or window >= max(image.shape):
            break
    return fwhm


def _seeing_within(image: Image, half: int) -> tuple[float, int]:
    """Return the seeing within so many pixels of the middle, and the stars that it is from."""
    ny, nx = image.shape
    box = (
        slice(max(0, ny // 2 - half), ny // 2 + half),
        slice(max(0, nx // 2 - half), nx // 2 + half),
    )
    middle = Image(
        np.ascontiguousarray(image.data[box]), np.ascontiguousarray(image.mask[box]),
        name=image.name,
    )  # fmt: skip
    try:
        sky = measure_sky(middle)
    except QualityRejected:  # a noiseless template: any scatter will do to find its stars
        flat = np.full(middle.shape, np.median(middle.data), dtype=np.float32)
        scatter = np.float32(max(float(np.std(middle.data)), 1e-6))
        sky = Sky(flat, np.full(middle.shape, 1e-3 * scatter, np.float32), 0.0, 0.0)
    data = middle.data - sky.level
    stars = select_stars(find_sources(data, sky.rms, middle.mask), limit=2 * ENOUGH_STARS)
    if not np.isfinite(stars.fwhm):
        return float("nan"), 0
    psf = measure_psf(data, sky.rms, middle.bad, stars.sources, stars.fwhm)
    return psf.fwhm, psf.n_stars


def _around(obj: Any, obj_size: int | None) -> tuple[StarList | None, int | None]:
    """Turn the documented object list into stars to fit around, and the stamps' half-size."""
    if obj is None:
        return None, obj_size
    x = np.asarray(obj["x"], dtype=np.float64)
    y = np.asarray(obj["y"], dtype=np.float64)
    names = getattr(obj, "colnames", None) or list(obj.keys())
    if obj_size is None:
        fwhm = np.asarray(obj["fwhm"], dtype=np.float64) if "fwhm" in names else np.zeros(0)
        fwhm = fwhm[np.isfinite(fwhm) & (fwhm > 0)]
        obj_size = round(3 * float(np.median(fwhm))) if fwhm.size else 15
    flux = np.asarray(obj["flux"], dtype=np.float64) if "flux" in names else np.ones(len(x))
    unknown = np.full(len(x), np.nan)
    sources = SourceList(
        x, y, flux, unknown, unknown, np.ones(len(x)), unknown, np.ones(len(x), dtype=bool)
    )
    return StarList(sources, float("nan")), max(3, obj_size)
