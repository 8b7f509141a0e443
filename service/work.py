"""What a worker process does with one exposure: files, pipeline, packets, status."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ExposureError
from core.exposure import Exposure, ExposureResult
from service import logs
from service.events import ExposureEvent
from service.inputs import to_exposure
from service.settings import Settings
from service.status import Record, status_record

if TYPE_CHECKING:
    from core.pipeline import PipelineSettings
    from core.templates import TemplateProvider
    from service.packets import EncodedAlert, PacketSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkSettings:
    """The part of the settings that a worker needs; no secret is among it."""

    roots: tuple[Path, ...]
    templates: Path
    pipeline: PipelineSettings
    packets: PacketSettings
    log_level: str
    log_format: str

    @classmethod
    def of(cls, settings: Settings) -> WorkSettings:
        """Take them out of the service's settings."""
        return cls(
            roots=settings.input.roots,
            templates=settings.templates.path,
            pipeline=pipeline_settings(settings),
            packets=packet_settings(settings),
            log_level=settings.log.level,
            log_format=settings.log.format,
        )


def pipeline_settings(settings: Settings) -> PipelineSettings:
    """Return what the operator chose about the science, as the pipeline wants it."""
    from core.pipeline import PipelineSettings

    return PipelineSettings(**settings.pipeline.model_dump(), threads=settings.workers.threads_each)


def packet_settings(settings: Settings) -> PacketSettings:
    """Return what the operator chose about the packets, as the encoder wants it."""
    from service.packets import PacketSettings

    return PacketSettings(**settings.packets.model_dump())


@dataclass(frozen=True)
class Processed:
    """What goes back to the service: bytes and the status, not the pixels."""

    status: Record
    alerts: tuple[EncodedAlert, ...] = ()


class ExposureWork:
    """Turns exposure events into alerts and statuses.

    Parameters
    ----------
    settings : WorkSettings
        What the operator chose.
    process : callable
        `core.pipeline.process`, or something that stands in for it.
    """

    def __init__(
        self,
        settings: WorkSettings,
        process: Callable[[Exposure, TemplateProvider, PipelineSettings], ExposureResult],
        templates: TemplateProvider,
    ) -> None:
        self._settings = settings
        self._process = process
        self._templates = templates

    def warm_up(self) -> None:
        """Compile, or load from the disk cache, what the first exposure would wait for."""
        from service.rehearsal import rehearse

        started = time.perf_counter()
        rehearse(self._settings.pipeline, self._settings.packets)
        seconds = time.perf_counter() - started
        logger.info("worker is warm after %.1f s", seconds, extra={"seconds": round(seconds, 3)})

    def __call__(self, task: ExposureEvent) -> Processed:
        """Process one exposure; every `ExposureError` becomes its status."""
        event = task
        with logs.about_exposure(event.exposure_id):
            try:
                exposure = to_exposure(event, self._settings.roots)
            except ExposureError as error:
                return Processed(refusal(event, error, stage="resolve"))
            result = self._process(exposure, self._templates, self._settings.pipeline)
            return self._encoded(replace(result, notes=(*event.notes, *result.notes)))

    def _encoded(self, result: ExposureResult) -> Processed:
        from service.packets import encode_alerts

        started = time.perf_counter()
        published = result.outcome == "published"
        alerts = encode_alerts(result, self._settings.packets) if published else []
        seconds = {**result.seconds, "packets": time.perf_counter() - started}
        record = status_record(replace(result, seconds=seconds), alerts=len(alerts))
        return Processed(record, tuple(alerts))


def refusal(event: ExposureEvent, error: ExposureError, stage: str) -> Record:
    """Return the status of an exposure that did not get as far as the pipeline."""
    exposure = Exposure(
        event.exposure_id,
        event.science_uri,
        instrument=event.instrument,
        band=event.band,
        mjd_mid=event.mjd_mid,
        field=event.field,
        detector=event.detector,
    )
    return status_record(
        ExposureResult(
            exposure=exposure,
            outcome=error.outcome,  # type: ignore[arg-type]
            reason=str(error),
            error_class=type(error).__name__,
            stage=error.stage or stage,
            retriable=error.retriable,
            notes=event.notes,
        )
    )


def make_exposure_work(settings: WorkSettings) -> ExposureWork:
    """Make the work of one worker process; runs in it."""
    from core.pipeline import process
    from core.templates.directory import DirectoryTemplates

    logs.configure(settings.log_level, settings.log_format)  # type: ignore[arg-type]
    return ExposureWork(settings, process, DirectoryTemplates(settings.templates))
