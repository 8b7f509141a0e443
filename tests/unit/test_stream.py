"""The loop with its surroundings played by the test: order, ownership, retries, outcomes."""

import io
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import fastavro
import pytest
from confluent_kafka import KafkaError, TopicPartition

import schemas
from core.errors import InvalidEvent
from core.exposure import Exposure, ExposureResult
from service.client_messages import ClientMessages
from service.events import ExposureEvent, SchemaUnavailable
from service.messages import OutMessage
from service.metrics import Metrics
from service.packets import EncodedAlert
from service.publisher import BrokersAway, NotPublished
from service.settings import Settings
from service.status import status_record
from service.stream import Stream
from service.work import Processed
from service.workers import Event, Finished, Lost, Raised

TOPIC = "exposures"


def event(exposure_id: str, **fields: Any) -> bytes:
    good = {"exposure_id": exposure_id, "science_uri": "/s", "band": "r", "mjd_mid": 61000.0}
    return json.dumps(good | fields).encode()


class FakeMessage:
    def __init__(
        self,
        partition: int,
        offset: int,
        value: bytes | None,
        headers: Any = None,
        error: KafkaError | None = None,
    ):
        self._facts = (partition, offset, value, headers)
        self._error = error

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return int(self._facts[0])

    def offset(self) -> int:
        return int(self._facts[1])

    def key(self) -> bytes:
        return b"source key"

    def value(self) -> bytes | None:
        return self._facts[2]

    def headers(self) -> Any:
        return self._facts[3]


