"""Worker processes that may die: a small pool of one process and one pipe each.

A worker that is killed, crashes, takes too much memory or misses its deadline costs only the task
that it held; the pool says so, and in which stage it was, and starts another in its place. Work
runs in spawned processes, so that no lock or thread of the Kafka clients is inherited.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

from service import stage_reports, worker_memory
from service.byte_sizes import shown_bytes

logger = logging.getLogger(__name__)

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "BLIS_NUM_THREADS",
)
_MEMORY_WATCH_SECONDS = 0.1
_STARTS_IN_A_ROW = 4  # a worker that never gets warm is a fault of the installation, not of a task
_PR_SET_PDEATHSIG = 1


class Work(Protocol):
    """What a worker does; made once in each worker, called once a task."""

    def warm_up(self) -> None:
        """Do whatever only the first task would have to wait for."""
        ...

    def __call__(self, task: Any) -> Any:
        """Return what came of the task; an exception is a defect and is reported as such."""
        ...


@dataclass(frozen=True)
class WorkerSetup:
    """How a worker is made: ``make(argument)`` is called in it; both must be picklable.

    A worker that holds more than ``memory_bytes`` is ended; see `service.worker_memory`.
    """

    make: Callable[[Any], Work]
    argument: Any
    threads: int = 1
    start_timeout_seconds: float = 300.0
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Finished:
    """A task came to its end."""

    task_id: int
    value: Any


@dataclass(frozen=True)
class Raised:
    """A task raised an exception that the work does not know: a defect of ours."""

    task_id: int
    error_class: str
    message: str
    traceback: str
    stage: str | None = None


@dataclass(frozen=True)
class Lost:
    """The worker of a task is gone, the task with it.

    Attributes
    ----------
    task_id : int
    why : str
        ``died``: killed, or crashed; ``deadline``, ``memory``: it took too much and was ended.
    message : str
        In one line, with the stage.
    stage : str or None
        The stage that the work was in, if it tells.
    seconds : dict
        Wall time of each stage so far.
    """

    task_id: int
    why: Literal["died", "deadline", "memory"]
    message: str
    stage: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


Event = Finished | Raised | Lost


class WorkersCannotStart(Exception):
    """Workers end again and again before they are warm; the message holds the last reason."""


class WorkerPool:
    """Workers that are replaced when they die.

    Nothing here blocks except `close`: call `poll` often.

    Parameters
    ----------
    setup : WorkerSetup
        What a worker is.
    count : int
        How many.
    """

    def __init__(self, setup: WorkerSetup, count: int) -> None:
        self._setup = setup
        self._inbox: queue.SimpleQueue[tuple[_Worker, _Message]] = queue.SimpleQueue()
        self._workers = [_Worker(setup, self._inbox, slot) for slot in range(count)]
        self._failed_starts = 0
        self._closed = False
        self.restarts = 0

    @property
    def ready(self) -> bool:
        """Whether every worker is warm."""
        return all(worker.warm for worker in self._workers)

    @property
    def idle(self) -> int:
        """How many workers can take a task now."""
        return sum(worker.idle for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def submit(self, task_id: int, task: Any, deadline_seconds: float) -> None:
        """Give a task to an idle worker.

        Raises
        ------
        RuntimeError
            If there is none; look at `idle` first.
        """
        for worker in self._workers:
            if worker.idle:
                worker.start_task(task_id, task, deadline_seconds)
                return
        raise RuntimeError("no worker is idle")

    def poll(self) -> list[Event]:
        """Return what happened since the last call; enforce deadlines; replace dead workers.

        Raises
        ------
        WorkersCannotStart
            If workers do not even get warm.
        """
        events: list[Event] = []
        for worker in self._workers:
            worker.enforce_deadlines()
        while True:
            try:
                worker, message = self._inbox.get_nowait()
            except queue.Empty:
                return events
            if isinstance(message, _Warm):
                worker.warm = True
                self._failed_starts = 0
            elif isinstance(message, _Gone):
                events += self._bury(worker, message)
            elif isinstance(message, _Stage):
                worker.stages.append((message.name, message.began))
            else:
                worker.task_id = None
                if isinstance(message, Raised) and worker.stages:
                    message = replace(message, stage=worker.stages[-1][0])
                events.append(message)

    def _bury(self, worker: _Worker, message: _Gone) -> list[Event]:
        cause, why = worker.obituary(message)
        lost: list[Event] = []
        if worker.task_id is not None:
            seconds = worker.seconds_of_stages()
            stage = worker.stages[-1][0] if worker.stages else None
            why = f"{why}{_while_in(stage, seconds)}"
            lost.append(Lost(worker.task_id, cause, why, stage, seconds))
        if self._closed:
            return lost
        if not worker.warm:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS_IN_A_ROW:
                raise WorkersCannotStart(f"workers do not start: {why}")
        logger.warning("%s; starting another", why, extra={"worker": worker.pid})
        self.restarts += 1
        self._workers[worker.slot] = _Worker(self._setup, self._inbox, worker.slot)
        return lost

    def close(self) -> None:
        """End all workers now; what they hold is lost."""
        self._closed = True
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()


@dataclass(frozen=True)
class _Warm:
    """The worker is ready for tasks."""


@dataclass(frozen=True)
class _Stage:
    """The task has come to a stage; ``began`` is of the clock that all processes share."""

    name: str
    began: float


@dataclass(frozen=True)
class _Gone:
    """The worker's end of the pipe is closed; ``failure`` is what it could still say."""

    failure: str | None = None
    out_of_memory: bool = False


