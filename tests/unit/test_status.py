"""The status record fits its schema, whole and empty, and says where the event came from."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import fastavro
import numpy as np
import pytest

import schemas
from core.exposure import Exposure, ExposureResult, TemplateFacts
from core.image import ExposureFacts
from core.subtraction.difference import SubtractionQuality
from service.status import Journey, encode_status, json_ready, status_record

QUALITY = SubtractionQuality(
    engine="sfft",
    kernel_sum=1.5,
    kernel_sum_spread=0.01,
    star_chi2=float("nan"),
    sky_chi2=1.0,
    sky_mean=0.0,
    shift=(0.1, -0.2),
    shift_rms=0.05,
    stars_used=np.int64(100),  # type: ignore[arg-type]
    stars_clipped=3,
    kernel_shape=(11, 13),
    convolved="template",
    seconds=0.5,
    psf_error=0.012,
)
FULL = ExposureResult(
    exposure=Exposure("e1", "/s.fits", band="r", instrument="cam", gain=1.0),
    outcome="published",
    facts=ExposureFacts(gain=2.0, zero_point=25.0, fwhm=3.0, estimated=("gain",)),
    template=TemplateFacts("directory", "t.fits"),
    quality=QUALITY,
    counts={"stars": 10, "detections": 5, "candidates": 3},
    seconds={"read": 0.1, "subtract": np.float64(1.0)},  # type: ignore[dict-item]
    notes=("gain estimated from the pixels",),
    limiting_mag=21.0,
)


def read_back(record: dict[str, Any]) -> dict[str, Any]:
    (found,) = fastavro.reader(io.BytesIO(encode_status(record)))
    assert isinstance(found, dict)
    return found


def test_full_record_survives_the_journey() -> None:
    journey = Journey(
        topic="exposures",
        partition=3,
        offset=17,
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
        finished_at=datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC),
        attempts=2,
    )
    record = status_record(FULL, alerts=3, journey=journey)
    found = read_back(record)
    assert found == record
    assert (found["input_partition"], found["input_offset"], found["attempts"]) == (3, 17, 2)
    assert found["total_seconds"] == pytest.approx(2.0)
    assert found["gain"] == 2.0
    assert found["quality"]["star_chi2"] is None
    assert found["quality"]["psf_error"] == 0.012
    assert (found["quality"]["kernel_width"], found["quality"]["kernel_height"]) == (13, 11)
    assert json.loads(json.dumps(json_ready(record)))["finished_at"] == "2026-01-01T00:00:02+00:00"


def test_record_of_an_event_that_never_was_an_exposure() -> None:
    result = ExposureResult(Exposure("t/0/5", ""), "invalid_event", "empty", "UnreadableEvent")
    found = read_back(status_record(result))
    assert found["outcome"] == "invalid_event"
    assert found["stars"] is None
    assert found["quality"] is None


def test_record_has_every_field_of_the_schema_and_no_other() -> None:
    names = {field["name"] for field in schemas.load("exposure_status")["fields"]}
    assert set(status_record(FULL)) == names
