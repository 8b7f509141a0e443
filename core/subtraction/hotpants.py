"""HOTPANTS: the user's own program (Becker 2015, ascl:1504.004) as an engine.

Images, masks and noise maps go to it as files, its command line is built from what is known of
the pair (`core.subtraction.hotpants_command`), and what it writes comes back as a `Difference`.
The program is neither part of this package nor installed by it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from core.errors import SubtractionFailed
from core.image import FloatImage, Image, MaskBit, MaskImage
from core.psf import PSFModel, gaussian_psf
from core.subtraction.convolve import compiled_threads, convolve_squared
from core.subtraction.correlation import CorrelatedNoise, measure_correlation
from core.subtraction.difference import Difference, SubtractionQuality
from core.subtraction.finish import assemble, fit_residual_background, sky_statistics
from core.subtraction.hotpants_command import (
    KernelPlan,
    Options,
    argument_list,
    has_matching_width,
    matching_gaussians,
    stamp_grid,
    supported_order,
    with_extra,
)
from core.subtraction.hotpants_files import (
    FILL,
    NOISE_FILL,
    OUTPUTS,
    SCIENCE,
    SCIENCE_MASK,
    SCIENCE_NOISE,
    STARS,
    TEMPLATE,
    TEMPLATE_MASK,
    TEMPLATE_NOISE,
    Planes,
    read_planes,
    remove_outputs,
    working_folder,
    write_image,
    write_noise,
    write_stars,
)
from core.subtraction.hotpants_kernel import HotpantsKernel, read_kernel
from core.subtraction.hotpants_process import find_program, last_words, run_program
from core.subtraction.mask_growth import grow
from core.subtraction.pair import Pair
from core.subtraction.sfft import choose_kernel_shape

log = logging.getLogger(__name__)

DEFAULT_KERNEL_HALF = 10  # of the program itself
DEFAULT_SUBSTAMP_HALF = 15


@dataclass(frozen=True)
class HotpantsSettings:
    """Options of the engine; None lets it choose from the images.

    Attributes
    ----------
    executable : str
        A name to look up on ``PATH``, or a path.
    plan : KernelPlan, optional
        Sizes and basis of the kernel.
    kernel_order, background_order : int
        Orders of the polynomials in space (``-ko``, ``-bgo``), so that both may vary; lowered
        where a region has too few stamps to hold them.
    regions : tuple of int
        Independent regions in x and y; each has a kernel of its own.
    direction : str, optional
        ``t`` or ``i``: which image to convolve. The sharper one when None.
    image_gain, template_gain : float, optional
        Electrons per ADU, for an image without a noise map: the program then models its noise.
    deadline : float
        Seconds that the program may take.
    temporary : str, optional
        Where the run's own temporary folder is made.
    keep_in : str, optional
        A folder to work in instead, whose files are kept.
    extra : mapping
        Options of the program that override any chosen here (`with_extra`).
    report : callable, optional
        Handed every line that the program says.
    """

    executable: str = "hotpants"
    plan: KernelPlan | None = None
    kernel_order: int = 2
    background_order: int = 2
    regions: tuple[int, int] = (1, 1)
    direction: str | None = None
    image_gain: float | None = None
    template_gain: float | None = None
    deadline: float = 300.0
    temporary: str | None = None
    keep_in: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    report: Callable[[str], object] | None = None


@dataclass(frozen=True)
class HotpantsResult:
    """What HOTPANTS found, beside the planes.

    Attributes
    ----------
    kernel : HotpantsKernel or None
        None where the table that it wrote does not reproduce the image that it convolved.
    header : astropy.io.fits.Header
        Header of its difference: regions, kernel sums, figures of merit.
    valid : ndarray of bool, shape (ny, nx)
        False where the program gave no value.
    """

    kernel: HotpantsKernel | None
    header: fits.Header
    valid: Any


def subtract(
    pair: Pair, settings: HotpantsSettings | None = None, *, threads: int = 1
) -> Difference:
    """Match and subtract by running HOTPANTS.

    Of a pair with noise maps only the matched image is taken from the program, and the noise is
    propagated as for every engine: the variance of the convolved image goes through the squared
    local kernel. The program's own noise plane is the same by default, but not with ``-convvar``,
    and lacks the astrometric term. It is used where an image has no noise map, or where its kernel
    is not known (several regions convolved in different directions, another photometric system
    asked for in ``extra``).

    Parameters
    ----------
    pair : Pair
        Both images on one grid.
    settings : HotpantsSettings, optional
        Options.
    threads : int
        Threads for our compiled loops; HOTPANTS itself has one.

    Returns
    -------
    Difference
        In science ADU. Pixels to which the program gave no value are masked and hold zero; their
        noise is the image's.

    Raises
    ------
    core.errors.SubtractionFailed
        If the program is not installed, fails, is late, or finds no kernel.
    """
    settings = settings or HotpantsSettings()
    started = time.perf_counter()
    program = find_program(settings.executable)
    if pair.template.shape != pair.shape:
        raise SubtractionFailed(
            f"science image and template differ in shape: {pair.shape}, {pair.template.shape}"
        )
    with working_folder(settings.temporary, settings.keep_in) as folder:
        options = _prepare(folder, pair, settings)
        remove_outputs(folder, options)
        messages = run_program(
            argument_list(program, options), folder, settings.deadline, settings.report
        )
        planes = read_planes(folder, options, pair.shape)
        kernel = _read_kernel(folder, options, pair.shape)
    _check_fitted(planes, messages)
    with compiled_threads(threads):
        return _finish(pair, options, planes, kernel, threads, started)


def _prepare(folder: Path, pair: Pair, settings: HotpantsSettings) -> Options:
    """Write the files that HOTPANTS reads, and return its options."""
    lowest, highest = write_image(folder, pair.science, (SCIENCE, SCIENCE_MASK))
    template_lowest, template_highest = write_image(
        folder, pair.template, (TEMPLATE, TEMPLATE_MASK)
    )
    direction = settings.direction or _direction(pair)
    plan = settings.plan or _plan(pair, direction)
    options: Options = {
        "inim": (SCIENCE,),
        "tmplim": (TEMPLATE,),
        **OUTPUTS,
        "imi": (SCIENCE_MASK,),
        "tmi": (TEMPLATE_MASK,),
        # All good pixels are valid: the defaults drop a sky of zero and stars above 25,000 ADU.
        **_valid_range("i", lowest, highest),
        **_valid_range("t", template_lowest, template_highest),
    }
    options |= _noise_options(folder, "i", SCIENCE_NOISE, pair.science, settings.image_gain)
    options |= _noise_options(folder, "t", TEMPLATE_NOISE, pair.template, settings.template_gain)
    grid = stamp_grid(pair.shape, plan.half or DEFAULT_KERNEL_HALF, settings.regions)
    options |= {
        "c": (direction,),
        "n": ("i",),  # science ADU, whichever image is convolved
        "ko": (str(supported_order(settings.kernel_order, grid[0] * grid[1])),),
        "bgo": (str(supported_order(settings.background_order, grid[0] * grid[1])),),
        "nrx": (str(settings.regions[0]),),
        "nry": (str(settings.regions[1]),),
        "nsx": (str(grid[0]),),
        "nsy": (str(grid[1]),),
        "fi": (f"{FILL:g}",),
        "fin": (f"{NOISE_FILL:g}",),
    }
    options |= plan.options()
    if pair.stars is not None and write_stars(folder, pair.stars, pair.shape):
        options["ssf"] = (STARS,)
    return with_extra(options, settings.extra)


def _direction(pair: Pair) -> str:
    """Convolve the sharper image: nothing is ever deconvolved."""
    if pair.template_fwhm > 1.02 * pair.science_fwhm:
        log.info(
            "the template (FWHM %.2f) is blurrier than the science image (%.2f): HOTPANTS "
            "convolves the science image", pair.template_fwhm, pair.science_fwhm,
        )  # fmt: skip
        return "i"
    return "t"


def _plan(pair: Pair, direction: str) -> KernelPlan:
    """Choose sizes and basis from both seeings.

    The documented 3 and 4 times the seeing were measured to leave 2 to 5 % more chi² on the stars
    than a kernel of the matching's own size with substamps of 2.5 times the seeing.
    """
    source, target = pair.template_fwhm, pair.science_fwhm
    if direction == "i":
        source, target = target, source
    if not has_matching_width(source, target):
        log.info(
            "the seeing of both images is alike (%.2f and %.2f pixels): HOTPANTS gets Gaussians "
            "scaled to the seeing, not to the difference", source, target,
        )  # fmt: skip
    half = choose_kernel_shape(source, target)[0] // 2
    return KernelPlan(
        half, max(half + 1, int(np.ceil(2.5 * target))), matching_gaussians(source, target)
    )


def _valid_range(image: str, lowest: float, highest: float) -> Options:
    """Say that everything between the good pixels' extremes is valid, with some room."""
    room = 1.0 + 0.01 * (highest - lowest)
    return {f"{image}l": (f"{lowest - room:.9g}",), f"{image}u": (f"{highest + room:.9g}",)}


