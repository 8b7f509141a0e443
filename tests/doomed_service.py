"""``skydelta run``, but its first transaction kills it, at a moment of the test's choice."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from service import app, logs
from service.publisher import Publisher
from service.settings_loading import load
from service.work import WorkSettings, make_exposure_work
from service.workers import WorkerSetup
from tests.trapped_producer import AFTER_COMMIT, BEFORE_COMMIT, TrappedProducer


class _DoomedService(app.Service):
    def __init__(self, settings: Any, worker: WorkerSetup, moment: str) -> None:
        super().__init__(settings, worker)
        self._moment = moment

    def _make_publisher(self) -> Publisher:
        publisher = super()._make_publisher()
        producer = publisher._producer

        def reached(moment: str) -> None:
            if moment == BEFORE_COMMIT == self._moment:
                producer.flush(30)  # the records are at the broker, within an open transaction
            if moment in (self._moment, AFTER_COMMIT):
                os.kill(os.getpid(), signal.SIGKILL)

        publisher._producer = TrappedProducer(producer, reached)  # type: ignore[assignment]
        return publisher


if __name__ == "__main__":
    moment, _, config = sys.argv[1:]
    settings = load(Path(config))
    logs.configure(settings.log.level, settings.log.format)
    setup = WorkerSetup(make_exposure_work, WorkSettings.of(settings))
    _DoomedService(settings, setup, moment).run()
