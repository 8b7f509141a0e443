"""``skydelta run`` with work that takes a moment and no pixels: for tests of the service alone."""

import hashlib
import random
import sys
import time
from pathlib import Path

from core.exposure import Exposure, ExposureResult
from service import app, logs
from service.events import ExposureEvent
from service.packets import EncodedAlert
from service.settings_loading import load
from service.status import status_record
from service.work import Processed
from service.workers import WorkerSetup

ALERTS = 3


class QuickWork:
    """Sleeps for up to ``longest`` seconds; the alerts are a pure function of the exposure's id."""

    def __init__(self, longest: float) -> None:
        self._longest = longest

    def warm_up(self) -> None:
        pass

    def __call__(self, task: ExposureEvent) -> Processed:
        time.sleep(random.uniform(0, self._longest))
        result = ExposureResult(Exposure(task.exposure_id, task.science_uri), "published")
        alerts = tuple(_alert(task.exposure_id, number) for number in range(ALERTS))
        return Processed(status_record(result, alerts=len(alerts)), alerts)


def _alert(exposure_id: str, number: int) -> EncodedAlert:
    name = f"{exposure_id}/{number}"
    candid = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return EncodedAlert(candid, f"SD{candid}", name.encode() * 1000)


def make_quick_work(longest: float) -> QuickWork:
    return QuickWork(longest)


if __name__ == "__main__":
    seconds, _, config = sys.argv[1:]
    settings = load(Path(config))
    logs.configure(settings.log.level, settings.log.format)
    app.run(settings, WorkerSetup(make_quick_work, float(seconds)))