class FakeConsumer:
    """Hands out what the test put into ``coming``: messages, or rebalances to be called."""

    def __init__(self) -> None:
        self.coming: deque[FakeMessage | Callable[[], None]] = deque()
        self.paused: set[tuple[str, int]] = set()

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        assert topics == [TOPIC]
        self._callbacks = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}

    def rebalance(self, kind: str, *partitions: int) -> None:
        moved = [TopicPartition(TOPIC, p) for p in partitions]
        self.coming.append(lambda: self._callbacks[kind](self, moved))

    def send(self, partition: int, offset: int, value: bytes | None, headers: Any = None) -> None:
        self.coming.append(FakeMessage(partition, offset, value, headers))

    def fail(self, error: KafkaError) -> None:
        self.coming.append(FakeMessage(0, 0, None, error=error))

    def poll(self, timeout: float) -> FakeMessage | None:
        while self.coming and not isinstance(self.coming[0], FakeMessage):
            self.coming.popleft()()  # type: ignore[operator]
        return self.coming.popleft() if self.coming else None  # type: ignore[return-value]

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused |= {(p.topic, p.partition) for p in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.paused -= {(p.topic, p.partition) for p in partitions}


class FakePool:
    """Takes tasks; the test says what comes of them."""

    ready = True
    restarts = 0

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.tasks: dict[int, Any] = {}
        self.events: list[Event] = []
        self.submitted: list[str] = []

    @property
    def idle(self) -> int:
        return self.count - len(self.tasks)

    def submit(self, task_id: int, task: Any, deadline_seconds: float) -> None:
        assert self.idle > 0
        self.tasks[task_id] = task
        self.submitted.append(task.exposure_id)

    def poll(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def _take(self, exposure_id: str) -> int:
        (task_id,) = [i for i, task in self.tasks.items() if task.exposure_id == exposure_id]
        del self.tasks[task_id]
        return task_id

    def finish(self, exposure_id: str, alerts: Sequence[EncodedAlert] = (), **values: Any) -> None:
        values = {"outcome": "published", **values}
        retry_after = values.pop("retry_after", None)
        result = ExposureResult(Exposure(exposure_id, "/s"), **values)
        done = Processed(
            status_record(result, alerts=len(alerts)), tuple(alerts), retry_after=retry_after
        )
        self.events.append(Finished(self._take(exposure_id), done))

    def lose(self, exposure_id: str, why: Any = "died") -> None:
        self.events.append(
            Lost(
                self._take(exposure_id),
                why,
                "worker 7 was ended by SIGKILL",
                "subtract",
                {"read": 1.0, "subtract": 2.0},
            )
        )

    def fail(self, exposure_id: str) -> None:
        task_id = self._take(exposure_id)
        self.events.append(Raised(task_id, "ZeroDivisionError", "division by zero", "Traceback"))


class FakePublisher:
    """Keeps what was committed; raises what the test put into ``troubles``."""

    def __init__(self) -> None:
        self.commits: list[tuple[list[OutMessage], TopicPartition]] = []
        self.troubles: list[Exception] = []

    def serve(self) -> None:
        pass

    def publish(
        self, messages: Sequence[OutMessage], offset: TopicPartition, consumer: object
    ) -> None:
        assert isinstance(consumer, FakeConsumer)
        if self.troubles:
            raise self.troubles.pop(0)
        self.commits.append((list(messages), offset))


class Scene:
    def __init__(self, workers: int = 2, **settings: Any) -> None:
        retries = {"retry_seconds": 0.0, **settings.pop("settings_workers", {})}
        sections: dict[str, Any] = {"workers": retries, **settings}
        self.consumer = FakeConsumer()
        self.pool = FakePool(workers)
        self.publisher = FakePublisher()
        self.metrics = Metrics()
        self.registry_away = False
        self.decoded_framed = 0
        self.expected: list[str] = []
        self.begun_with: list[str] = []
        self.stream = Stream(
            Settings(**sections),
            consumer=self.consumer,  # type: ignore[arg-type]
            publisher=self.publisher,  # type: ignore[arg-type]
            pool=self.pool,  # type: ignore[arg-type]
            metrics=self.metrics,
            messages=ClientMessages(),
            lookup=self.lookup,
            ahead=self,
        )
        self.stream.subscribe()

    def lookup(self, schema_id: int) -> dict[str, Any]:
        """Schema 7 is ours, schema 8 is known nowhere; while the registry is away, all wait."""
        if self.registry_away:
            raise SchemaUnavailable("the registry does not answer")
        if schema_id != 7:
            raise InvalidEvent("the registry does not know the id")
        self.decoded_framed += 1
        return schemas.load("exposure")

    def expect(self, events: Iterable[ExposureEvent]) -> None:
        self.expected.extend(event.exposure_id for event in events)

    def begun(self, exposure_id: str) -> None:
        self.begun_with.append(exposure_id)

    def turn(self, times: int = 4) -> None:
        for _ in range(times):
            self.stream.turn()

    def until(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            self.stream.turn()
            time.sleep(0.005)

    @property
    def statuses(self) -> list[dict[str, Any]]:
        return [status for messages, _ in self.publisher.commits for status in _statuses(messages)]

    @property
    def offsets(self) -> list[tuple[int, int]]:
        return [(at.partition, at.offset) for _, at in self.publisher.commits]

    def metric(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None
        return value


def _statuses(messages: Sequence[OutMessage]) -> list[dict[str, Any]]:
    found = []
    for message in messages:
        if message.topic == "exposure-status":
            (record,) = fastavro.reader(io.BytesIO(message.value or b""))
            assert isinstance(record, dict)
            assert message.key == record["exposure_id"].encode()
            found.append(record)
    return found


def dead_letters(scene: Scene) -> list[OutMessage]:
    topic = "exposures-dead-letter"
    return [m for messages, _ in scene.publisher.commits for m in messages if m.topic == topic]


def test_alerts_status_and_offset_go_in_one_transaction() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 3)
    scene.consumer.send(3, 17, event("a"))
    scene.turn()
    assert scene.publisher.commits == []
    scene.pool.finish("a", [EncodedAlert(1, "SD1", b"one"), EncodedAlert(2, "SD2", b"two")])
    scene.turn()
    ((messages, offset),) = scene.publisher.commits
    assert [(m.topic, m.key) for m in messages] == [
        ("alerts", b"SD1"),
        ("alerts", b"SD2"),
        ("exposure-status", b"a"),
    ]
    assert (offset.topic, offset.partition, offset.offset) == (TOPIC, 3, 18)
    (status,) = scene.statuses
    assert (status["outcome"], status["alerts"], status["attempts"]) == ("published", 2, 1)
    assert (status["input_topic"], status["input_partition"], status["input_offset"]) == (
        TOPIC,
        3,
        17,
    )
    assert scene.metric("skydelta_exposures_total", outcome="published") == 1
    assert scene.metric("skydelta_alerts_published_total") == 2


def test_one_exposure_a_partition_several_partitions_at_once() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0, 1)
    scene.consumer.send(0, 0, event("a"))
    scene.consumer.send(0, 1, event("b"))  # fetched before the pause
    scene.consumer.send(1, 0, event("c"))
    scene.turn()
    assert scene.pool.submitted == ["a", "c"]
    scene.pool.finish("c")
    scene.turn()
    scene.pool.finish("a")
    scene.turn()
    assert scene.pool.submitted == ["a", "c", "b"]
    scene.pool.finish("b")
    scene.turn()
    assert scene.offsets == [(1, 1), (0, 1), (0, 2)]


def test_partition_is_paused_while_enough_of_it_is_at_hand_and_what_slips_through_is_kept() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0, 1)
    for offset in range(20):  # all of them already fetched when the pause comes
        scene.consumer.send(0, offset, event(f"e{offset:02d}"))
    scene.turn(25)
    assert scene.consumer.paused == {(TOPIC, 0)}
    for offset in range(20):
        assert scene.pool.submitted[-1] == f"e{offset:02d}"
        scene.pool.finish(f"e{offset:02d}")
        scene.turn(1)
    assert scene.consumer.paused == set()
    assert scene.offsets == [(0, offset + 1) for offset in range(20)]


def test_more_partitions_than_workers_wait_in_order() -> None:
    scene = Scene(workers=1)
    scene.consumer.rebalance("assign", 0, 1, 2)
    for partition in (2, 0, 1):
        scene.consumer.send(partition, 0, event(f"p{partition}"))
    scene.turn()
    for name in ("p2", "p0", "p1"):
        assert next(iter(scene.pool.tasks.values())).exposure_id == name
        scene.pool.finish(name)
        scene.turn()
    assert len(scene.statuses) == 3


@pytest.mark.parametrize("kind", ["revoke", "lost"])
def test_result_of_a_partition_that_went_away_is_dropped(kind: str) -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0, 1)
    scene.consumer.send(0, 0, event("a"))
    scene.consumer.send(1, 0, event("b"))
    scene.turn()
    scene.consumer.rebalance(kind, 0)
    scene.turn(1)
    scene.pool.finish("a")
    scene.pool.finish("b")
    scene.turn()
    assert [status["exposure_id"] for status in scene.statuses] == ["b"]
    assert scene.metric("skydelta_handed_back_total") == 1


