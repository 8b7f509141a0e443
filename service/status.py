"""The exposure status: the one record that says what became of an exposure event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import schemas
from core.exposure import ExposureResult, TemplateFacts, finite_or_none
from service.avro_container import OneRecordContainer

if TYPE_CHECKING:
    from core.subtraction.difference import SubtractionQuality

Record = dict[str, Any]

SOFTWARE = f"skydelta {version('skydelta')}"


@dataclass(frozen=True)
class Journey:
    """Where an event came from, and when; known to the service, not to the pipeline."""

    topic: str
    partition: int
    offset: int
    received_at: datetime
    finished_at: datetime
    attempts: int = 1


def status_record(
    result: ExposureResult, *, alerts: int = 0, journey: Journey | None = None
) -> Record:
    """Return the status record of a result, as the schema ``exposure_status`` describes it.

    Parameters
    ----------
    result : ExposureResult
        What the pipeline returned.
    alerts : int
        Packets that are published with it.
    journey : Journey, optional
        Left out where no event was involved; `with_journey` adds it later.
    """
    exposure, facts = result.exposure, result.facts
    record: Record = {
        "exposure_id": exposure.exposure_id,
        "outcome": result.outcome,
        "reason": result.reason,
        "error_class": result.error_class,
        "stage": result.stage,
        "retriable": result.retriable,
        "notes": list(result.notes),
        "estimated": list(facts.estimated),
        "instrument": exposure.instrument,
        "field": exposure.field,
        "detector": exposure.detector,
        "band": facts.band or exposure.band,
        "mjd_mid": _first(facts.mjd_mid, exposure.mjd_mid),
        "exposure_time": _first(facts.exposure_time, exposure.exposure_time),
        "gain": _first(facts.gain, exposure.gain),
        "read_noise": _first(facts.read_noise, exposure.read_noise),
        "saturation": _first(facts.saturation, exposure.saturation),
        "zero_point": _first(facts.zero_point, exposure.zero_point),
        "zero_point_err": finite_or_none(facts.zero_point_err),
        "zero_point_origin": facts.zero_point_origin,
        "fwhm": finite_or_none(facts.fwhm),
        "limiting_mag": finite_or_none(result.limiting_mag),
        "stars": _count(result, "stars"),
        "detections": _count(result, "detections"),
        "candidates": _count(result, "candidates"),
        "alerts": alerts,
        "quality": None if result.quality is None else _quality(result.quality),
        "template": None if result.template is None else _template(result.template),
        "seconds": {stage: float(seconds) for stage, seconds in result.seconds.items()},
        "total_seconds": None,
        "attempts": 1,
        "input_topic": None,
        "input_partition": None,
        "input_offset": None,
        "received_at": None,
        "finished_at": None,
        "software": SOFTWARE,
    }
    return record if journey is None else with_journey(record, journey)


def with_journey(record: Record, journey: Journey) -> Record:
    """Return a status record with the facts of the event's way through the service filled in."""
    return record | {
        "total_seconds": (journey.finished_at - journey.received_at).total_seconds(),
        "attempts": journey.attempts,
        "input_topic": journey.topic,
        "input_partition": journey.partition,
        "input_offset": journey.offset,
        "received_at": journey.received_at,
        "finished_at": journey.finished_at,
    }


def encode_status(record: Record) -> bytes:
    """Write a status record as an Avro container with one record."""
    return _container().encode(record)


def json_ready(record: Record) -> Record:
    """Return a status record with its times as ISO 8601 strings, for a JSON file."""
    return {
        key: value.isoformat() if isinstance(value, datetime) else value
        for key, value in record.items()
    }


@cache
def _container() -> OneRecordContainer:
    return OneRecordContainer(schemas.load("exposure_status"))


def _first(*values: float | None) -> float | None:
    return next((finite_or_none(value) for value in values if value is not None), None)


def _count(result: ExposureResult, name: str) -> int | None:
    value = result.counts.get(name)
    return None if value is None else int(value)


def _quality(quality: SubtractionQuality) -> Record:
    return {
        "engine": quality.engine,
        "convolved": quality.convolved,
        "kernel_sum": finite_or_none(quality.kernel_sum),
        "kernel_sum_spread": finite_or_none(quality.kernel_sum_spread),
        "star_chi2": finite_or_none(quality.star_chi2),
        "sky_chi2": finite_or_none(quality.sky_chi2),
        "sky_mean": finite_or_none(quality.sky_mean),
        "shift_x": finite_or_none(quality.shift[0]),
        "shift_y": finite_or_none(quality.shift[1]),
        "shift_rms": finite_or_none(quality.shift_rms),
        "stars_used": int(quality.stars_used),
        "stars_clipped": int(quality.stars_clipped),
        "model_error": finite_or_none(quality.model_error),
        "psf_error": finite_or_none(quality.psf_error),
        "kernel_width": int(quality.kernel_shape[1]),
        "kernel_height": int(quality.kernel_shape[0]),
        "seconds": float(quality.seconds),
    }


def _template(facts: TemplateFacts) -> Record:
    return {
        "provider": facts.provider,
        "template_id": facts.template_id,
        "band": facts.band,
        "zero_point": finite_or_none(facts.zero_point),
        "overlap": finite_or_none(facts.overlap),
        "mjd_first": finite_or_none(facts.mjd_first),
        "mjd_last": finite_or_none(facts.mjd_last),
        "n_frames": int(facts.n_frames),
    }
