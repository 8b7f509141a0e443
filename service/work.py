"""What a worker process does with one exposure: files, pipeline, packets, status."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from core.errors import ExposureError, InputUnavailable
from core.exposure import ExposureResult
from service import logs
from service.events import ExposureEvent
from service.input_limits import InputLimits
from service.inputs import Located, located
from service.settings import LogSettings, PacketSection, PipelineSection, Settings
from service.stage_reports import enter_stage
from service.status import Record, status_record
from service.template_settings import TemplateSettings
from service.template_tally import TemplateCounts, TemplateTally

if TYPE_CHECKING:
    from core.pipeline import PipelineSettings
    from service.packets import EncodedAlert, PacketSettings
    from service.templates import TemplateSource

logger = logging.getLogger(__name__)

_FETCH = "fetch"


@dataclass(frozen=True)
class WorkSettings:
    """The part of the settings that a worker needs; no secret is among it."""

    inputs: InputLimits
    templates: TemplateSettings
    pipeline: PipelineSection
    packets: PacketSection
    log: LogSettings
    threads: int

    @classmethod
    def of(cls, settings: Settings) -> WorkSettings:
        """Take them out of the service's settings."""
        return cls(
            inputs=InputLimits.of(settings),
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
    retry_after: float | None = None  # seconds that the server of an input asks for


class ExposureWork:
    """Turns exposure events into alerts and statuses.

    Parameters
    ----------
    inputs : InputLimits
        What files may be read and fetched.
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
        inputs: InputLimits,
        source: TemplateSource,
        pipeline: PipelineSettings,
        packets: PacketSettings,
        tally: TemplateTally,
    ) -> None:
        self._inputs = inputs
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
        with logs.about_exposure(task.exposure_id):
            enter_stage(_FETCH)
            started = time.perf_counter()
            with ExitStack() as stack:
                try:
                    files = stack.enter_context(located(task, self._inputs))
                except ExposureError as error:
                    asked = error.retry_after if isinstance(error, InputUnavailable) else None
                    return Processed(refusal(task, error, stage="resolve"), retry_after=asked)
                return self._work(task, files, time.perf_counter() - started)

    def _work(self, task: ExposureEvent, files: Located, fetched_seconds: float) -> Processed:
        from core.pipeline import process

        result = process(
            files.exposure,
            self._source.templates,
            self._pipeline,
            cache=self._source.projected,
            on_stage=enter_stage,
        )
        spent = {_FETCH: fetched_seconds} if files.origins else {}
        notes = (*task.notes, *map(files.in_its_words, result.notes))
        enter_stage("packets")
        return self._encoded(
            replace(
                result,
                reason=files.in_its_words(result.reason),
                notes=notes,
                seconds={**spent, **result.seconds},
            )
        )

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
        settings.inputs,
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
