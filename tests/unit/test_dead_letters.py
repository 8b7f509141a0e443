"""A dead letter gives back the event that it was made of, whatever that was."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.exposure import Exposure, ExposureResult
from service.dead_letters import DeadLetter, Event, Selection
from service.lanes import Delivery
from service.messages import OutMessage, dead_letter
from service.settings import TopicSettings
from service.status import status_record
from service.topic_reading import StoredRecord

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NAMES = st.sampled_from(
    ["trace", "skydelta-exposure-id", "skydelta-time", "skydelta-source-key", "skydelta-left-out",
     "skydelta-requeued", "skydelta-message", ""]
)  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=20)), max_size=6).map(tuple)


def letter_of(event: Event, limit: int = 100_000, **facts: str) -> tuple[DeadLetter, OutMessage]:
    result = ExposureResult(
        Exposure("a", "/s"), "failed", **{"error_class": "WorkerDied", "reason": "SIGKILL", **facts}
    )
    delivery = Delivery("exposures", 3, 14, event.key, event.value, event.headers, NOW, epoch=1)
    message = dead_letter(status_record(result), delivery, TopicSettings(), limit, NOW)
    record = StoredRecord(
        message.topic, 0, 7, NOW, message.key, message.value, tuple(message.headers)
    )
    return DeadLetter(record), message


@given(st.none() | st.binary(max_size=2000), st.none() | st.binary(max_size=100), HEADERS)
def test_event_comes_back_as_it_was(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes | None], ...]
) -> None:
    event = Event(key, value, headers)
    letter, _ = letter_of(event)
    assert letter.event() == event
    assert letter.left_out is None
    assert letter.source == ("exposures", 3, 14)
    assert letter.exposure_id == "a"
    assert letter.fact("message") == "SIGKILL"


def test_what_is_left_out_is_told_and_the_letter_is_small_enough() -> None:
    headers = (("h", bytes(30_000)),)
    for event, left_out in (
        (Event(b"k", b"v", headers), "headers"),
        (Event(b"k", bytes(30_000), ()), "headers, key and value: too large"),
        (Event(bytes(30_000), b"v", ()), "headers, key and value: too large"),
    ):
        letter, message = letter_of(event, limit=20_000)
        assert letter.left_out == left_out
        assert message.size <= 20_000
        assert letter.source == ("exposures", 3, 14)


@pytest.mark.parametrize("headers", [(), (("skydelta-exposure-id", b"x"),)])
def test_letters_that_are_not_ours(headers: tuple[tuple[str, bytes], ...]) -> None:
    letter = DeadLetter(StoredRecord("t", 0, 0, NOW, b"\xff", b"v", headers))
    assert letter.source is None
    assert letter.requeued == 0
    assert letter.exposure_id in ("x", "�")
    assert letter.event().value == b"v"


@pytest.mark.parametrize(
    ("reasons", "taken"),
    [((), True), (("workerdied",), True), (("FAILED",), True), (("sigk",), True), (("x",), False)],
)
def test_reasons(reasons: tuple[str, ...], taken: bool) -> None:
    letter, _ = letter_of(Event(None, b"v", ()))
    assert Selection(reasons=reasons).takes(letter) is taken
    assert not Selection(["b"], reasons).takes(letter)
