"""From an exposure to its candidates: the main job, top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from core.detection import detect, significance
from core.errors import ExposureError, QualityRejected, SubtractionFailed
from core.exposure import Exposure, ExposureResult, TemplateFacts
from core.image import ExposureFacts, Image
from core.measurement import Field, magnitude, measure
from core.noise import Sky, measure_sky, sky_variance, with_noise
from core.psf import measure_psf
from core.reading import read_exposure
from core.stars import SourceList, StarList, find_sources, select_saturated, select_stars
from core.subtraction import hotpants, sfft, zogy
from core.subtraction.difference import Difference
from core.subtraction.hotpants import HotpantsSettings
from core.subtraction.pair import Pair
from core.subtraction.verdict import QualityLimits, judge
from core.templates import TemplateProvider, TemplateRequest
from core.templates.cache import FileCache
from core.templates.matching import GriddedTemplate
from core.templates.projected import template_on_grid

log = logging.getLogger(__name__)

Engine = Callable[[Pair], Difference]


@dataclass(frozen=True)
class PipelineSettings:
    """What an operator may choose about the science.

    Attributes
    ----------
    engines : sequence of str
        The ladder of engines; the next is tried when one is not trustworthy.
    threshold : float
        Detection threshold on the matched-filter S/N map, sigma.
    max_pixels : int
        Larger images are refused, from the header, before any allocation.
    min_overlap : float
        The least fraction of the exposure that a template must cover.
    max_candidates : int
        More candidates than this reject the exposure: a bad subtraction must not flood the topic.
    cutout_size : int
        Side of the cutouts, pixels, odd.
    aligned : bool
        Science and template are already on one pixel grid; no WCS is needed.
    keep_difference : bool
        Return the difference planes with the result.
    threads : int
        Threads that compiled and BLAS code may use.
    limits : QualityLimits
        What a subtraction must keep to be published.
    hotpants : str
        Name or path of the user's HOTPANTS program, for the engine of that name.
    """

    engines: Sequence[str] = ("sfft",)
    threshold: float = 5.0
    max_pixels: int = 20_000 * 20_000
    min_overlap: float = 0.3
    max_candidates: int = 2000
    cutout_size: int = 63
    aligned: bool = False
    keep_difference: bool = False
    threads: int = 1
    limits: QualityLimits = field(default_factory=QualityLimits)
    hotpants: str = "hotpants"


@dataclass
class _Progress:
    """What is known so far; it becomes the result whatever happens."""

    exposure: Exposure
    stage: str = "read"
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: {"stars": 0, "detections": 0, "candidates": 0}
    )
    notes: list[str] = field(default_factory=list)
    science: Image | None = None
    template: TemplateFacts | None = None
    difference: Difference | None = None
    limiting_mag: float | None = None
    on_stage: Callable[[str], None] | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a stage under its name."""
        self.stage = stage
        if self.on_stage is not None:
            self.on_stage(stage)
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def use(self, template: TemplateFacts, notes: Sequence[str]) -> None:
        """Remember which template it is, and how it was read."""
        self.template = template
        self.notes.extend(f"template: {note}" for note in notes)

    def result(self, *, keep_difference: bool, **values: object) -> ExposureResult:
        """Build the result from what is known."""
        base = ExposureResult(
            exposure=self.exposure,
            outcome="published",
            facts=self.science.facts if self.science else _facts_of(self.exposure),
            template=self.template,
            quality=self.difference.quality if self.difference else None,
            counts=dict(self.counts),
            seconds=dict(self.seconds),
            notes=tuple(dict.fromkeys(self.notes)),
            wcs=self.science.wcs if self.science else None,
            shape=self.science.shape if self.science else None,
            limiting_mag=self.limiting_mag,
            difference=self.difference if keep_difference else None,
        )
        return replace(base, **values)  # type: ignore[arg-type]


