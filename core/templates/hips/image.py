"""The documented function `get_hips_image`."""

from __future__ import annotations

import logging

import numpy as np
from astropy.io import fits
from astropy.io.fits import Header
from astropy.wcs import WCS

from core.celestial import pixel_size
from core.deadline import Deadline
from core.errors import ExposureError, NoTemplate
from core.image import FloatImage, Image, MaskBit
from core.resample import resample
from core.tangent import TangentGrid
from core.templates.hips.averages import block_means
from core.templates.hips.hips2fits import HIPS2FITS_ENDPOINTS, Hips2Fits, default_fetcher
from core.templates.hips.survey import HIPS_ASINH, are_linear, is_asinh, linear_fluxes
from core.templates.pixel_grid import requested_grid
from core.templates.wrong_request import WrongRequest, whole_number
from core.verbosity import Verbose, say

logger = logging.getLogger(__name__)

_SECONDS = 600.0
_UPSCALE = 2  # for upscale=True
_MOST_TIMES = 64
_MEAN, _RMS = 100.0, 10.0  # of a normalised background
_MOST_CLIPS = 20
_MOST_PIXELS = 20_000 * 20_000


def get_hips_image(
    hips: str,
    ra: float | None = None,
    dec: float | None = None,
    width: int | None = None,
    height: int | None = None,
    fov: float | None = None,
    wcs: WCS | None = None,
    shape: tuple[int, int] | None = None,
    header: Header | None = None,
    asinh: bool | None = None,
    normalize: bool = True,
    upscale: bool | int = False,
    get_header: bool = True,
    verbose: Verbose = False,
    *,
    _endpoints: tuple[str, ...] = HIPS2FITS_ENDPOINTS,
    _seconds: float = _SECONDS,
) -> FloatImage | tuple[FloatImage, Header] | None:
    """Load an image from any HiPS survey using the CDS hips2fits service.

    The pixel grid may be specified by center coordinates and field of view, or by passing a WCS
    solution or FITS header directly.

    Parameters
    ----------
    hips : str
        HiPS survey identifier. See https://aladin.u-strasbg.fr/hips/list for the full list.
    ra, dec : float, optional
        Image center in degrees.
    width, height : int, optional
        Image size in pixels.
    fov : float, optional
        Field of view in degrees, along the longer side of the image.
    wcs : WCS, optional
        WCS defining the pixel grid; supersedes ``ra``, ``dec`` and ``fov``. The service knows no
        distortions; for a WCS that has some a plain image is loaded and projected here.
    shape : tuple of int, optional
        Image shape ``(height, width)``; alternative to ``width`` and ``height``.
    header : Header, optional
        Header containing image dimensions and WCS; alternative to providing them explicitly.
    asinh : bool or None, optional
        Whether the survey uses non-linear asinh flux scaling, which is then undone. Auto-detected
        for Pan-STARRS surveys, by the name (that of *g* is linear) and by values that are beyond
        such a scale; set to False to override.
    normalize : bool, optional
        If True, pseudo-normalize the image so that background mean is about 100 and background RMS
        about 10. If False, the values are those of the survey: fluxes per pixel of *its* images.
    upscale : bool or int, optional
        If set, request an image with so many times finer pixels (True: twice) and average them
        before returning. Useful for Pan-STARRS to reduce asinh photometric errors at coarse pixel
        scales.
    get_header : bool, optional
        If True, also return the FITS header alongside the image.
    verbose : bool or callable, optional
        Whether to show verbose messages. May be boolean or a `print`-like callable.
    _endpoints : tuple of str
        Addresses of the service; only they are spoken to.
    _seconds : float
        How long all of it may take.

    Returns
    -------
    ndarray of float32, shape (height, width), or (ndarray, Header), or None
        Image projected onto the requested pixel grid, NaN where the survey has no data;
        ``(image, header)`` if ``get_header``; None on failure: the service cannot be reached, does
        not know the survey, or has no data there. A message says which.

    Raises
    ------
    core.templates.wrong_request.WrongRequest
        A `ValueError`: if the arguments do not make a pixel grid, or one of them makes no sense.
    """
    if not isinstance(hips, str) or not hips.strip():
        raise WrongRequest(f"hips = {hips!r} is not the identifier of a survey")
    grid, size = requested_grid(wcs, shape, width, height, header, ra=ra, dec=dec, fov=fov)
    times = _times(upscale)
    if size[0] * size[1] * times**2 > _MOST_PIXELS:
        raise WrongRequest(
            f"{size[1]} x {size[0]} pixels, {times} times finer, are more than {_MOST_PIXELS}"
        )
    service = Hips2Fits(default_fetcher(_endpoints), tuple(_endpoints))
    say(logger, verbose, "loading %s, %d x %d pixels, from hips2fits", hips, size[1], size[0])
    try:
        image = _load(service, hips, grid, size, times, asinh, Deadline(_seconds))
    except ExposureError as error:
        say(logger, verbose, "%s: no image: %s", hips, error)
        return None
    if not np.isfinite(image).any():
        say(logger, verbose, "%s: no image: the survey has no data there", hips)
        return None
    if normalize:
        image = _normalized(image)
    return (image, _header(grid, image, hips)) if get_header else image