def _noise_options(
    folder: Path, letter: str, name: str, image: Image, gain: float | None
) -> Options:
    """Give a noise map, or the gain from which the program models one."""
    options: Options = {} if not gain else {f"{letter}g": (f"{gain:.9g}",)}
    if image.variance is not None or (letter == "t" and not gain):
        write_noise(folder, name, image.variance, image)
        options[f"{letter}ni"] = (name,)
    return options


def _read_kernel(folder: Path, options: Options, shape: tuple[int, int]) -> HotpantsKernel | None:
    half = int(float(options.get("r", (str(DEFAULT_KERNEL_HALF),))[0]))
    substamp = int(float(options.get("rss", (str(DEFAULT_SUBSTAMP_HALF),))[0]))
    if "oki" not in options or "pca" in options or "ki" in options:
        return None
    try:
        return read_kernel(str(folder / options["oki"][0]), shape, half, substamp)
    except (OSError, KeyError, ValueError) as error:
        log.warning("the kernel that HOTPANTS wrote cannot be read: %s", error)
        return None


def _check_fitted(planes: Planes, messages: list[str]) -> None:
    """Find out whether there was a fit: the program calls it a success when there was none."""
    sums = [str(planes.header[key]) for key in planes.header if key.startswith("KSUM")]
    if not sums or not planes.valid.any():
        raise SubtractionFailed(
            "HOTPANTS fitted no kernel: it found no star it could use, or the masks leave it "
            f"none; its last words: {last_words(messages)}"
        )
    values = [_as_float(value) for value in sums]
    if not all(np.isfinite(value) and value > 0 for value in values):
        raise SubtractionFailed(
            f"HOTPANTS found a kernel of sum {', '.join(sums)}: the images do not show the same "
            "sky, or one of them is not photometric"
        )