def test_partition_that_left_and_came_back_is_read_again_and_committed_once() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 5, event("a"))
    scene.turn()
    scene.consumer.rebalance("revoke", 0)
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 5, event("a"))  # the offset was never committed
    scene.turn(1)
    stale, fresh = sorted(scene.pool.tasks)
    for task_id in (stale, fresh):
        assert scene.pool.tasks[task_id].exposure_id == "a"
    result = ExposureResult(Exposure("a", "/s"), "published")
    del scene.pool.tasks[stale]
    scene.pool.events.append(Finished(stale, Processed(status_record(result))))
    scene.turn()
    assert scene.publisher.commits == []
    scene.pool.finish("a")
    scene.turn()
    assert scene.offsets == [(0, 6)]


def test_partition_that_was_paused_when_it_left_is_resumed_when_it_comes_back() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    for offset in range(12):
        scene.consumer.send(0, offset, event(f"e{offset}"))
    scene.turn(12)
    assert scene.consumer.paused == {(TOPIC, 0)}
    scene.consumer.rebalance("lost", 0)
    scene.turn()
    scene.consumer.rebalance("assign", 0)
    scene.turn()
    assert scene.consumer.paused == set()


def test_what_is_finished_is_published_before_a_partition_is_given_up() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.turn()
    scene.pool.finish("a")
    scene.consumer.rebalance("revoke", 0)
    scene.turn(1)
    assert scene.offsets == [(0, 1)]
    assert scene.metric("skydelta_handed_back_total") == 0