def _times(upscale: bool | int) -> int:
    if isinstance(upscale, bool | np.bool_):
        return _UPSCALE if upscale else 1
    what = f"a bool or a whole number up to {_MOST_TIMES}"
    times = whole_number("upscale", upscale, 0, what)
    if times > _MOST_TIMES:
        raise WrongRequest(f"upscale = {upscale!r} is not {what}")
    return max(1, times)


def _load(
    service: Hips2Fits,
    hips: str,
    grid: WCS,
    shape: tuple[int, int],
    times: int,
    asinh: bool | None,
    deadline: Deadline,
) -> FloatImage:
    """Return linear values on the grid; they are fluxes per area, and are averaged as such."""
    plain = grid if _is_plain(grid) else None
    plane: TangentGrid | None = None
    size = shape
    if plain is None:
        scale = pixel_size(grid)
        plane = TangentGrid.around(grid, shape, scale, margin=10)
        plain, size = plane.wcs, plane.shape
    fine = (size[0] * times, size[1] * times)
    image = service.image(hips, _finer(plain, times), fine, deadline)
    if asinh or (asinh is None and is_asinh(hips) and not are_linear([image])):
        image = linear_fluxes(HIPS_ASINH, image)
    if times > 1:
        image = block_means(image, times)
    if plane is None:
        return image
    return _projected(image, plane, grid, shape)


def _projected(
    image: FloatImage, plane: TangentGrid, grid: WCS, shape: tuple[int, int]
) -> FloatImage:
    holes = ~np.isfinite(image)
    if holes.all():
        raise NoTemplate("the survey has no data there")
    image[holes] = np.median(image[~holes])
    mask = np.where(holes, MaskBit.NO_DATA, 0).astype(np.uint16)
    found = resample(Image(image, mask, wcs=plane.wcs), grid, shape, flux="surface_brightness")
    data = found.data
    data[(found.mask & MaskBit.NO_DATA) != 0] = np.nan
    return data


def _is_plain(wcs: WCS) -> bool:
    """Whether all of a WCS survives being written as the header that the service is sent."""
    return not wcs.has_distortion and not any(
        kind.endswith(("TPV", "TPD", "TNX", "ZPX", "ZPN", "-SIP")) for kind in wcs.wcs.ctype
    )


def _finer(wcs: WCS, times: int) -> WCS:
    """Return the grid with every pixel cut into ``times`` x ``times``."""
    if times == 1:
        return wcs
    finer = wcs.deepcopy()
    finer.wcs.crpix = [(value - 0.5) * times + 0.5 for value in wcs.wcs.crpix]
    if wcs.wcs.has_cd():
        finer.wcs.cd = wcs.wcs.cd / times
    else:
        finer.wcs.cdelt = wcs.wcs.cdelt / times
    finer.wcs.set()
    return finer


def _normalized(image: FloatImage) -> FloatImage:
    """Scale an image so that its background, sources clipped, has a mean of 100 and an RMS of 10.

    A constant image is only moved.
    """
    fine = image[np.isfinite(image)].astype(np.float64)
    for _ in range(_MOST_CLIPS):
        middle = float(np.median(fine))
        scatter = 1.4826 * float(np.median(np.abs(fine - middle)))
        kept = fine[np.abs(fine - middle) <= 3 * scatter]
        # Most pixels may be equal, as where a survey stores a background of zero.
        if kept.size == fine.size or scatter == 0:
            break
        fine = kept
    mean, rms = float(fine.mean()), float(fine.std())
    scale = _RMS / rms if rms > 0 else 1.0
    return ((image - mean) * scale + _MEAN).astype(np.float32)


def _header(wcs: WCS, image: FloatImage, hips: str) -> Header:
    header = fits.PrimaryHDU(image).header
    header.update(wcs.to_header(relax=True))
    header["SURVEY"] = (hips, "HiPS from which hips2fits made the image")
    return header
