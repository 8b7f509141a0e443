"""``skydelta run`` whose workers do what the exposure's id says: die, hang, grow, or work."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from core.exposure import Exposure, ExposureResult
from service import app, logs
from service.events import ExposureEvent
from service.packets import EncodedAlert
from service.settings_loading import load
from service.stage_reports import enter_stage
from service.status import status_record
from service.work import Processed
from service.workers import WorkerSetup

MEMORY = 150_000_000


class UnrulyWork:
    """Misbehaves at every attempt, or only at the first if the id ends in ``once``."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def warm_up(self) -> None:
        pass

    def __call__(self, task: ExposureEvent) -> Processed:
        enter_stage("read")
        before = self._folder / task.exposure_id
        if not (task.exposure_id.endswith("once") and before.exists()):
            before.touch()
            enter_stage("subtract")
            _misbehave(task.exposure_id.partition("-")[0])
        result = ExposureResult(Exposure(task.exposure_id, task.science_uri), "published")
        alert = EncodedAlert(1, "SD1", task.exposure_id.encode())
        return Processed(status_record(result, alerts=1), (alert,))


def _misbehave(how: str) -> None:
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(600)
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
    folder, _, config = sys.argv[1:]
    settings = load(Path(config))
    logs.configure(settings.log.level, settings.log.format)
    app.run(settings, WorkerSetup(make_unruly_work, folder, memory_bytes=MEMORY))
