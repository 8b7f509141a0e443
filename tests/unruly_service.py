"""``skydelta run`` whose workers do what the exposure's id says: die, hang, grow, or work."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from service.stage_reports import enter_stage

if TYPE_CHECKING:
    from service.events import ExposureEvent
    from service.work import Processed

MEMORY = 150_000_000


class UnrulyWork:
    """Misbehaves at every attempt, or only at the first if the id ends in ``once``."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def warm_up(self) -> None:
        _published("rehearsal")  # so that no import counts against a deadline

    def __call__(self, task: ExposureEvent) -> Processed:
        enter_stage("read")
        before = self._folder / task.exposure_id
        if not (task.exposure_id.endswith("once") and before.exists()):
            before.touch()
            enter_stage("subtract")
            _misbehave(task.exposure_id.partition("-")[0])
        return _published(task.exposure_id)


def _published(exposure_id: str) -> Processed:
    from core.exposure import Exposure, ExposureResult
    from service.status import status_record
    from service.work import Processed

    return Processed(status_record(ExposureResult(Exposure(exposure_id, "/s"), "published")))


def _misbehave(how: str) -> None:
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "grow":
            held = []
            while True:
                held.append(b"x" * 5_000_000)
                time.sleep(0.01)
        case "jump":
            bytearray(20 * MEMORY)


def make_unruly_work(folder: str) -> UnrulyWork:
    return UnrulyWork(folder)


if __name__ == "__main__":
    from service import app, logs
    from service.settings_loading import load
    from service.workers import WorkerSetup

    folder, _, config = sys.argv[1:]
    settings = load(Path(config))
    logs.configure(settings.log.level, settings.log.format)
    app.run(settings, WorkerSetup(make_unruly_work, folder, memory_bytes=MEMORY))
