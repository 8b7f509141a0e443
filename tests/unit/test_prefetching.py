"""Fetching ahead: what is handed out, in which order, and that nothing of it hurts the service."""

from __future__ import annotations

import json
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from core.errors import InputUnavailable, NoTemplate, UnusableInput
from core.exposure import TemplateFacts
from core.pointing import tangential_grid
from core.templates import Template, TemplateRequest
from service.events import ExposureEvent
from service.metrics import Metrics
from service.pointings import decode
from service.prefetch_work import Prefetched, PrefetchWork
from service.prefetching import Prefetcher, PrefetchLimits
from service.template_tally import TemplateCounts, TemplateTally
from service.workers import Event, Finished, Lost, Raised, WorkersCannotStart
from tests.unit.made_frames import made_image

SHAPE = (40, 60)


def pointing(name: str, **changes: Any) -> bytes:
    fields = {
        "pointing_id": name, "band": "r", "width": 60, "height": 40,
        "ra": 150.0, "dec": 2.0, "pixel_scale": 1.0,
    }  # fmt: skip
    return json.dumps(fields | changes).encode()


def exposure(name: str, uri: str = "/s", **changes: Any) -> ExposureEvent:
    fields = {"exposure_id": name, "science_uri": uri, "band": "r", "mjd_mid": 61000.0}
    return ExposureEvent.model_validate(fields | changes)


class FakeMessage:
    def __init__(self, value: bytes | None) -> None:
        self._value = value

    def error(self) -> None:
        return None

    def value(self) -> bytes | None:
        return self._value

    def topic(self) -> str:
        return "pointings"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 5


class FakeConsumer:
    def __init__(self) -> None:
        self.coming: deque[bytes] = deque()
        self.paused = False
        self.polls = 0

    def poll(self, timeout: float) -> FakeMessage | None:
        assert timeout == 0  # the loop of the service must never wait here
        self.polls += 1
        if self.paused or not self.coming:
            return None
        return FakeMessage(self.coming.popleft())

    def assignment(self) -> list[str]:
        return ["pointings/0"]

    def pause(self, partitions: list[str]) -> None:
        assert partitions == self.assignment()
        self.paused = True

    def resume(self, partitions: list[str]) -> None:
        assert partitions == self.assignment()
        self.paused = False


class FakePool:
    def __init__(self) -> None:
        self.tasks: list[tuple[int, Any]] = []
        self.events: list[Event] = []
        self.busy = 0
        self.broken = False

    @property
    def idle(self) -> int:
        return 1 - self.busy

    def submit(self, task_id: int, task: Any, deadline_seconds: float) -> None:
        assert self.idle
        # Time to answer when the providers have used theirs up.
        assert deadline_seconds == (30 if isinstance(task, ExposureEvent) else 300) + 30
        self.busy = 1
        self.tasks.append((task_id, task))

    def poll(self) -> list[Event]:
        if self.broken:
            raise WorkersCannotStart("no module named astropy")
        events, self.events = self.events, []
        self.busy -= len(events)
        return events

    @property
    def names(self) -> list[str]:
        return [getattr(t, "pointing_id", None) or t.exposure_id for _, t in self.tasks]


class Scene:
    def __init__(self) -> None:
        self.pool = FakePool()
        self.consumer = FakeConsumer()
        self.metrics = Metrics()
        self.prefetcher = Prefetcher(
            self.pool,  # type: ignore[arg-type]
            self.metrics,
            PrefetchLimits(seconds=30, pointing_seconds=300, event_bytes=1000, waiting=4),
            self.consumer,  # type: ignore[arg-type]
        )

    def finish(self, result: Any = "fetched") -> None:
        counts = TemplateCounts()
        counts.requests["hips", "found"] = 1
        self.pool.events.append(
            Finished(self.pool.tasks[-1][0], Prefetched(result, "hips 1", counts))
        )
        self.prefetcher.turn()

    def count(self, source: str, result: str) -> float | None:
        labels = {"source": source, "result": result}
        return self.metrics.registry.get_sample_value("skydelta_template_prefetches_total", labels)


