"""What is owned and what is in hand: one lane for each assigned partition, one job at a time in it.

The broker does not check that a process owns the partition whose offset it commits, and a partition
may leave and come back while work runs. So every assignment of a partition gets an epoch of its
own, and a job may only be committed while its lane still has the epoch that the job came under.
Nothing here talks to Kafka.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from service.events import ExposureEvent
from service.messages import Outgoing

Partition = tuple[str, int]

_PAUSE_AT = 8  # events held ready in a lane
_RESUME_BELOW = 4


@dataclass(frozen=True)
class Delivery:
    """One event as it came, with the epoch of the assignment that it came under."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    received_at: datetime
    epoch: int

    @property
    def origin(self) -> str:
        """``topic/partition/offset``."""
        return f"{self.topic}/{self.partition}/{self.offset}"


class JobState(Enum):
    """How far a job is."""

    WAITING = "for a worker, or for the time of its next attempt"
    WORKING = "a worker has it"
    FINISHED = "its outcome is ready to be published"


@dataclass(eq=False)
class Job:
    """One exposure on its way through the service.

    ``began`` is when a worker took it first, of the monotonic clock; ``mishap`` is what became of
    the last attempt that failed.
    """

    task_id: int
    delivery: Delivery
    exposure_id: str
    event: ExposureEvent | None = None
    state: JobState = JobState.WAITING
    attempts: int = 0
    crashes: int = 0
    aborts: int = 0
    not_before: float = 0.0
    outgoing: Outgoing | None = None
    began: float | None = None
    mishap: str | None = None

    @property
    def lane(self) -> Partition:
        """The partition that it came from."""
        return self.delivery.topic, self.delivery.partition


@dataclass(eq=False)
class Lane:
    """One assigned partition: what came from it, in order, and the job it is busy with.

    Some events are held ready, because a partition that is resumed has to be fetched from anew.
    ``paused`` is None at first: librdkafka remembers whether a partition was paused in an earlier
    assignment, so it has to be told. ``told`` is the last offset that was told of as waiting, and
    ``decoded`` has what was decoded for it, by offset, until its turn comes.
    """

    partition: Partition
    epoch: int
    queue: deque[Delivery] = field(default_factory=deque)
    job: Job | None = None
    paused: bool | None = None
    told: int = -1
    decoded: dict[int, ExposureEvent] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether no further event is wanted now."""
        return len(self.queue) >= (_RESUME_BELOW if self.paused else _PAUSE_AT)


class Lanes:
    """All assigned partitions of this process."""

    def __init__(self) -> None:
        self._lanes: dict[Partition, Lane] = {}
        self._epochs = itertools.count(1)

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def __len__(self) -> int:
        return len(self._lanes)

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Open a lane with a new epoch for each partition."""
        for partition in partitions:
            self._lanes[partition] = Lane(partition, next(self._epochs))

    def take_away(self, partitions: Iterable[Partition]) -> list[Job]:
        """Close lanes; return the jobs that were in them, which are now another process's."""
        closed = (self._lanes.pop(partition, None) for partition in partitions)
        return [lane.job for lane in closed if lane is not None and lane.job is not None]

    def get(self, partition: Partition) -> Lane | None:
        """Return the lane of a partition, None where it is not assigned."""
        return self._lanes.get(partition)

    def owns(self, job: Job) -> bool:
        """Return whether the partition is still under the assignment that the job came under."""
        lane = self._lanes.get(job.lane)
        return lane is not None and lane.epoch == job.delivery.epoch

    def jobs(self, state: JobState) -> list[Job]:
        """Return the jobs in a state, oldest first."""
        found = [lane.job for lane in self if lane.job is not None and lane.job.state is state]
        return sorted(found, key=lambda job: job.task_id)

    def done_with(self, job: Job) -> None:
        """Free the lane of a job whose offset is committed."""
        lane = self._lanes.get(job.lane)
        if lane is not None and lane.job is job:
            lane.job = None