def test_what_is_finished_is_not_published_when_the_partition_was_lost() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.turn()
    scene.pool.finish("a")
    scene.consumer.rebalance("lost", 0)
    scene.turn()
    assert scene.publisher.commits == []


def test_queue_of_a_partition_that_went_away_is_forgotten() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.consumer.send(0, 1, event("b"))
    scene.turn()
    scene.consumer.rebalance("revoke", 0)
    scene.turn()
    assert scene.pool.submitted == ["a"]


def test_undecodable_event_gives_a_status_and_a_dead_letter_byte_for_byte() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 2)
    scene.consumer.send(2, 9, b"\xff\x00 rubbish", [("trace", b"xyz")])
    scene.consumer.send(2, 10, event("good"))
    scene.turn()
    (status,) = scene.statuses
    assert status["exposure_id"] == "exposures/2/9"
    assert status["outcome"] == "invalid_event"
    assert "neither" in status["reason"]
    (letter,) = dead_letters(scene)
    assert letter.value == b"\xff\x00 rubbish"
    headers = dict(letter.headers)
    assert headers.pop("skydelta-time")
    assert headers.pop("skydelta-message") == status["reason"].encode()
    assert headers == {
        "trace": b"xyz",
        "skydelta-exposure-id": b"exposures/2/9",
        "skydelta-outcome": b"invalid_event",
        "skydelta-error-class": b"UnreadableEvent",
        "skydelta-stage": b"decode",
        "skydelta-source-topic": b"exposures",
        "skydelta-source-partition": b"2",
        "skydelta-source-offset": b"9",
        "skydelta-source-key": b"source key",
    }
    assert scene.offsets == [(2, 10)]
    assert scene.pool.submitted == ["good"]


def test_tombstone_gives_a_dead_letter_without_value() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, None)
    scene.turn()
    (letter,) = dead_letters(scene)
    assert letter.value is None
    assert scene.statuses[0]["reason"] == "the event is empty"


def test_invalid_event_keeps_its_id_where_that_could_be_read() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("known", mjd_mid="late"))
    scene.turn()
    assert scene.statuses[0]["exposure_id"] == "known"


def test_event_that_is_too_large_is_not_decoded_and_its_letter_says_what_is_left_out() -> None:
    scene = Scene(kafka={"max_message_bytes": 10_000}, input={"max_event_bytes": 1_000})
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("big", program="x" * 20_000), [("trace", b"y")])
    scene.turn()
    assert "max_event_bytes" in scene.statuses[0]["reason"]
    (letter,) = dead_letters(scene)
    assert letter.value is None
    assert dict(letter.headers)["skydelta-left-out"] == b"headers, key and value: too large"


def test_packet_larger_than_a_record_refuses_the_exposure_instead_of_looping() -> None:
    scene = Scene(kafka={"max_message_bytes": 10_000})
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.turn()
    scene.pool.finish("a", [EncodedAlert(1, "SD1", b"x" * 10_000)])
    scene.turn()
    (status,) = scene.statuses
    assert (status["outcome"], status["error_class"]) == ("failed", "PacketTooLarge")
    assert "kafka.max_message_bytes (10000)" in status["reason"]
    assert status["alerts"] == 0
    assert len(dead_letters(scene)) == 1
    assert {m.topic for m in scene.publisher.commits[0][0]}.isdisjoint({"alerts"})


