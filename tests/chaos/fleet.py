"""The services of a round: started, kept alive as an orchestrator would, and stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kafka.local_broker import LocalBroker
from tests.service_process import ServiceProcess, Topics

LONGEST = 0.3  # seconds of work


@dataclass
class Member:
    """One service that is started again whenever it has ended."""

    name: str
    process: ServiceProcess
    traps: Path
    busy: threading.Lock = field(default_factory=threading.Lock)
    starts: int = 0
    wanted: bool = True

    def keep_alive(self) -> bool:
        """Start it where it does not run; return whether it had to be started."""
        if not self.wanted or (self.starts and self.process.process.poll() is None):
            return False
        for trap in self.traps.iterdir():
            trap.unlink()
        self.process.start(ready=False)
        self.starts += 1
        return True


class Fleet:
    """Three services in one group on one broker.

    Parameters
    ----------
    broker : LocalBroker
    topics : Topics
    folder : Path
        Where their settings and logs go.
    protocol : str
        ``classic`` or ``consumer``.
    fault : str
        See `tests.chaos.service`.
    size : int
        How many.
    """

    def __init__(
        self, broker: LocalBroker, topics: Topics, folder: Path, protocol: str, fault: str,
        size: int = 3,
    ) -> None:  # fmt: skip
        self.broker = broker
        self._topics = topics
        self._folder = folder
        self._kafka: dict[str, Any] = {
            "group_protocol": protocol,
            "transaction_timeout_seconds": 30,
        }
        self._fault = fault
        self._joined = 0
        self.members = [self._make(f"pod-{number}") for number in range(size)]

    def _make(self, name: str) -> Member:
        folder = self._folder / name
        traps = folder / "traps"
        traps.mkdir(parents=True)
        process = ServiceProcess(
            folder=folder,
            bootstrap=self.broker.bootstrap,
            topics=self._topics,
            roots=[folder],
            templates=folder,
            settings={
                "kafka": {**self._kafka, "transactional_id": f"{self._topics.exposures}-{name}"},
                "workers": {"count": 2, "retry_seconds": 0.1},
            },
            module="tests.chaos.service",
            arguments=(str(LONGEST), str(traps), self._fault),
        )
        return Member(name, process, traps)

    def keep_alive(self) -> None:
        """Start whoever has ended; one that is being struck is left alone."""
        for member in self.members:
            if member.busy.acquire(blocking=False):
                try:
                    member.keep_alive()
                finally:
                    member.busy.release()

    def until_ready(self) -> None:
        """Wait until all of them take part."""
        for member in self.members:
            process = member.process
            process.until(lambda process=process: process.get("/readyz")[0] == 200, "ready")

    @contextmanager
    def borrowed(self, number: int) -> Iterator[Member]:
        """Have one service to strike; nobody starts it again meanwhile."""
        member = self.members[number % len(self.members)]
        with member.busy:
            member.keep_alive()
            yield member

    def join(self, stay: float) -> None:
        """Let one more service come, stay so many seconds, and leave in order."""
        self._joined += 1
        guest = self._make(f"guest-{self._joined}")
        try:
            guest.process.start(ready=False)
            time.sleep(stay)
            guest.process.stop()
        finally:
            guest.process.kill()

    def stop(self) -> list[int]:
        """Stop them all in order; return their exit statuses."""
        for member in self.members:
            member.wanted = False
        return [member.process.stop() for member in self.members]

    def kill(self) -> None:
        """End whatever still runs."""
        for member in self.members:
            if member.starts:
                member.process.kill()
