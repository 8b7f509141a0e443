"""Workers that die, hang and grow at every other exposure: the good ones come out all the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka

WORST = {
    "segfault": ("WorkerDied", "SIGSEGV"),
    "kill": ("WorkerDied", "SIGKILL"),
    "stop": ("DeadlineExceeded", "did not finish within 5 s"),
    "grow": ("MemoryLimitExceeded", "workers.memory_limit (150 MB)"),
    "jump": ("MemoryLimitExceeded", "allocation was refused"),
}


def test_each_costs_its_exposure_one_retry_and_nobody_else(
    make_service: Callable[..., ServiceProcess],
    read_topic: Callable[..., list[Message]],
    topics: Topics,
    kafka_bootstrap: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "tried").mkdir()
    names = [name for how in WORST for name in (how, f"good-after-{how}")] + ["kill-once"]
    events: list[dict[str, Any] | bytes] = [
        {"exposure_id": name, "science_uri": "/s", "band": "r", "mjd_mid": 61000.0}
        for name in names
    ]
    service = make_service(
        module="tests.unruly_service",
        arguments=(str(tmp_path / "tried"),),
        workers={"deadline_seconds": 5.0, "count": 2},
        templates={"deadline_seconds": 1.0},
    ).start()
    for number, event in enumerate(events):
        send_events(kafka_bootstrap, topics.exposures, [event], partition=number // 2 % 2)
    found = [read_record(m) for m in read_topic(topics.status, len(events), timeout=300)]
    by_id = {status["exposure_id"]: status for status in found}
    assert sorted(by_id) == sorted(names)
    assert len(found) == len(names)
    for name in names:
        status = by_id[name]
        if name not in WORST:
            assert status["outcome"] == "published", status["reason"]
            assert status["attempts"] == (2 if name == "kill-once" else 1)
            continue
        error_class, said = WORST[name]
        assert (status["outcome"], status["error_class"]) == ("failed", error_class), name
        assert said in status["reason"]
        assert "before that: worker" in status["reason"]
        assert status["attempts"] == 2
        assert status["stage"] == "subtract"
        assert list(status["seconds"]) == ["read", "subtract"]
        if error_class == "DeadlineExceeded":
            assert status["seconds"]["subtract"] > 1
    letters = read_topic(topics.dead_letters, len(WORST))
    assert sorted(message.key().decode() for message in letters) == sorted(WORST)
    for message in letters:
        headers = dict(message.headers() or [])
        assert headers["skydelta-stage"] == b"subtract"
        assert headers["skydelta-error-class"].decode() == WORST[message.key().decode()][0]
    assert service.metric("skydelta_worker_restarts_total") == 2 * len(WORST) + 1
    assert service.stop() == 0