def test_packet_that_the_broker_refuses_for_its_size_does_the_same() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.turn()
    scene.publisher.troubles = [NotPublished("message too large", too_large=True)]
    scene.pool.finish("a", [EncodedAlert(1, "SD1", b"x")])
    scene.turn()
    assert scene.statuses[0]["error_class"] == "PacketTooLarge"


def test_aborted_transaction_is_tried_again() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.turn()
    scene.publisher.troubles = [NotPublished("ILLEGAL_GENERATION")]
    scene.pool.finish("a")
    scene.turn()
    assert scene.publisher.commits == []
    scene.until(lambda: scene.publisher.commits)
    assert scene.offsets == [(0, 1)]
    assert scene.pool.submitted == ["a"]
    assert scene.metric("skydelta_transactions_aborted_total") == 1


def test_aborted_transaction_is_not_tried_again_after_the_partition_left() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.turn()
    scene.publisher.troubles = [NotPublished("ILLEGAL_GENERATION")]
    scene.pool.finish("a")
    scene.consumer.rebalance("lost", 0)
    scene.turn(1)
    time.sleep(0.6)  # longer than the first wait
    scene.turn()
    assert scene.publisher.commits == []


def test_missing_input_is_tried_again_and_then_reported() -> None:
    scene = Scene(workers=1)
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    for attempt in range(3):
        scene.turn()
        assert scene.pool.submitted == ["a"] * (attempt + 1)
        assert scene.statuses == []
        scene.pool.finish("a", outcome="input_unavailable", reason="no file", retriable=True)
    scene.turn()
    (status,) = scene.statuses
    assert (status["outcome"], status["attempts"]) == ("input_unavailable", 3)
    assert dead_letters(scene) == []


def test_retries_end_with_the_deadline_counted_from_the_first_attempt() -> None:
    scene = Scene(
        workers=1, settings_workers={"retry_seconds": 0.05, "attempts": 20, "deadline_seconds": 0.5}
    )
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    end = time.monotonic() + 20
    while not scene.statuses and time.monotonic() < end:
        scene.turn()
        if scene.pool.tasks:
            scene.pool.finish("a", outcome="input_unavailable", reason="no file", retriable=True)
    (status,) = scene.statuses
    assert status["outcome"] == "input_unavailable"
    assert 2 <= status["attempts"] <= 5  # at 0, 0.05, 0.15, 0.35, and not at 0.75 s
    assert "workers.deadline_seconds" in status["reason"]


@pytest.mark.parametrize(("asked", "attempts"), [(0.2, 2), (1000.0, 1)])
def test_what_a_server_asks_for_is_waited_for_within_the_deadline(
    asked: float, attempts: int
) -> None:
    scene = Scene(workers=1, settings_workers={"retry_seconds": 0.0, "attempts": 2})
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.turn()
    started = time.monotonic()
    busy = {"outcome": "input_unavailable", "reason": "HTTP 503", "retriable": True}
    scene.pool.finish("a", retry_after=asked, **busy)
    while not scene.statuses and time.monotonic() < started + 20:
        scene.turn()
        if scene.pool.tasks:
            assert time.monotonic() - started >= asked
            scene.pool.finish("a", **busy)
    (status,) = scene.statuses
    assert status["attempts"] == attempts


def test_event_that_expires_while_it_waits_for_another_attempt() -> None:
    scene = Scene(workers=1, settings_workers={"retry_seconds": 100.0})
    soon = (datetime.now(UTC) + timedelta(seconds=0.4)).isoformat()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a", expires_at=soon))
    scene.turn()
    scene.pool.finish("a", outcome="input_unavailable", reason="no file yet", retriable=True)
    end = time.monotonic() + 20
    while not scene.statuses and time.monotonic() < end:
        scene.turn()
    (status,) = scene.statuses
    assert (status["outcome"], status["attempts"]) == ("expired", 1)
    assert "no file yet" in status["reason"]
    assert scene.pool.submitted == ["a"]
    assert dead_letters(scene) == []