def process(
    exposure: Exposure,
    templates: TemplateProvider,
    settings: PipelineSettings,
    *,
    cache: FileCache | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> ExposureResult:
    """Find what changed in one exposure.

    Errors of the `core.errors` family become the result's outcome, reason and stage; any other
    exception is a defect and propagates.

    Parameters
    ----------
    exposure : Exposure
        What the event announced.
    templates : TemplateProvider
        Where to look for a template.
    settings : PipelineSettings
        What the operator chose.
    cache : FileCache or None
        Where templates are kept as they were projected, for the next exposure of this pointing.
    on_stage : callable or None
        Called with the name of every stage as it begins.

    Returns
    -------
    ExposureResult
        The candidates with their cutouts, or why there are none.
    """
    progress = _Progress(exposure, on_stage=on_stage)
    try:
        return _process(progress, templates, settings, cache)
    except ExposureError as error:
        log.info("%s: %s in %s: %s", exposure.exposure_id, error.outcome, progress.stage, error)
        return progress.result(
            keep_difference=settings.keep_difference,
            outcome=error.outcome,
            reason=str(error),
            error_class=type(error).__name__,
            stage=error.stage or progress.stage,
            retriable=error.retriable,
        )


def _process(
    progress: _Progress,
    templates: TemplateProvider,
    settings: PipelineSettings,
    cache: FileCache | None,
) -> ExposureResult:
    with progress.timed("read"):
        science = read_exposure(
            progress.exposure, max_pixels=settings.max_pixels, need_wcs=not settings.aligned
        )
        progress.science = science
        progress.notes.extend(science.notes)
    with progress.timed("noise"):
        sky = measure_sky(science)
        science = with_noise(science, sky)
        progress.science = science
    with progress.timed("stars"):
        sources, stars = _stars_of(science, sky)
        psf = measure_psf(
            science.data - sky.level, sky.rms, science.bad, stars.sources, stars.fwhm,
            select_saturated(sources, science.mask),
        )  # fmt: skip
        science = replace(science, psf=psf, facts=science.facts.with_estimate(fwhm=psf.fwhm))
        progress.science = science
        progress.counts["stars"] = len(stars)
    template = template_on_grid(
        templates,
        _request(progress.exposure, science, settings),
        science,
        sources,
        cache=cache,
        threads=settings.threads,
        timed=progress.timed,
        on_found=progress.use,
    )
    gridded = template.gridded
    progress.notes.extend(gridded.notes)
    with progress.timed("subtract"):
        pair = _pair(science, sky, stars, gridded)
        progress.difference = _subtract(progress, pair, settings)
        science = _calibrated(science, template.facts, progress.difference)
        progress.science = science
    with progress.timed("detect"):
        smap = significance(progress.difference, threads=settings.threads)
        detections = detect(smap.snr, progress.difference.mask, settings.threshold)
        progress.counts["detections"] = len(detections)
        progress.limiting_mag = magnitude(
            5 * float(np.median(smap.flux_err)), science.facts.zero_point
        )
        if len(detections) > 5 * settings.max_candidates:
            raise QualityRejected(_flood(len(detections), "detections", settings))
    with progress.timed("measure"):
        candidates, rejected = measure(
            Field(
                science, gridded.image, progress.difference, smap, sky, gridded.sources,
                progress.difference.quality.kernel_sum,
            ),
            detections, settings.threshold, settings.cutout_size,
        )  # fmt: skip
        progress.counts["candidates"] = len(candidates)
        progress.counts.update({f"rejected_{reason}": n for reason, n in rejected.items()})
        if len(candidates) > settings.max_candidates:
            raise QualityRejected(_flood(len(candidates), "candidates", settings))
    return progress.result(keep_difference=settings.keep_difference, candidates=candidates)


def _stars_of(science: Image, sky: Sky) -> tuple[SourceList, StarList]:
    """Find the sources and, among them, the stars."""
    sources = find_sources(science.data - sky.level, sky.rms, science.mask)
    stars = select_stars(sources)
    if not np.isfinite(stars.fwhm):
        raise QualityRejected(
            f"{science.name}: no star was found ({len(sources)} sources, none clean and "
            "unresolved), so neither seeing nor matching can be measured"
        )
    return sources, stars


def _request(exposure: Exposure, science: Image, settings: PipelineSettings) -> TemplateRequest:
    """Ask for a template of this place and band."""
    return TemplateRequest(
        wcs=science.wcs,
        shape=science.shape,
        band=science.facts.band,
        mjd_mid=science.facts.mjd_mid,
        min_overlap=settings.min_overlap,
        exclude=(exposure.science, *([exposure.origin] if exposure.origin else [])),
    )


def _pair(science: Image, sky: Sky, stars: StarList, gridded: GriddedTemplate) -> Pair:
    """Put both images, their skies removed, before the engine."""
    return Pair(
        science=replace(science, data=science.data - sky.level),
        template=gridded.image,
        science_fwhm=science.psf.fwhm if science.psf else stars.fwhm,
        template_fwhm=gridded.fwhm,
        stars=stars,
        shift=gridded.shift,
        shift_rms=gridded.shift_rms,
        sky_variance=sky_variance(science, sky),
    )


def _engines(settings: PipelineSettings) -> Mapping[str, Engine]:
    return {
        "sfft": partial(sfft.subtract, threads=settings.threads),
        "zogy": partial(zogy.subtract, threads=settings.threads),
        "hotpants": partial(
            hotpants.subtract,
            settings=HotpantsSettings(executable=settings.hotpants),
            threads=settings.threads,
        ),
    }


def engine_names() -> tuple[str, ...]:
    """Return the engines that the ladder may name."""
    return tuple(_engines(PipelineSettings()))


def _subtract(progress: _Progress, pair: Pair, settings: PipelineSettings) -> Difference:
    """Go down the ladder until an engine's difference can be trusted."""
    engines = _engines(settings)
    verdicts = []
    last: SubtractionFailed | None = None
    for name in settings.engines:
        if name not in engines:
            raise ValueError(f"unknown engine {name!r}; there are {', '.join(engines)}")
        try:
            difference = engines[name](pair)
        except SubtractionFailed as error:
            verdicts.append(f"{name}: {error}")
            last = error
            continue
        progress.difference = difference
        problems = judge(difference.quality, settings.limits)
        if not problems:
            progress.notes.extend(f"tried before: {verdict}" for verdict in verdicts)
            return difference
        verdicts.append(f"{name}: {'; '.join(problems)}")
    raise SubtractionFailed("no trustworthy subtraction: " + " | ".join(verdicts)) from last


def _calibrated(science: Image, template: TemplateFacts, difference: Difference) -> Image:
    """Take the zero point from the kernel's sum where neither event nor header gave one."""
    facts = science.facts
    if facts.zero_point is not None or template.zero_point is None:
        return science
    quality = difference.quality
    zero_point = template.zero_point + 2.5 * np.log10(quality.kernel_sum)
    error = 1.0857 * quality.kernel_sum_spread
    return replace(
        science,
        facts=replace(
            facts,
            zero_point=float(zero_point),
            zero_point_err=float(error),
            zero_point_origin="template",
        ),
    )


def _facts_of(exposure: Exposure) -> ExposureFacts:
    """Return what the event itself states, for a result that never got to the pixels."""
    return ExposureFacts(
        gain=exposure.gain,
        read_noise=exposure.read_noise,
        saturation=exposure.saturation,
        exposure_time=exposure.exposure_time,
        mjd_mid=exposure.mjd_mid,
        band=exposure.band,
        zero_point=exposure.zero_point,
        zero_point_origin=None if exposure.zero_point is None else "event",
    )


def _flood(n: int, what: str, settings: PipelineSettings) -> str:
    return (
        f"{n} {what}, more than the {settings.max_candidates} candidates that are allowed: the "
        "subtraction is not to be trusted, or the limit is too low for this field"
    )