def _as_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _finish(
    pair: Pair,
    options: Options,
    planes: Planes,
    kernel: HotpantsKernel | None,
    threads: int,
    started: float,
) -> Difference:
    """Propagate the noise and judge, as for every engine."""
    science_convolved = _convolved(planes.header, options) == "science"
    if kernel is not None and not _reproduces(pair, planes, kernel):
        log.warning("the kernel that HOTPANTS wrote does not give the image that it convolved")
        kernel = None
    sums = _flux_scales(planes.header, kernel, science_convolved)
    half = kernel.half if kernel else int(float(options.get("r", ("10",))[0]))
    mask = _mask(pair, planes, half, science_convolved)
    variance = _variance(pair, options, planes, kernel, science_convolved, threads)
    residual = planes.difference.copy()
    order = int(float(options.get("bgo", ("1",))[0]))
    residual -= fit_residual_background(residual, variance, mask != 0, order)
    residual[~planes.valid] = 0
    signal = _signal(pair, planes, science_convolved)
    finished = assemble(residual, variance, signal, mask, pair)
    sky_mean, sky_chi2 = sky_statistics(finished.scaled, signal, variance, mask)
    convolved = pair.science.data - finished.data
    if science_convolved:
        convolved = (planes.convolved - planes.difference).astype(np.float32)
    quality = SubtractionQuality(
        engine="hotpants",
        kernel_sum=float(np.median(sums)),
        kernel_sum_spread=float(np.std(sums) / np.median(sums)),
        star_chi2=finished.star_chi2,
        sky_chi2=sky_chi2,
        sky_mean=sky_mean,
        shift=pair.shift,
        shift_rms=pair.shift_rms,
        stars_used=planes.stamps_used,
        stars_clipped=planes.stamps_skipped,
        kernel_shape=(2 * half + 1, 2 * half + 1),
        convolved="science" if science_convolved else "template",
        seconds=time.perf_counter() - started,
        model_error=finished.model_error,
    )
    return Difference(
        data=finished.data, noise=finished.noise, scaled=finished.scaled,
        convolved=np.ascontiguousarray(convolved, dtype=np.float32), mask=mask,
        psf=_psf(pair, science_convolved),
        kernel=HotpantsResult(kernel, planes.header, planes.valid), quality=quality,
        correlation=_correlation(pair, kernel, mask, science_convolved),
    )  # fmt: skip


