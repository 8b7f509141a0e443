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


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _DyingProducer:
    """Passes everything on to the real producer, but dies around its commit."""

    def __init__(self, producer: Any, moment: str) -> None:
        self._producer = producer
        self._moment = moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def begin_transaction(self) -> None:
        if self._moment == "before the transaction":
            _die()
        self._producer.begin_transaction()

    def commit_transaction(self, timeout: float) -> None:
        if self._moment == "before the commit":
            self._producer.flush(30)  # the records are at the broker, within an open transaction
            _die()
        self._producer.commit_transaction(timeout)
        _die()


class _DoomedService(app.Service):
    def __init__(self, settings: Any, worker: WorkerSetup, moment: str) -> None:
        super().__init__(settings, worker)
        self._moment = moment

    def _make_publisher(self) -> Publisher:
        publisher = super()._make_publisher()
        publisher._producer = _DyingProducer(publisher._producer, self._moment)  # type: ignore[assignment]
        return publisher


if __name__ == "__main__":
    moment, _, config = sys.argv[1:]
    settings = load(Path(config))
    logs.configure(settings.log.level, settings.log.format)
    setup = WorkerSetup(make_exposure_work, WorkSettings.of(settings))
    _DoomedService(settings, setup, moment).run()
