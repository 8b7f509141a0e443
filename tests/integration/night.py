"""A night at a telescope: a running service, and exposures that are sent to it one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Message

from tests.integration.observed_field import ObservedField
from tests.service_process import ServiceProcess, read_record, send_events

Record = dict[str, Any]


@dataclass(frozen=True)
class Observed:
    """What came of an exposure: its status, and its alerts."""

    status: Record
    alerts: list[Record]

    def nearest(self, places: np.ndarray) -> list[int]:
        """Return, for every alert above 8 sigma, which place it lies on (within 1"), -1 if none."""
        found = []
        for packet in self.alerts:
            if packet["skydelta"]["snr"] < 8:
                continue
            ra, dec = packet["candidate"]["ra"], packet["candidate"]["dec"]
            apart = np.hypot((places[:, 0] - ra) * np.cos(np.radians(dec)), places[:, 1] - dec)
            best = int(apart.argmin())
            found.append(best if apart[best] < 1 / 3600 else -1)
        return found


@dataclass
class Night:
    """One running service.

    Attributes
    ----------
    service : ServiceProcess
    folder : Path
        Where exposures are written.
    read_topic : callable
        See the fixture of that name.
    """

    service: ServiceProcess
    folder: Path
    read_topic: Callable[..., list[Message]]
    _sent: int = 0

    def observe(self, sky: ObservedField, band: str, *, repeat: bool = False) -> Observed:
        """Expose, and wait for what comes of it."""
        (found,) = self.observe_all([sky.expose(self.folder, band, repeat=repeat)])
        return found

    def observe_all(self, events: Sequence[Record]) -> list[Observed]:
        """Send exposures at once, and wait for what comes of them."""
        topics = self.service.topics
        send_events(self.service.bootstrap, topics.exposures, list(events))
        self._sent += len(events)
        statuses = [read_record(m) for m in self.read_topic(topics.status, self._sent, timeout=90)]
        number = sum(status["alerts"] for status in statuses)
        packets = [read_record(m) for m in self.read_topic(topics.alerts, number)]
        found = []
        for event in events:
            name = event["exposure_id"]
            (status,) = [s for s in statuses if s["exposure_id"] == name]
            found.append(
                Observed(status, [p for p in packets if p["skydelta"]["exposure_id"] == name])
            )
        return found

    def counted(self, name: str, **labels: str) -> float:
        """Return a counter of templates, the sum over all labels that are not given."""
        wanted = f"skydelta_template_{name}_total{{"
        return sum(
            float(line.split()[-1])
            for line in self.service.get("/metrics")[1].splitlines()
            if line.startswith(wanted) and all(f'{k}="{v}"' in line for k, v in labels.items())
        )
