"""What a worker process does with one exposure: files, pipeline, packets, status."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ExposureError
from core.exposure import ExposureResult
from service import logs
from service.events import ExposureEvent
from service.inputs import to_exposure
from service.settings import LogSettings, PacketSection, PipelineSection, Settings
from service.status import Record, status_record
from service.template_settings import TemplateSettings
from service.template_tally import TemplateCounts, TemplateTally

if TYPE_CHECKING:
    from core.pipeline import PipelineSettings
    from service.packets import EncodedAlert, PacketSettings
    from service.templates import TemplateSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkSettings:
    """The part of the settings that a worker needs; no secret is among it."""

    roots: tuple[Path, ...]
    templates: TemplateSettings
    pipeline: PipelineSection
    packets: PacketSection
    log: LogSettings
    threads: int

    @classmethod
    def of(cls, settings: Settings) -> WorkSettings:
        """Take them out of the service's settings."""
        return cls(
            roots=settings.input.roots,
            templates=settings.templates,
            pipeline=settings.pipeline,
            packets=settings.packets,
            log=settings.log,
            threads=settings.workers.threads_each,
        )


@dataclass(frozen=True)
class Processed:
    """What goes back to the service: bytes and the status, not the pixels."""

    status: Record
    alerts: tuple[EncodedAlert, ...] = ()
    templates: TemplateCounts = field(default_factory=TemplateCounts)


class ExposureWork:
    """Turns exposure events into alerts and statuses.

    Parameters
    ----------
    roots : tuple of Path
        Folders that files may be read from.
    source : TemplateSource
        Where to look for templates, and where they are kept.
    pipeline : PipelineSettings
        What the operator chose about the science.
    packets : PacketSettings
        What the operator chose about the packets.
    tally : TemplateTally
        The observer of ``source``.
    """

    def __init__(
        self,
        roots: tuple[Path, ...],
        source: TemplateSource,
        pipeline: PipelineSettings,
        packets: PacketSettings,
        tally: TemplateTally,
    ) -> None:
        self._roots = roots
        self._tally = tally
        self._source = source
        self._pipeline = pipeline
        self._packets = packets

    def warm_up(self) -> None:
        """Compile, or load from the disk cache, what the first exposure would wait for."""
        from service.rehearsal import rehearse

        started = time.perf_counter()
        self._source.warm_up()
        rehearse(self._pipeline, self._packets)
        seconds = time.perf_counter() - started
        logger.info("worker is warm after %.1f s", seconds, extra={"seconds": round(seconds, 3)})

    def __call__(self, task: ExposureEvent) -> Processed:
        """Process one exposure; every `ExposureError` becomes its status."""
        from core.pipeline import process

        with logs.about_exposure(task.exposure_id):
            try:
                exposure = to_exposure(task, self._roots)
            except ExposureError as error:
                return Processed(refusal(task, error, stage="resolve"))
            result = process(
                exposure, self._source.templates, self._pipeline, cache=self._source.projected
            )
            return self._encoded(replace(result, notes=(*task.notes, *result.notes)))

    def _encoded(self, result: ExposureResult) -> Processed:
        from service.packets import encode_alerts

        started = time.perf_counter()
        published = result.outcome == "published"
        alerts = encode_alerts(result, self._packets) if published else []
        seconds = {**result.seconds, "packets": time.perf_counter() - started}
        record = status_record(replace(result, seconds=seconds), alerts=len(alerts))
        return Processed(record, tuple(alerts), self._tally.take(self._source.cache_size))


def refusal(event: ExposureEvent, error: ExposureError, stage: str) -> Record:
    """Return the status of an exposure that did not get as far as the pipeline."""
    return status_record(
        ExposureResult(
            exposure=event.announced(),
            outcome=error.outcome,  # type: ignore[arg-type]
            reason=str(error),
            error_class=type(error).__name__,
            stage=error.stage or stage,
            retriable=error.retriable,
            notes=event.notes,
        )
    )


def make_exposure_work(settings: WorkSettings) -> ExposureWork:
    """Make the work of one worker process; runs in it.

    The science is imported here and not at the top: the service itself does without it.
    """
    from core.pipeline import PipelineSettings
    from service.packets import PacketSettings
    from service.templates import make_templates

    logs.configure(settings.log.level, settings.log.format)
    tally = TemplateTally()
    return ExposureWork(
        settings.roots,
        make_templates(
            settings.templates,
            max_pixels=settings.pipeline.max_pixels,
            threads=settings.threads,
            observer=tally,
        ),
        PipelineSettings(**settings.pipeline.model_dump(), threads=settings.threads),
        PacketSettings(**settings.packets.model_dump()),
        tally,
    )