def test_exposures_go_before_pointings_and_nobody_twice() -> None:
    scene = Scene()
    scene.consumer.coming += [pointing("p1"), pointing("p1"), pointing("p2")]
    scene.prefetcher.turn()
    assert scene.pool.names == ["p1"]
    scene.prefetcher.turn()
    scene.prefetcher.turn()
    scene.prefetcher.expect([exposure("e1"), exposure("e1")])
    scene.prefetcher.expect([exposure("e1")])
    for _ in range(3):
        scene.finish()
    assert scene.pool.names == ["p1", "e1", "p2"]
    assert scene.count("pointing", "fetched") == 2
    assert scene.count("exposure", "fetched") == 1
    requests = scene.metrics.registry.get_sample_value(
        "skydelta_template_requests_total", {"provider": "hips", "result": "found"}
    )
    assert requests == 3


def test_what_a_worker_has_begun_is_not_fetched_for() -> None:
    scene = Scene()
    scene.prefetcher.expect([exposure("a"), exposure("b"), exposure("c")])
    scene.prefetcher.begun("b")
    scene.prefetcher.begun("unknown")
    scene.prefetcher.turn()
    scene.finish()
    scene.finish()
    assert scene.pool.names == ["a", "c"]


def test_no_pointing_is_lost_however_many_come_at_once() -> None:
    scene = Scene()
    names = [f"p{n}" for n in range(20)]
    scene.consumer.coming += [pointing(name) for name in names]
    for _ in range(30):
        scene.prefetcher.turn()
        assert scene.prefetcher.waiting <= 4
    assert scene.pool.names == ["p0"]
    assert len(scene.consumer.coming) == 20 - 1 - 4
    assert scene.consumer.polls == 30  # so that the brokers do not take us for dead
    for _ in range(200):
        if scene.pool.busy:
            scene.finish()
        scene.prefetcher.turn()
    assert scene.pool.names == names


def test_exposures_beyond_the_limit_are_left_to_their_workers() -> None:
    scene = Scene()
    scene.prefetcher.expect([exposure(f"e{n}") for n in range(6)])
    scene.prefetcher.turn()
    for _ in range(3):
        scene.finish()
    assert scene.pool.names == ["e0", "e1", "e2", "e3"]
    assert scene.count("exposure", "left") == 2


@pytest.mark.parametrize(
    ("result", "times"), [("fetched", 1), ("none", 1), ("unavailable", 2), ("refused", 2)]
)
def test_what_failed_is_tried_again_when_it_is_sent_again(result: str, times: int) -> None:
    scene = Scene()
    for _ in range(2):
        scene.consumer.coming.append(pointing("p"))
        scene.prefetcher.turn()
        if scene.pool.busy:
            scene.finish(result)
    assert scene.pool.names == ["p"] * times