@pytest.mark.parametrize(
    ("why", "name"),
    [
        ("died", "WorkerDied"),
        ("deadline", "DeadlineExceeded"),
        ("memory", "MemoryLimitExceeded"),
    ],
)
def test_lost_worker_costs_one_retry_and_then_the_exposure_fails(why: str, name: str) -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.consumer.send(0, 1, event("b"))
    scene.turn()
    scene.pool.lose("a", why)
    scene.turn()
    assert scene.pool.submitted == ["a", "a"]
    scene.pool.lose("a", why)
    scene.turn()
    (status,) = scene.statuses
    assert (status["outcome"], status["error_class"], status["attempts"]) == ("failed", name, 2)
    assert "SIGKILL" in status["reason"]
    assert (status["stage"], status["seconds"]) == ("subtract", {"read": 1.0, "subtract": 2.0})
    (letter,) = dead_letters(scene)
    assert dict(letter.headers)["skydelta-stage"] == b"subtract"
    assert scene.pool.submitted[-1] == "b"


def test_defect_fails_the_exposure_at_once() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("a"))
    scene.turn()
    scene.pool.fail("a")
    scene.turn()
    (status,) = scene.statuses
    assert (status["outcome"], status["error_class"]) == ("failed", "ZeroDivisionError")
    assert "division by zero" in status["reason"]
    assert dict(dead_letters(scene)[0].headers)["skydelta-error-class"] == b"ZeroDivisionError"
    assert scene.pool.submitted == ["a"]


def test_expired_exposure_is_not_worked_on() -> None:
    scene = Scene()
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("late", expires_at=past))
    scene.turn()
    (status,) = scene.statuses
    assert (status["outcome"], status["error_class"]) == ("expired", None)
    assert "expired at" in status["reason"]
    assert scene.pool.submitted == []
    assert dead_letters(scene) == []


def test_draining_finishes_what_is_in_hand_and_starts_nothing() -> None:
    scene = Scene(workers=1)
    scene.consumer.rebalance("assign", 0, 1)
    scene.consumer.send(0, 0, event("a"))
    scene.consumer.send(1, 0, event("b"))
    scene.turn()
    scene.stream.drain()
    scene.consumer.send(0, 1, event("c"))
    scene.pool.finish("a")
    scene.turn()
    assert scene.pool.submitted == ["a"]
    assert scene.offsets == [(0, 1)]
    assert scene.stream.in_hand == 0
    assert scene.consumer.paused == {(TOPIC, 0), (TOPIC, 1)}


def test_notes_about_unknown_fields_reach_the_status_of_an_expired_event() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("late", expires_at="2020-01-01", gian=1))
    scene.turn()
    assert scene.statuses[0]["notes"] == ["unknown field 'gian' ignored (did you mean gain?)"]


def test_exposures_that_wait_are_told_of_once_and_those_that_do_not_are_not() -> None:
    scene = Scene(workers=1)
    scene.consumer.rebalance("assign", 0, 1)
    scene.consumer.send(0, 0, event("first"))
    scene.turn()
    assert scene.pool.submitted == ["first"]
    assert scene.expected == []  # it did not wait
    scene.consumer.send(0, 1, event("behind it"))
    scene.consumer.send(0, 2, b"no event at all")
    scene.consumer.send(0, 3, event("last"))
    scene.consumer.send(1, 0, event("other partition"))
    scene.turn(8)
    assert sorted(scene.expected) == ["behind it", "last", "other partition"]
    assert scene.begun_with == ["first"]
    scene.pool.finish("first")
    scene.turn(8)
    assert len(scene.expected) == 3
    assert len(scene.begun_with) == 2


