"""``skydelta run`` with quick work, traps around its transactions and, when asked, a known fault.

``python -m tests.chaos.service SECONDS TRAPS FAULT --config FILE``; FAULT is ``none`` or one of
`FAULTS`: what the chaos tests must notice.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from service import app, logs, stream
from service.lanes import Job, JobState, Lanes, Partition
from service.publisher import Publisher
from service.settings_loading import load
from service.workers import WorkerSetup
from tests.chaos.traps import spring
from tests.quick_service import make_quick_work
from tests.trapped_producer import BEFORE_COMMIT, TrappedProducer

NO_FAULT = "none"


class CarelessLanes(Lanes):
    """Forgets to check whose a partition is: what is in hand is published all the same."""

    def owns(self, job: Job) -> bool:
        return True

    def take_away(self, partitions: Iterable[Partition]) -> list[Job]:
        for partition in list(partitions):
            lane = self.get(partition)
            if lane is None:
                continue
            lane.queue.clear()
            if lane.job is None or lane.job.state is JobState.WAITING:
                super().take_away([partition])
        return []

    def assign(self, partitions: Iterable[Partition]) -> None:
        kept = {lane.partition: lane.job for lane in self}
        names = list(partitions)
        super().assign(names)
        for lane in self:
            if lane.partition in names:
                lane.job = kept.get(lane.partition)


class LaterOffsets(TrappedProducer):
    """Commits the offset after the transaction, not in it."""

    consumer: Consumer
    _offsets: list[TopicPartition]

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], *_: Any) -> None:
        self._offsets = offsets

    def commit_transaction(self, timeout: float) -> None:
        super().commit_transaction(timeout)
        self.consumer.commit(offsets=self._offsets, asynchronous=False)


class _RememberedConsumer(Consumer):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        LaterOffsets.consumer = self


FAULTS = ("ownership", "offsets")


class ChaosService(app.Service):
    """The service, its producer trapped.

    Parameters
    ----------
    settings, worker
        As for `service.app.Service`.
    traps : Path
        Folder that traps are laid in.
    fault : str
        ``none`` or one of `FAULTS`.
    """

    def __init__(self, settings: Any, worker: WorkerSetup, traps: Path, fault: str) -> None:
        super().__init__(settings, worker)
        self._traps = traps
        self._trapped = LaterOffsets if fault == "offsets" else TrappedProducer

    def _make_publisher(self) -> Publisher:
        publisher = super()._make_publisher()
        producer = publisher._producer

        def reached(moment: str) -> None:
            if moment == BEFORE_COMMIT and any(self._traps.iterdir()):
                producer.flush(30)  # so that the records lie at the broker, uncommitted
            spring(self._traps, moment)

        publisher._producer = self._trapped(producer, reached)  # type: ignore[assignment]
        return publisher


def main() -> None:
    """Run until SIGTERM."""
    seconds, traps, fault, _, config = sys.argv[1:]
    settings = load(Path(config))
    logs.configure(settings.log.level, settings.log.format)
    if fault == "ownership":
        stream.Lanes = CarelessLanes  # type: ignore[misc]
    if fault == "offsets":
        app.Consumer = _RememberedConsumer  # type: ignore[attr-defined]
    worker = WorkerSetup(make_quick_work, float(seconds))
    app.run_until_signalled(ChaosService(settings, worker, Path(traps), fault))


if __name__ == "__main__":
    main()