def test_what_has_expired_is_left_out() -> None:
    scene = Scene()
    past = datetime(2020, 1, 1, tzinfo=UTC)
    scene.prefetcher.expect([exposure("late", expires_at=past), exposure("in time")])
    scene.prefetcher.turn()
    assert scene.pool.names == ["in time"]


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff\xfe", pointing("p", ra=999.0)])
def test_a_pointing_that_cannot_be_read_is_counted_and_passed_over(
    payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.consumer.coming += [payload, pointing("good")]
    scene.prefetcher.turn()
    scene.prefetcher.turn()
    assert scene.pool.names == ["good"]
    assert scene.count("pointing", "refused") == 1
    assert "pointings/0/5 left out" in caplog.text


@pytest.mark.parametrize(("length", "refused"), [(1000, None), (1001, 1.0)])
def test_a_pointing_that_is_too_large_is_refused_undecoded(
    length: int, refused: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.consumer.coming.append(pointing("p").ljust(length))
    scene.prefetcher.turn()
    assert scene.count("pointing", "refused") == refused
    assert scene.pool.names == ([] if refused else ["p"])
    said = "the pointing has 1001 bytes; input.max_event_bytes allows 1000"
    assert (said in caplog.text) == bool(refused)


def test_a_process_that_dies_or_errs_is_counted() -> None:
    scene = Scene()
    scene.prefetcher.expect([exposure("a"), exposure("b")])
    scene.prefetcher.turn()
    scene.pool.events.append(Lost(scene.pool.tasks[-1][0], "died", "worker 7 was ended"))
    scene.prefetcher.turn()
    scene.pool.events.append(Raised(scene.pool.tasks[-1][0], "KeyError", "x", "Traceback"))
    scene.prefetcher.turn()
    assert scene.count("exposure", "died") == 1
    assert scene.count("exposure", "defect") == 1


def test_a_process_that_never_starts_costs_nothing_but_the_fetching_ahead() -> None:
    scene = Scene()
    scene.pool.broken = True
    scene.prefetcher.turn()
    scene.pool.broken = False
    scene.prefetcher.expect([exposure("a")])
    scene.prefetcher.turn()
    assert scene.pool.names == []


class FakeTemplates:
    """Keeps what it was asked; answers or raises what the test says."""

    name = "fake"

    def __init__(self, answer: Template | Exception) -> None:
        self._answer = answer
        self.asked: list[TemplateRequest] = []

    def find(self, request: TemplateRequest) -> Template:
        self.asked.append(request)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def found() -> Template:
    facts = TemplateFacts(
        provider="fake", template_id="t1", band="r", zero_point=None, overlap=1.0,
        mjd_first=None, mjd_last=None,
    )  # fmt: skip
    return Template(made_image(np.zeros(SHAPE)), facts)


def test_an_exposure_asks_for_its_own_grid(tmp_path: Path) -> None:
    path = tmp_path / "e.fits"
    wcs = tangential_grid((150.0, 2.0), SHAPE, 1.1, position_angle=25.0)
    fits.PrimaryHDU(np.ones(SHAPE, np.float32), wcs.to_header()).writeto(path)
    templates = FakeTemplates(found())
    work = PrefetchWork(
        (tmp_path,), templates, 0.4, TemplateTally(), seconds=60, pointing_seconds=120
    )
    done = work(exposure("e", str(path)))
    assert (done.result, done.message) == ("fetched", "fake t1")
    (request,) = templates.asked
    assert (request.shape, request.band, request.mjd_mid) == (SHAPE, "r", 61000.0)
    assert request.min_overlap == 0.4
    assert request.exclude == (str(path),)
    assert request.deadline is not None
    assert 30 < request.deadline.remaining() <= 60
    assert request.wcs is not None
    np.testing.assert_allclose(request.wcs.wcs.crval, [150.0, 2.0])


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (NoTemplate("outside"), "none"),
        (InputUnavailable("503"), "unavailable"),
        (UnusableInput("not FITS"), "refused"),
    ],
)
def test_errors_are_answers(error: Exception, result: str) -> None:
    tally = TemplateTally()
    tally.requested("fake", "none")
    work = PrefetchWork((), FakeTemplates(error), 0.3, tally, seconds=60, pointing_seconds=120)
    done = work(decode(pointing("p")))
    assert (done.result, done.message) == (result, str(error))
    assert done.counts.requests["fake", "none"] == 1


def test_providers_of_a_pointing_have_their_time() -> None:
    templates = FakeTemplates(found())
    PrefetchWork((), templates, 0.3, TemplateTally(), seconds=60, pointing_seconds=120)(
        decode(pointing("p"))
    )
    (request,) = templates.asked
    assert request.deadline is not None
    assert 60 < request.deadline.remaining() <= 120


def test_an_exposure_outside_the_roots_is_not_opened(tmp_path: Path) -> None:
    work = PrefetchWork(
        (tmp_path,), FakeTemplates(found()), 0.3, TemplateTally(), seconds=60, pointing_seconds=120
    )
    done = work(exposure("e", "/etc/passwd"))
    assert done.result == "refused"
    assert "leads out of the allowed folders" in done.message