def test_an_exposure_that_comes_again_is_told_of_again() -> None:
    scene = Scene(workers=1)
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, event("first"))
    scene.consumer.send(0, 1, event("second"))
    scene.turn()
    scene.consumer.rebalance("revoke", 0)
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 1, event("second"))
    scene.turn()
    assert scene.expected == ["second", "second"]


def framed(exposure_id: str, schema_id: int = 7) -> bytes:
    fields = {"exposure_id": exposure_id, "science_uri": "/s", "band": "r", "mjd_mid": 61000.0}
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schemas.load("exposure"), fields)
    return b"\x00" + schema_id.to_bytes(4, "big") + out.getvalue()


def test_an_event_that_waits_is_decoded_once() -> None:
    scene = Scene(workers=1)
    scene.consumer.rebalance("assign", 0)
    for offset, name in enumerate(("first", "second", "third")):
        scene.consumer.send(0, offset, framed(name))
    scene.turn(8)
    assert scene.expected == ["second", "third"]
    scene.pool.finish("first")
    scene.turn(8)
    assert scene.pool.submitted == ["first", "second"]
    assert scene.decoded_framed == 3
    # In another assignment it may be another event: that is decoded anew.
    scene.consumer.rebalance("revoke", 0)
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 2, framed("fourth"))
    scene.pool.finish("second")
    scene.turn(8)
    assert scene.pool.submitted[-1] == "fourth"
    assert scene.decoded_framed == 4


def test_events_wait_for_the_registry_in_order_and_others_do_not() -> None:
    scene = Scene()
    scene.registry_away = True
    scene.consumer.rebalance("assign", 0, 1)
    scene.consumer.send(0, 0, framed("a"))
    scene.consumer.send(0, 1, framed("b"))
    scene.consumer.send(1, 0, event("c"))
    scene.turn(8)
    assert scene.pool.submitted == ["c"]
    assert scene.stream.why_not_reading == "the registry does not answer"
    scene.registry_away = False
    scene.turn()
    assert scene.pool.submitted == ["c", "a"]
    assert scene.stream.why_not_reading is None
    scene.pool.finish("a")
    scene.turn()
    assert scene.pool.submitted == ["c", "a", "b"]
    assert dead_letters(scene) == []


def test_schema_that_the_registry_does_not_know_is_a_dead_letter() -> None:
    scene = Scene()
    scene.consumer.rebalance("assign", 0)
    scene.consumer.send(0, 0, framed("a", schema_id=8))
    scene.turn()
    (status,) = scene.statuses
    assert status["outcome"] == "invalid_event"
    assert "registry schema id 8" in status["reason"]
    assert "does not know the id" in status["reason"]
    (letter,) = dead_letters(scene)
    assert letter.value == framed("a", schema_id=8)


def test_after_brokers_that_do_not_answer_nothing_more_is_published() -> None:
    """Not even when partitions are revoked: a transaction may be open, or in doubt."""
    scene = Scene()
    scene.consumer.rebalance("assign", 0, 1)
    for partition, name in enumerate("ab"):
        scene.consumer.send(partition, 0, event(name))
    scene.turn()
    scene.publisher.troubles.append(BrokersAway("its commit is in doubt"))
    for name in "ab":
        scene.pool.finish(name)
    scene.stream.drain()
    scene.turn(1)
    assert scene.stream.in_hand == 0
    scene.consumer.rebalance("revoke", 0, 1)
    scene.turn()
    assert scene.publisher.commits == []


def test_stream_that_reads_nothing_says_why() -> None:
    scene = Scene()
    assert scene.stream.why_not_reading == "not yet in the consumer group"
    forbidden = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "Topic authorization failed")
    scene.consumer.fail(forbidden)
    scene.consumer.rebalance("assign")  # of no partition, as there is none that it may see
    scene.turn()
    assert scene.stream.why_not_reading is not None
    assert "grant our user READ of the topics" in scene.stream.why_not_reading
    scene.consumer.rebalance("assign", 0)
    scene.turn()
    assert scene.stream.why_not_reading is None