_Message = _Warm | _Stage | _Gone | Finished | Raised
_Cause = Literal["died", "deadline", "memory"]


class _Worker:
    """One process, its pipe, and a thread that reads from it so that nobody else has to wait."""

    def __init__(
        self,
        setup: WorkerSetup,
        inbox: queue.SimpleQueue[tuple[_Worker, _Message]],
        slot: int,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.slot = slot
        self.warm = False
        self.overdue = False
        self.task_id: int | None = None
        self.stages: list[tuple[str, float]] = []
        self._held = 0  # bytes, once that is more than it may hold
        self._memory_bytes = setup.memory_bytes
        self._kernel_kills = worker_memory.kernel_kills()
        self._inbox = inbox
        self._deadline = time.monotonic() + setup.start_timeout_seconds
        self._allowed = setup.start_timeout_seconds
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_worker_main, args=(theirs, setup.threads), name=f"worker-{slot}", daemon=True
        )
        self._process.start()
        theirs.close()
        # The set-up goes through the pipe because it must be unpickled, and numpy with it be
        # imported, only after the thread counts are set.
        with contextlib.suppress(OSError):  # it died at once: the reader says so
            self._connection.send_bytes(pickle.dumps(setup))
        self._reader = threading.Thread(target=self._read, name=f"reader-{slot}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def idle(self) -> bool:
        return self.warm and self.task_id is None and not self.overdue and not self._held

    def start_task(self, task_id: int, task: Any, deadline_seconds: float) -> None:
        self.task_id = task_id
        self.stages = []
        self._allowed = deadline_seconds
        self._deadline = time.monotonic() + deadline_seconds
        with contextlib.suppress(OSError):  # it is dead: the reader says so, and the task is lost
            self._connection.send((task_id, task))

    def enforce_deadlines(self) -> None:
        busy = self.task_id is not None or not self.warm
        if busy and not self.overdue and time.monotonic() > self._deadline:
            self.overdue = True
            self.kill()

    def seconds_of_stages(self) -> dict[str, float]:
        """Return how long the task has been in each stage, up to now."""
        seconds: dict[str, float] = {}
        for (name, began), (_, end) in pairwise([*self.stages, ("", time.monotonic())]):
            seconds[name] = seconds.get(name, 0.0) + end - began
        return seconds

    def obituary(self, message: _Gone) -> tuple[_Cause, str]:
        self._process.join(timeout=1.0)  # a dying process closes its pipe before it has ended
        self.kill()
        self.join()
        if self.overdue:
            doing = "finish" if self.warm else "get warm"
            said = f"worker {self.pid} did not {doing} within {self._allowed:g} s and was stopped"
            return "deadline", said
        if self._held:
            assert self._memory_bytes is not None
            return "memory", (
                f"worker {self.pid} held {shown_bytes(self._held)} of memory, more than "
                f"workers.memory_limit ({shown_bytes(self._memory_bytes)}), and was stopped"
            )
        if message.failure:
            cause: _Cause = "memory" if message.out_of_memory else "died"
            return cause, f"worker {self.pid} failed: {message.failure}"
        code = self._process.exitcode
        if code is None or code >= 0:
            return "died", f"worker {self.pid} ended by itself with exit code {code}"
        name = signal.Signals(-code).name
        if code == -signal.SIGKILL and worker_memory.kernel_kills() > self._kernel_kills:
            return (
                "memory",
                f"worker {self.pid} was ended by the kernel for want of memory ({name})",
            )
        return "died", f"worker {self.pid} was ended by {name}"

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> None:
        self._process.join()
        self._reader.join()  # the end of the process is the end of its pipe
        self._connection.close()

    def _read(self) -> None:
        while True:
            try:
                if self._memory_bytes is not None:
                    while not self._connection.poll(_MEMORY_WATCH_SECONDS):
                        self._watch_memory(self._memory_bytes)
                message = self._connection.recv()
            except (EOFError, OSError):
                self._inbox.put((self, _Gone()))
                return
            # Unpickling raises what the pickled classes raise; a worker that sends something
            # unreadable cannot be talked to any more, so it ends like one that died.
            except Exception as error:  # noqa: BLE001
                why = f"its answer cannot be read ({type(error).__name__}: {error})"
                self._inbox.put((self, _Gone(why)))
                return
            self._inbox.put((self, message))
            if isinstance(message, _Gone):
                return

    def _watch_memory(self, limit: int) -> None:
        # Here and not in the loop of the service, which waits for the brokers now and then.
        held = worker_memory.held_bytes(self.pid)
        if held > limit and not self._held:
            self._held = held
            self.kill()


def _while_in(stage: str | None, seconds: Mapping[str, float]) -> str:
    """Return what the stages took, for a message."""
    if stage is None:
        return ""
    before = ", ".join(f"{name} {spent:.3g}" for name, spent in seconds.items() if name != stage)
    after = f" after {before} s" if before else ""
    return f" in the stage {stage} ({seconds[stage]:.3g} s{after})"


def _worker_main(connection: Connection, threads: int) -> None:
    """Run in the worker: make the work, warm it up, then do tasks until the pipe closes."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(threads)
    # The parent decides when a worker ends; a Ctrl-C on the terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    worker_memory.be_first_to_go()
    try:
        setup: WorkerSetup = pickle.loads(connection.recv_bytes())
        work = setup.make(setup.argument)
        work.warm_up()
        if setup.memory_bytes is not None:
            worker_memory.limit_own_memory(setup.memory_bytes)
    except EOFError:
        return
    # Whatever keeps a worker from starting is told to the parent, which gives up after a few.
    except Exception as error:  # noqa: BLE001
        connection.send(_Gone(f"{type(error).__name__}: {error}"))
        return
    connection.send(_Warm())
    stage_reports.listen(lambda name: _tell_stage(connection, name))
    while True:
        try:
            task_id, task = connection.recv()
        except (EOFError, OSError):
            return
        message = _done(work, task_id, task)
        try:
            connection.send(message)
        except BrokenPipeError:
            return
        if isinstance(message, _Gone):
            return


def _tell_stage(connection: Connection, name: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more: the task's end says so
        connection.send(_Stage(name, time.monotonic()))


def _done(work: Work, task_id: int, task: Any) -> Finished | Raised | _Gone:
    try:
        return Finished(task_id, work(task))
    except MemoryError:  # the process is not to be trusted any more
        return _Gone("it ran out of memory (an allocation was refused)", out_of_memory=True)
    # A defect must not take the worker down; it is reported with its traceback instead.
    except Exception as error:  # noqa: BLE001
        return Raised(task_id, type(error).__name__, str(error), traceback.format_exc())


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the service dies, so that no work goes on for nobody."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
