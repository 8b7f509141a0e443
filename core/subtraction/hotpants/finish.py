"""From the planes that HOTPANTS wrote to a `Difference`, with the noise model of every engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from core.image import FloatImage, MaskBit, MaskImage
from core.psf import PSFModel, gaussian_psf
from core.subtraction.convolve import convolve_squared
from core.subtraction.correlation import CorrelatedNoise, measure_correlation
from core.subtraction.difference import Difference
from core.subtraction.finish import assemble
from core.subtraction.hotpants.command import Options
from core.subtraction.hotpants.files import Planes, kernel_sums
from core.subtraction.hotpants.inputs import (
    DEFAULT_BACKGROUND_ORDER,
    DEFAULT_KERNEL_HALF,
    whole_number,
)
from core.subtraction.hotpants.kernel import HotpantsKernel
from core.subtraction.mask_growth import grow
from core.subtraction.pair import Pair
from core.subtraction.quality import EngineFacts, quality_of
from core.subtraction.residual_background import fit_residual_background

log = logging.getLogger(__name__)


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
    valid: npt.NDArray[np.bool_]


def finish(
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
    half = kernel.half if kernel else whole_number(options, "r", DEFAULT_KERNEL_HALF)
    mask = _mask(pair, planes, half, science_convolved)
    signal = _signal(planes, science_convolved)
    own_gain = None
    if kernel is not None and _tells_all(pair, options, kernel):
        if not science_convolved and pair.sky_variance is not None:
            own_gain = pair.science.facts.gain or None
        variance = _propagated(pair, kernel, signal, own_gain, threads)
    else:
        log.info("the noise of the difference is HOTPANTS's own plane")
        variance = planes.noise**2
        variance[~planes.valid] = np.median(variance[planes.valid])
    residual = planes.difference.copy()
    order = whole_number(options, "bgo", DEFAULT_BACKGROUND_ORDER)
    residual -= fit_residual_background(residual, variance, mask, order)
    residual[~planes.valid] = 0
    finished = assemble(residual, variance, signal, mask, pair)
    psf = _psf(pair, science_convolved)
    facts = EngineFacts(
        "hotpants", sums, planes.stamps_used, planes.stamps_skipped, (2 * half + 1, 2 * half + 1),
        "science" if science_convolved else "template", started,
        psf_error=psf.flux_error,
    )  # fmt: skip
    quality = quality_of(pair, facts, finished, signal, mask)
    convolved = pair.science.data - finished.data
    if science_convolved:
        convolved = (planes.convolved - planes.difference).astype(np.float32)
    return Difference(
        data=finished.data, noise=finished.noise, scaled=finished.scaled,
        convolved=np.ascontiguousarray(convolved, dtype=np.float32), mask=mask,
        psf=psf, kernel=HotpantsResult(kernel, planes.header, planes.valid), quality=quality,
        gain=own_gain, correlation=_correlation(pair, kernel, mask, science_convolved),
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
        sums = np.array(kernel_sums(header))
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


def _tells_all(pair: Pair, options: Options, kernel: HotpantsKernel) -> bool:
    """Whether the noise follows from both variances and the kernel."""
    return (
        kernel.convolved != "mixed"
        and options.get("n") == ("i",)
        and pair.science.variance is not None
        and (pair.template.variance is not None or "tni" in options)
    )


def _propagated(
    pair: Pair, kernel: HotpantsKernel, signal: FloatImage, gain: float | None, threads: int
) -> FloatImage:
    """Put the convolved image's variance through the squared local kernel and add the other's.

    With a gain the photon noise of the science image's sources is that of the matched template
    (`core.subtraction.pair.Pair.sky_variance`).
    """
    own: FloatImage | None = pair.science.variance
    if gain is not None and pair.sky_variance is not None:
        photons = np.maximum(signal, 0) * np.float32(1 / gain)
        own = (pair.sky_variance + photons).astype(np.float32)
    template = pair.template.variance
    if template is None:
        template = np.zeros(pair.shape, dtype=np.float32)
    assert own is not None
    science_convolved = kernel.convolved == "science"
    source, other = (own, template) if science_convolved else (template, own)
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


def _signal(planes: Planes, science_convolved: bool) -> FloatImage:
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
