"""The pool: what a worker's end costs, and that the pool goes on."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.workers import (
    Event,
    Finished,
    Lost,
    Raised,
    WorkerPool,
    WorkersCannotStart,
    WorkerSetup,
)
from tests.fake_work import make_fake_work

PATIENCE = 60.0


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def warm(pool: WorkerPool) -> None:
    until(lambda: pool.poll() or pool.ready)


def outcome(pool: WorkerPool, task_id: int, task: Any, deadline: float = PATIENCE) -> Event:
    pool.submit(task_id, task, deadline)
    (event,) = until(pool.poll)
    return event


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(WorkerSetup(make_fake_work, "x", threads=3), 1)
    warm(made)
    yield made
    made.close()


def test_task_is_done_and_worker_is_idle_again(pool: WorkerPool) -> None:
    warm(pool)
    assert pool.idle == 1
    assert outcome(pool, 1, ("echo", b"x" * 3_000_000)) == Finished(1, b"x" * 3_000_000)
    assert pool.idle == 1


@pytest.mark.parametrize("library", ["OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "BLIS"])
def test_threads_are_set_before_anything_is_imported(pool: WorkerPool, library: str) -> None:
    warm(pool)
    assert outcome(pool, 2, ("environment", f"{library}_NUM_THREADS")) == Finished(2, "3")


def test_no_second_task_for_a_busy_worker(pool: WorkerPool) -> None:
    warm(pool)
    pool.submit(3, ("echo", 1), PATIENCE)
    with pytest.raises(RuntimeError, match="idle"):
        pool.submit(4, ("echo", 2), PATIENCE)
    until(pool.poll)


def test_exception_is_reported_and_costs_no_worker(pool: WorkerPool) -> None:
    warm(pool)
    pids = pool.pids
    event = outcome(pool, 5, ("raise", "no such band"))
    assert isinstance(event, Raised)
    assert (event.task_id, event.error_class, event.message) == (5, "LookupError", "no such band")
    assert "fake_work.py" in event.traceback
    assert pool.pids == pids


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (("kill",), "SIGKILL"),
        (("segfault",), "SIGSEGV"),
        (("segfault in C",), "SIGSEGV"),
        (("exit",), "exit code 7"),
        (("kill half way",), "SIGKILL"),
    ],
)
def test_dead_worker_costs_its_task_and_is_replaced(pool: WorkerPool, task: Any, said: str) -> None:
    warm(pool)
    (pid,), restarts = pool.pids, pool.restarts
    event = outcome(pool, 6, task)
    assert isinstance(event, Lost)
    assert (event.task_id, event.why) == (6, "died")
    assert said in event.message
    assert str(pid) in event.message
    assert pool.restarts == restarts + 1
    warm(pool)
    assert pool.pids != [pid]
    assert outcome(pool, 7, ("echo", 1)) == Finished(7, 1)


def test_worker_that_dies_while_idle_is_replaced(pool: WorkerPool) -> None:
    warm(pool)
    restarts = pool.restarts
    os.kill(pool.pids[0], signal.SIGKILL)
    until(lambda: pool.poll() or pool.restarts > restarts)
    warm(pool)
    assert outcome(pool, 8, ("echo", 1)) == Finished(8, 1)


def test_deadline_ends_the_worker(pool: WorkerPool) -> None:
    warm(pool)
    event = outcome(pool, 9, ("hang",), deadline=0.2)
    assert isinstance(event, Lost)
    assert event.why == "deadline"
    assert "0.2 s" in event.message


def test_stage_and_seconds_are_told_when_the_deadline_strikes(pool: WorkerPool) -> None:
    warm(pool)
    task = ("stages", ("read", 0.2), ("subtract", 0.0), ("read", 600))
    event = outcome(pool, 11, task, deadline=1.0)
    assert isinstance(event, Lost)
    assert (event.why, event.stage) == ("deadline", "read")
    assert list(event.seconds) == ["read", "subtract"]
    assert 0.9 < sum(event.seconds.values()) < 30
    assert event.seconds["read"] > 0.5 > event.seconds["subtract"]
    assert "in the stage read" in event.message
    assert "after subtract" in event.message


def test_stages_of_one_task_are_not_those_of_the_next(pool: WorkerPool) -> None:
    warm(pool)
    assert outcome(pool, 12, ("stages", ("read", 0.0))) == Finished(12, "done")
    event = outcome(pool, 13, ("kill",))
    assert isinstance(event, Lost)
    assert (event.stage, event.seconds) == (None, {})


def test_defect_names_its_stage(pool: WorkerPool) -> None:
    warm(pool)
    event = outcome(pool, 14, ("raise in", "detect"))
    assert isinstance(event, Raised)
    assert event.stage == "detect"


MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def small_pool() -> Iterator[WorkerPool]:
    """Its workers may hold 200 MB; they hold some 10 when they do nothing."""
    made = WorkerPool(WorkerSetup(make_fake_work, "x", memory_bytes=200 * MEGABYTE), 1)
    warm(made)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (("grow", 2000 * MEGABYTE, 2 * MEGABYTE), "workers.memory_limit (200 MB)"),
        (("allocate", 2000 * MEGABYTE), "allocation was refused"),
        (("memory",), "out of memory"),
    ],
)
def test_worker_that_takes_too_much_memory_is_replaced(
    small_pool: WorkerPool, task: Any, said: str
) -> None:
    warm(small_pool)
    (pid,) = small_pool.pids
    event = outcome(small_pool, 20, task)
    assert isinstance(event, Lost)
    assert event.why == "memory"
    assert said in event.message
    warm(small_pool)
    assert small_pool.pids != [pid]
    assert outcome(small_pool, 21, ("allocate", 100 * MEGABYTE)) == Finished(21, 100 * MEGABYTE)


def test_memory_below_the_limit_is_nobodys_business(small_pool: WorkerPool) -> None:
    warm(small_pool)
    restarts = small_pool.restarts
    task = ("grow", 150 * MEGABYTE, 5 * MEGABYTE)
    assert outcome(small_pool, 22, task) == Finished(22, "grown")
    assert small_pool.restarts == restarts


def test_limit_that_leaves_no_room_for_a_worker_is_told() -> None:
    pool = WorkerPool(WorkerSetup(make_fake_work, "x", memory_bytes=MEGABYTE), 1)
    try:
        with pytest.raises(WorkersCannotStart, match=r"workers\.memory_limit"):
            until(pool.poll)
    finally:
        pool.close()


def test_workers_ignore_the_signals_of_the_terminal(pool: WorkerPool) -> None:
    warm(pool)
    pids = pool.pids
    os.kill(pids[0], signal.SIGINT)
    os.kill(pids[0], signal.SIGTERM)
    assert outcome(pool, 10, ("echo", 1)) == Finished(10, 1)
    assert pool.pids == pids


@pytest.mark.parametrize(
    ("argument", "said"),
    [("cannot start", "RuntimeError: the compiler is missing"), ("never warm", "get warm")],
)
def test_workers_that_never_get_warm_are_given_up(argument: str, said: str) -> None:
    seconds = 600.0 if argument == "cannot start" else 0.3
    setup = WorkerSetup(make_fake_work, argument, start_timeout_seconds=seconds)
    pool = WorkerPool(setup, 1)
    try:
        with pytest.raises(WorkersCannotStart, match=said):
            until(pool.poll)
    finally:
        pool.close()


def test_close_ends_every_process() -> None:
    pool = WorkerPool(WorkerSetup(make_fake_work, None), 2)
    pids = pool.pids
    pool.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
