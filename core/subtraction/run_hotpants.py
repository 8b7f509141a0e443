"""`run_hotpants`: HOTPANTS on loose arrays, with the documented names, defaults and planes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from core.noise import sky_variance
from core.stars import SourceList, StarList
from core.subtraction.hotpants import HotpantsSettings, subtract
from core.subtraction.hotpants.command import (
    KernelPlan,
    has_matching_width,
    matching_gaussians,
)
from core.subtraction.noise_maps import NoiseArgument, as_image, with_noise_argument
from core.subtraction.pair import Pair

log = logging.getLogger(__name__)

UNKNOWN_FWHM = 3.0  # pixels, where nobody gave one: only sizes of footprints follow from it


def run_hotpants(
    image: npt.ArrayLike,
    template: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    template_mask: npt.ArrayLike | None = None,
    err: NoiseArgument = None,
    template_err: NoiseArgument = None,
    extra: Mapping[str, Any] | None = None,
    image_fwhm: float | None = None,
    template_fwhm: float | None = None,
    image_gain: float | None = None,
    template_gain: float | None = 1000,
    rel_r: float | None = 3,
    rel_rss: float | None = 4,
    nx: int = 1,
    ny: int | None = None,
    obj: Any = None,
    get_convolved: bool = False,
    get_scaled: bool = False,
    get_noise: bool = False,
    get_kernel: bool = False,
    get_header: bool = False,
    _tmpdir: str | None = None,
    _workdir: str | None = None,
    _exe: str | None = None,
    verbose: bool | Callable[..., Any] = False,
    *,
    deadline: float = 600.0,
) -> Any:
    """Subtract a template from an image by running the user's own HOTPANTS program.

    Parameters
    ----------
    image, template : array_like, shape (ny, nx)
        On one pixel grid. Pixels that are not finite are masked.
    mask, template_mask : array_like of bool, shape (ny, nx), optional
        True = bad.
    err, template_err : ndarray, bool or None
        Per-pixel RMS; True builds it (background RMS, and photon noise with the gain). None leaves
        the image's noise model to the program, which makes it from the pixel values and the gain:
        that is no noise at all where the sky was subtracted.
    extra : dict, optional
        Options of the program by name; they override any chosen here. True is an option without a
        value, None takes an option away, a list gives several values: ``{"ko": 1, "v": 2,
        "ng": [3, 6, 0.5, 4, 1.0, 2, 2.0]}``.
    image_fwhm, template_fwhm : float, optional
        Seeing, pixels. With both, the kernel's basis (``-ng``) is 0.5, 1 and 2 times
        ``sigma_match = sqrt(image_fwhm² - template_fwhm²) / 2.35`` with degrees 6, 4 and 2. When
        the template is the blurrier one, ``sigma_match`` is that of the opposite direction and the
        science image is convolved; when both are alike, the widths follow the seeing instead.
    image_gain, template_gain : float, optional
        Electrons per ADU.
    rel_r, rel_rss : float, optional
        Half-widths of the kernel and of the substamps that it is fitted on, over ``image_fwhm``
        (over the wider of both seeings where the template is the blurrier). Without a seeing the
        program's own 10 and 15 pixels.
    nx, ny : int
        Regions with a kernel each; ``ny`` is ``nx`` when None.
    obj : astropy.table.Table, optional
        Objects of the science image with columns ``x`` and ``y`` (0-based); substamps are put on
        them first.
    get_convolved, get_scaled, get_noise, get_kernel, get_header : bool
        Also return, in this order: the convolved template, the noise-scaled difference, the noise
        map, the `core.subtraction.hotpants.kernel.HotpantsKernel`, the FITS header that HOTPANTS
        wrote.
    _tmpdir : str, optional
        Where to make the temporary folder, which is always removed.
    _workdir : str, optional
        A folder to work in instead; its files are kept.
    _exe : str, optional
        Path of the program; looked up on ``PATH`` as ``hotpants`` when None.
    verbose : bool or callable
        True logs what the program says at INFO; a callable is handed the lines.
    deadline : float
        Seconds after which the program is stopped.

    Returns
    -------
    ndarray or list
        The difference in science ADU, or ``[difference, convolved, scaled, noise, kernel,
        header]`` with those asked for. Planes are float32, with NaN where HOTPANTS gave no value:
        at the edges, and where the masks reach.

    Raises
    ------
    core.errors.SubtractionFailed
        If the program is not installed, fails, is late, or finds no kernel; with its last words.
    ValueError
        If arrays do not have one two-dimensional shape.

    Notes
    -----
    With noise maps for both images the noise is propagated as for every engine
    (`core.subtraction.hotpants.subtract`), else it is the program's own plane. The defaults here
    are the documented ones; the pipeline takes a kernel of the size that the matching needs.
    """
    science = as_image(image, mask, image_gain, "the science image")
    reference = as_image(template, template_mask, template_gain, "the template")
    if science.shape != reference.shape:
        raise ValueError(f"image and template differ in shape: {science.shape}, {reference.shape}")
    science, sky = with_noise_argument(science, err)
    reference, _ = with_noise_argument(reference, template_err)
    pair = Pair(
        science,
        reference,
        image_fwhm or template_fwhm or UNKNOWN_FWHM,
        template_fwhm or image_fwhm or UNKNOWN_FWHM,
        _objects(obj, image_fwhm),
        sky_variance=sky_variance(science, sky) if sky is not None else None,
    )
    plan, direction = _documented_plan(image_fwhm, template_fwhm, rel_r, rel_rss)
    settings = HotpantsSettings(
        executable=_exe or "hotpants",
        plan=plan,
        regions=(nx, nx if ny is None else ny),
        direction=direction,
        image_gain=image_gain,
        template_gain=template_gain,
        deadline=deadline,
        temporary=_tmpdir,
        keep_in=_workdir,
        extra=extra or {},
        report=_reporter(verbose),
    )
    difference = subtract(pair, settings)
    result = difference.kernel
    planes: list[Any] = [_blank(difference.data, result.valid)]
    if get_convolved:
        planes.append(_blank(difference.convolved, result.valid))
    if get_scaled:
        planes.append(_blank(difference.scaled, result.valid))
    if get_noise:
        planes.append(_blank(difference.noise, result.valid))
    if get_kernel:
        planes.append(result.kernel)
    if get_header:
        planes.append(result.header)
    return planes if len(planes) > 1 else planes[0]


def _documented_plan(
    image_fwhm: float | None,
    template_fwhm: float | None,
    rel_r: float | None,
    rel_rss: float | None,
) -> tuple[KernelPlan, str]:
    """Follow the documented rules for ``r``, ``rss`` and ``ng``, and choose the direction."""
    direction, widest, gaussians = "t", image_fwhm, None
    if image_fwhm and template_fwhm:
        source, target = template_fwhm, image_fwhm
        if template_fwhm > 1.02 * image_fwhm:
            log.warning(
                "the template (FWHM %.2f) is blurrier than the science image (%.2f): the science "
                "image is convolved", template_fwhm, image_fwhm,
            )  # fmt: skip
            direction, widest = "i", template_fwhm
            source, target = image_fwhm, template_fwhm
        elif not has_matching_width(source, target):
            log.info("the seeing of both images is alike: Gaussians are scaled to the seeing")
        gaussians = matching_gaussians(source, target)
    half = _size(widest, rel_r)
    substamp = _size(widest, rel_rss)
    return KernelPlan(half, substamp, gaussians), direction


def _size(fwhm: float | None, relative: float | None) -> int | None:
    """Pixels, whole: the program reads nothing else."""
    return max(1, round(fwhm * relative)) if fwhm and relative else None


def _objects(obj: Any, fwhm: float | None) -> StarList | None:
    """Turn the documented object list into places for substamps."""
    if obj is None or len(obj) == 0:
        return None
    names = getattr(obj, "colnames", None) or list(obj.keys())
    x = np.asarray(obj["x"], dtype=np.float64)
    y = np.asarray(obj["y"], dtype=np.float64)
    flux = np.asarray(obj["flux"], dtype=np.float64) if "flux" in names else np.ones(x.size)
    known = np.isfinite(x) & np.isfinite(y)
    x, y, flux = x[known], y[known], flux[known]
    unknown = np.full(x.size, np.nan)
    sources = SourceList(
        x, y, flux, unknown, unknown, np.ones(x.size), unknown, np.ones(x.size, dtype=bool)
    )
    return StarList(sources, fwhm or UNKNOWN_FWHM)


def _blank(plane: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> Any:
    """Put NaN where the program gave no value."""
    return np.where(valid, plane, np.float32(np.nan))


def _reporter(verbose: bool | Callable[..., Any]) -> Callable[[str], object] | None:
    if callable(verbose):
        return verbose
    if verbose:
        return lambda line: log.info("hotpants: %s", line)
    return None