def _convolved(header: fits.Header, options: Options) -> str:
    """Which image was convolved in most regions."""
    said = [str(header[key]).strip().upper() for key in header if key.startswith("CONVOL")]
    if not said:
        return "science" if options.get("c") == ("i",) else "template"
    images = sum(word.startswith("I") for word in said)
    return "science" if 2 * images > len(said) else "template"


def _flux_scales(
    header: fits.Header, kernel: HotpantsKernel | None, science_convolved: bool
) -> npt.NDArray[np.float64]:
    """Science ADU per template ADU in every region; the header has four digits of it."""
    if kernel is not None and kernel.convolved != "mixed":
        sums = kernel.sums
    else:
        sums = np.array([_as_float(str(header[key])) for key in header if key.startswith("KSUM")])
    return 1 / sums if science_convolved else sums


def _reproduces(pair: Pair, planes: Planes, kernel: HotpantsKernel) -> bool:
    """Hold the kernel against the convolved image, at its brightest places."""
    if kernel.convolved == "mixed":
        return True  # it is used for nothing but to look at
    science_convolved = kernel.convolved == "science"
    source = pair.science if science_convolved else pair.template
    half = kernel.half
    inner = np.s_[half:-half, half:-half]
    bad = grow(source.bad, half, half)
    use = planes.valid[inner] & ~bad[inner]
    if use.sum() < 50:
        return False
    values = np.where(use, planes.convolved[inner], -np.inf).ravel()
    bright = np.argpartition(-values, min(200, values.size - 1))[:200]
    dim = np.flatnonzero(use.ravel())[:: max(1, int(use.sum()) // 50)]
    places = np.unique(np.concatenate([bright[np.isfinite(values[bright])], dim]))
    y, x = np.unravel_index(places, use.shape)
    predicted = np.empty(places.size)
    for i, (py, px) in enumerate(zip(y + half, x + half, strict=True)):
        region = kernel.region_at(px, py)
        box = source.data[py - half : py + half + 1, px - half : px + half + 1]
        value = float((region.at(px, py)[::-1, ::-1] * box).sum())
        predicted[i] = value / region.total if science_convolved else value
    written = values[places].astype(np.float64)
    slope, _ = np.polyfit(predicted, written, 1)
    agreement = np.corrcoef(predicted, written)[0, 1]
    log.debug("kernel against convolved image: slope %.4f, correlation %.5f", slope, agreement)
    return bool(abs(slope - 1) < 0.05 and agreement > 0.98)


def _mask(pair: Pair, planes: Planes, half: int, science_convolved: bool) -> MaskImage:
    """Join both masks, grow that of the convolved image by the kernel, add what has no value."""
    mask = pair.science.mask.copy()
    if science_convolved:
        mask[grow(pair.science.bad, half, half)] |= np.uint16(MaskBit.BAD)
        template_bad = pair.template.bad
    else:
        template_bad = grow(pair.template.bad, half, half)
    mask[template_bad] |= np.uint16(MaskBit.TEMPLATE_BAD)
    for bit, ours in (
        (MaskBit.SATURATED, MaskBit.TEMPLATE_SATURATED),
        (MaskBit.NO_DATA, MaskBit.TEMPLATE_NO_DATA),
    ):
        mask[(pair.template.mask & bit) != 0] |= np.uint16(ours)
    for edge in (np.s_[:half], np.s_[-half:], np.s_[:, :half], np.s_[:, -half:]):
        mask[edge] |= np.uint16(MaskBit.EDGE)
    unexplained = ~planes.valid & (mask == 0)
    mask[unexplained] |= np.uint16(MaskBit.BAD)
    return mask


def _variance(
    pair: Pair,
    options: Options,
    planes: Planes,
    kernel: HotpantsKernel | None,
    science_convolved: bool,
    threads: int,
) -> FloatImage:
    """Propagate both variances, or take the program's noise plane where they do not say all."""
    ours = (
        kernel is not None
        and kernel.convolved != "mixed"
        and options.get("n") == ("i",)
        and pair.science.variance is not None
        and (pair.template.variance is not None or "tni" in options)
    )
    if not ours:
        log.info("the noise of the difference is HOTPANTS's own plane")
        variance = planes.noise**2
        typical = np.median(variance[planes.valid])
        variance[~planes.valid] = typical
        return variance
    assert kernel is not None
    assert pair.science.variance is not None
    template_variance = pair.template.variance
    if template_variance is None:
        template_variance = np.zeros(pair.shape, dtype=np.float32)
    source, other = template_variance, pair.science.variance
    if science_convolved:
        source, other = other, source
    variance = np.empty(pair.shape, dtype=np.float32)
    for region in kernel.regions:
        x0, x1, y0, y1 = region.window
        through = convolve_squared(
            np.ascontiguousarray(source[y0:y1, x0:x1]), region.coefficients, region.order,
            threads=threads,
        )  # fmt: skip
        inner = np.s_[region.y0 - y0 : region.y1 - y0, region.x0 - x0 : region.x1 - x0]
        box = np.s_[region.y0 : region.y1, region.x0 : region.x1]
        scale = 1 / region.total**2 if science_convolved else 1.0
        variance[box] = (other[box] + through[inner]) * np.float32(scale)
    return variance


def _signal(pair: Pair, planes: Planes, science_convolved: bool) -> FloatImage:
    """Return the matched image above its sky, on the science scale."""
    matched = planes.convolved
    if science_convolved:
        matched = planes.convolved - planes.difference
    sample = matched[::7, ::7][planes.valid[::7, ::7]]
    level = np.float32(np.median(sample)) if sample.size else np.float32(0)
    signal: FloatImage = np.where(planes.valid, matched - level, 0).astype(np.float32)
    return signal


def _psf(pair: Pair, science_convolved: bool) -> PSFModel:
    """The difference has the PSF of the image that was not convolved."""
    image = pair.template if science_convolved else pair.science
    fwhm = pair.template_fwhm if science_convolved else pair.science_fwhm
    return image.psf if image.psf is not None else gaussian_psf(fwhm, pair.shape)


def _correlation(
    pair: Pair, kernel: HotpantsKernel | None, mask: MaskImage, science_convolved: bool
) -> CorrelatedNoise:
    """Take the noise correlation from the kernel at the centre of the frame."""
    source, target = pair.template.variance, pair.science.variance
    if science_convolved:
        source, target = target, source
    if kernel is None or source is None or target is None:
        return CorrelatedNoise()
    ny, nx = pair.shape
    centre = kernel.at(0.5 * (nx - 1), 0.5 * (ny - 1))
    return measure_correlation(centre, source, target, mask != 0)
