"""The README's way into Kafka, against a real broker and a running service."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.simulation.survey import SimulatedSurvey
from tests.service_process import ServiceProcess, Topics

pytestmark = pytest.mark.kafka


def test_first_events_are_sent_and_their_packets_saved(
    make_service: Callable[..., ServiceProcess],
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    first_events = importlib.import_module("first_events")
    monkeypatch.setattr(first_events, "EXPOSURES", topics.exposures)
    monkeypatch.setattr(first_events, "ALERTS", topics.alerts)
    monkeypatch.setattr(first_events, "STATUS", topics.status)
    there = [name for name in vars(topics).values() if name]
    monkeypatch.setattr(first_events, "PARTITIONS", dict.fromkeys(there, 1))
    monkeypatch.setattr(first_events, "PATIENCE", 90.0)
    events = [exposure.event for exposure in small_survey.exposures[:1]]
    events.append(events[0] | {"exposure_id": "gone", "science_uri": "/elsewhere/gone.fits"})
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(json.dumps(event) for event in events) + "\n")
    make_service().start()

    assert first_events.main(kafka_bootstrap, str(path), str(tmp_path / "alerts")) == 0

    said = capsys.readouterr().out.splitlines()
    saved = list((tmp_path / "alerts").glob("*.avro"))
    assert saved
    assert f"{events[0]['exposure_id']}: published, {len(saved)} alerts" in said
    assert any(line.startswith("gone: invalid_event, 0 alerts, ") for line in said)
    assert said[-1] == f"{len(saved)} alerts in {tmp_path / 'alerts'}"
