"""Dead letters listed, shown and sent again, and exposures replayed, on a real broker."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from confluent_kafka import Message, Producer

from core.exposure import Exposure, ExposureResult
from core.simulation.survey import SimulatedSurvey
from service.cli import main
from service.lanes import Delivery
from service.messages import OutMessage, dead_letter
from service.settings import TopicSettings
from service.status import status_record
from tests.service_process import ServiceProcess, Topics, read_record

pytestmark = pytest.mark.kafka

NOW = datetime.now(UTC)
LIMIT = 100_000


class Desk:
    """Somebody at the command line, and what lies in the topics."""

    def __init__(
        self,
        bootstrap: str,
        topics: Topics,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        read_topic: Callable[..., list[Message]],
    ) -> None:
        self.topics = topics
        self._producer = Producer({"bootstrap.servers": bootstrap})
        self._capsys = capsys
        self._read_topic = read_topic
        self._bootstrap = bootstrap
        names = "\n".join(f'{role} = "{name}"' for role, name in vars(topics).items() if name)
        self.config = folder / "desk.toml"
        self.config.write_text(
            f'[kafka]\nbootstrap_servers = "{bootstrap}"\ngroup_id = "{topics.exposures}"\n'
            f'transactional_id = "{topics.exposures}"\n[topics]\n{names}\n'
        )

    def do(self, *arguments: str, code: int = 0) -> str:
        found = main([*arguments, "--config", str(self.config)])
        said = self._capsys.readouterr()
        assert found == code, said
        return said.out + said.err

    def json(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.do(*arguments, "--json", code=code).splitlines()]

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Any = (),
        partition: int = 0,
        age: float = 0.0,
    ) -> None:
        milliseconds = int((time.time() - age) * 1000)
        self._producer.produce(
            topic, value=value, key=key, headers=list(headers), partition=partition,
            timestamp=milliseconds,
        )  # fmt: skip
        assert self._producer.flush(30) == 0

    def letter(self, exposure_id: str, age: float = 0.0, **values: Any) -> OutMessage:
        """Write a dead letter as the service does."""
        message = self._made(exposure_id, **values)
        self.send(
            self.topics.dead_letters, message.value, key=message.key, headers=message.headers,
            age=age,
        )  # fmt: skip
        return message

    def letter_in_transaction(self, exposure_id: str) -> Producer:
        """Begin a transaction with a letter in it; whoever asked ends it."""
        producer = Producer(
            {"bootstrap.servers": self._bootstrap, "transactional.id": f"{exposure_id}-{NOW}"}
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        message = self._made(exposure_id)
        producer.produce(self.topics.dead_letters, key=message.key, value=message.value)
        producer.flush(30)
        return producer

    def _made(
        self,
        exposure_id: str,
        *,
        value: bytes | None = b"\x07 not even an event",
        key: bytes | None = b"camera 1",
        headers: Any = (("trace", b"\x00\xff"), ("empty", None)),
        offset: int = 0,
        partition: int = 0,
        **facts: Any,
    ) -> OutMessage:
        settings = TopicSettings(**{k: v for k, v in vars(self.topics).items() if v})
        result = ExposureResult(
            Exposure(exposure_id, "/s"),
            **{"outcome": "failed", "error_class": "WorkerDied", "reason": "SIGKILL", **facts},
        )
        delivery = Delivery(
            self.topics.exposures, partition, offset, key, value, tuple(headers), NOW, epoch=1
        )
        return dead_letter(status_record(result), delivery, settings, LIMIT, NOW)

    def exposures(self, expected: int) -> list[Message]:
        return self._read_topic(self.topics.exposures, expected)


@pytest.fixture
def desk(
    kafka_bootstrap: str,
    topics: Topics,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    read_topic: Callable[..., list[Message]],
) -> Iterator[Desk]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Desk(kafka_bootstrap, topics, tmp_path, capsys, read_topic)
    root.handlers[:] = handlers  # the commands have put their own in the place of these
    root.setLevel(level)


def test_letters_are_listed_by_time_and_reason_up_to_the_end(desk: Desk) -> None:
    assert "no dead letters" in desk.do("dlq", "list")
    desk.letter("old", age=7200)
    desk.letter("memory", error_class="MemoryLimitExceeded", reason="worker 7 held 5 GB", age=60)
    desk.letter("wrong", outcome="invalid_event", error_class="UnreadableEvent", reason="no band")
    desk.letter_in_transaction("aborted").abort_transaction(30)
    open_one = desk.letter_in_transaction("open")
    listed = {
        (): ["old", "memory", "wrong"],
        ("--since", "1h"): ["memory", "wrong"],
        ("--since", "3h", "--until", "30min"): ["old"],
        ("--reason", "memory"): ["memory"],
        ("--reason", "INVALID_EVENT"): ["wrong"],
        ("--reason", "5 GB", "--reason", "WorkerDied"): ["old", "memory"],
        ("--exposure-id", "old", "--exposure-id", "nobody"): ["old"],
        ("--reason", "nothing like that"): [],
        ("--limit", "1"): ["wrong"],
    }
    for arguments, names in listed.items():
        found = desk.json("dlq", "list", *arguments)
        assert [letter["exposure_id"] for letter in found] == names, arguments
    open_one.commit_transaction(30)
    assert len(desk.json("dlq", "list")) == 4
    text = desk.do("dlq", "list")
    assert "MemoryLimitExceeded" in text
    assert "aborted" not in text


def test_one_letter_in_full(desk: Desk) -> None:
    event = {"exposure_id": "a", "science_uri": "/s", "band": "r", "mjd_mid": 61000.0}
    desk.letter("a", value=json.dumps(event).encode(), stage="subtract")
    desk.letter("b", reason="\x1b[2J[red]not for a terminal")
    (shown,) = desk.json("dlq", "show", "a")
    assert shown["event"] == event
    assert (shown["stage"], shown["requeued"], shown["sent_again_as"]) == ("subtract", 0, None)
    assert shown["source"] == f"{desk.topics.exposures}/0/0"
    assert "science_uri" in desk.do("dlq", "show", "a")
    assert "\x1b" not in desk.do("dlq", "show", "b")
    assert "[red]" in desk.do("dlq", "show", "b")
    assert "has no letter" in desk.do("dlq", "show", "nobody", code=2)


def test_event_is_sent_again_byte_for_byte_and_twice_is_told(desk: Desk) -> None:
    own = (("skydelta-time", b"mine"), ("trace", b"\x00\xff"), ("trace", b"2"), ("empty", None))
    desk.letter("a", headers=own, partition=1)
    desk.letter("b", key=None, value=b"", headers=(), partition=1)
    assert "say which letters" in desk.do("dlq", "requeue", code=2)
    assert "1 would be sent" in desk.do("dlq", "requeue", "--exposure-id", "a", "--dry-run")
    assert desk.exposures(0) == []
    assert "1 sent again" in desk.do("dlq", "requeue", "--exposure-id", "a")
    (record,) = desk.exposures(1)
    assert (record.key(), record.value()) == (b"camera 1", b"\x07 not even an event")
    assert record.partition() == 1
    *kept, count, origin = record.headers()
    assert tuple(kept) == own
    assert count == ("skydelta-requeued", b"1")
    assert origin == ("skydelta-requeued-from", f"{desk.topics.dead_letters}/0/0".encode())

    said = desk.do("dlq", "requeue", "--all", code=3)
    assert "1 sent again" in said  # b
    assert "a: left out, it was sent again already" in said
    assert f"{desk.topics.exposures}/1/0" in said
    second = desk.exposures(2)[1]
    assert (second.key(), second.value()) == (None, b"")
    assert "1 sent again" in desk.do("dlq", "requeue", "--exposure-id", "a", "--again")
    third = desk.exposures(3)[2]
    assert dict(third.headers())["skydelta-requeued"] == b"2"
    (shown,) = desk.json("dlq", "show", "a")
    assert shown["sent_again_as"] == f"{desk.topics.exposures}/1/{third.offset()}"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("DELIVERY", "at_least_once"), ("GROUP_PROTOCOL", "consumer"), ("GROUP_INSTANCE_ID", "one")],
)
def test_however_the_service_talks_to_its_brokers(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    monkeypatch.setenv(f"SKYDELTA_KAFKA__{setting}", value)
    desk.letter("a")
    assert "1 sent again" in desk.do("dlq", "requeue", "--all")
    assert "1 left out" not in desk.do("dlq", "requeue", "--all", code=3)
    (record,) = desk.exposures(1)
    assert record.value() == b"\x07 not even an event"


def test_requeue_does_not_fence_the_service(desk: Desk, kafka_bootstrap: str) -> None:
    running = Producer(
        {"bootstrap.servers": kafka_bootstrap, "transactional.id": desk.topics.exposures}
    )
    running.init_transactions(30)
    desk.letter("a")
    desk.do("dlq", "requeue", "--all")
    running.begin_transaction()
    running.produce(desk.topics.status, b"still here")
    running.commit_transaction(30)


def test_event_that_fails_again_is_one_letter_more_that_counts_on(desk: Desk) -> None:
    desk.letter("a", age=60)
    desk.do("dlq", "requeue", "--all")
    (record,) = desk.exposures(1)
    desk.letter("a", headers=record.headers(), value=record.value(), key=record.key())
    (line,) = desk.json("dlq", "requeue", "--all")
    assert (line["requeued"], line["requeued_before"]) == (["a"], {})
    assert len(line["superseded"]) == 1
    headers = desk.exposures(2)[1].headers()
    assert [value for name, value in headers if name == "skydelta-requeued"] == [b"2"]
    assert len(headers) == 4  # trace, empty, and ours


def test_what_did_not_fit_into_the_letter_comes_from_the_source(desk: Desk) -> None:
    large = bytes(200_000)
    desk.send(desk.topics.exposures, large, key=b"k", headers=[("h", b"v")], partition=1)
    whole = desk.letter("there", value=large, partition=1, offset=0)
    assert whole.value is None
    desk.letter("gone", value=large, partition=1, offset=999)
    desk.letter("headers", headers=[("h", large)], partition=1, offset=999)
    said = desk.do("dlq", "requeue", "--all", code=3)
    assert "1 sent again" in said
    for name in ("gone", "headers"):
        assert f"{name}: cannot be sent again: the letter lacks its" in said
    record = desk.exposures(2)[1]
    assert (record.value(), record.key()) == (large, b"k")
    assert record.headers()[0] == ("h", b"v")


def test_many_letters_in_one_go(desk: Desk) -> None:
    for number in range(1200):
        message = desk._made(f"e{number}", value=f"event {number}".encode())
        desk._producer.produce(
            desk.topics.dead_letters, value=message.value, key=message.key,
            headers=list(message.headers),
        )  # fmt: skip
    assert desk._producer.flush(30) == 0
    assert "1200 sent again" in desk.do("dlq", "requeue", "--reason", "SIGKILL")
    values = {record.value() for record in desk.exposures(1200)}
    assert values == {f"event {number}".encode() for number in range(1200)}
    assert "0 sent again" in desk.do("dlq", "requeue", "--reason", "SIGKILL", code=3)


def event_of(name: str, **fields: Any) -> bytes:
    values = {"exposure_id": name, "science_uri": "/s", "band": "r", "mjd_mid": 61000.0}
    return json.dumps(values | fields).encode()


def test_replay_sends_the_last_event_of_each_exposure_once(desk: Desk) -> None:
    topic = desk.topics.exposures
    past = (NOW - timedelta(days=1)).isoformat()
    desk.send(topic, event_of("early"), age=7200)
    desk.send(topic, event_of("a", gain=1.0), age=600, key=b"k", headers=[("trace", b"1")])
    desk.send(topic, event_of("a", gain=2.0), age=300, key=b"k", partition=1, headers=[("t", None)])
    desk.send(topic, b"not an event", age=200)
    desk.send(topic, event_of("late", expires_at=past), age=100)
    (dry,) = desk.json("replay", "--since", "1h", "--dry-run")
    assert dry["replayed"] == ["a", "late"]
    assert (dry["superseded"], dry["expired"]) == (1, ["late"])
    assert dry["unreadable"] == [f"{topic}/0/2"]
    assert len(desk.exposures(5)) == 5
    (done,) = desk.json("replay", "--since", "1h", "--exposure-id", "a")
    assert done["replayed"] == ["a"]
    records = desk.exposures(6)
    (again,) = [r for r in records if "skydelta-replay" in dict(r.headers() or [])]
    assert (again.value(), again.key(), again.partition()) == (event_of("a", gain=2.0), b"k", 1)
    headers = again.headers()
    assert [name for name, _ in headers] == ["t", "skydelta-replay", "skydelta-replay-of"]
    assert headers[-1][1] == f"{topic}/1/0".encode()
    # The replay itself now lies in the time span, and is not sent beside what it repeats.
    (more,) = desk.json("replay", "--since", "1h")
    assert (more["replayed"], more["superseded"]) == (["late", "a"], 2)
    said = desk.do("replay", "--since", "1h", "--exposure-id", "nobody", code=3)
    assert "nobody: there is no event of it" in said
    (none,) = desk.json("replay", "--since", "1h", "--until", "30min")
    assert none["replayed"] == []


def test_replay_from_another_topic(desk: Desk, make_topic: Callable[..., str]) -> None:
    archive = make_topic(partitions=5)
    desk.send(archive, event_of("a"), partition=4)
    desk.do("replay", "--since", "1h", "--topic", archive)
    (record,) = desk.exposures(1)
    assert dict(record.headers())["skydelta-replay-of"] == f"{archive}/4/0".encode()


def test_what_is_not_there_is_told_in_one_line(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYDELTA_TOPICS__DEAD_LETTERS", "no-such-topic")
    said = desk.do("dlq", "list", code=2)
    assert "there is no topic no-such-topic" in said
    assert len(said.splitlines()) == 1
    monkeypatch.setattr("service.topic_reading._ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("SKYDELTA_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    lines = desk.do("dlq", "list", code=1).splitlines()
    assert [line for line in lines if line.startswith("skydelta: ")]


def test_mended_exposure_is_requeued_and_replayed_with_the_same_packets(
    desk: Desk,
    make_service: Callable[..., ServiceProcess],
    read_topic: Callable[..., list[Message]],
    topics: Topics,
    small_survey: SimulatedSurvey,
    tmp_path: Path,
) -> None:
    original = small_survey.exposures[0].event
    science = tmp_path / "science.fits"
    good = Path(unquote(urlsplit(original["science_uri"]).path)).read_bytes()
    science.write_bytes(good)
    event = json.dumps(original | {"science_uri": str(science)}).encode()
    make_service().start()

    def statuses(expected: int) -> list[dict[str, Any]]:
        return [read_record(m) for m in read_topic(topics.status, expected, timeout=90)]

    def candids(records: list[Message]) -> list[int]:
        return [read_record(message)["candid"] for message in records]

    desk.send(topics.exposures, event, key=b"camera")
    assert statuses(1)[0]["outcome"] == "published"
    first = candids(read_topic(topics.alerts, 1))
    assert first
    science.write_bytes(b"GIF89a" + bytes(5000))
    desk.send(topics.exposures, event, key=b"camera")
    assert statuses(2)[1]["outcome"] == "failed"
    science.write_bytes(good)
    assert "1 sent again" in desk.do("dlq", "requeue", "--reason", "not a FITS file")
    assert statuses(3)[2]["outcome"] == "published"
    assert candids(read_topic(topics.alerts, 2 * len(first))) == 2 * first
    (done,) = desk.json("replay", "--since", "1h")
    assert done["replayed"] == [original["exposure_id"]]
    assert statuses(4)[3]["outcome"] == "published"
    assert candids(read_topic(topics.alerts, 3 * len(first))) == 3 * first
