"""`tests.quick_service` at least once, but it dies before its first offset is committed."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer

from service import app, logs
from service.settings_loading import load
from service.workers import WorkerSetup
from tests.quick_service import make_quick_work


class _DyingConsumer(Consumer):
    def commit(self, *arguments: Any, **keywords: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    seconds, _, config = sys.argv[1:]
    settings = load(Path(config))
    logs.configure(settings.log.level, settings.log.format)
    app.Consumer = _DyingConsumer  # type: ignore[attr-defined,misc]
    app.run(settings, WorkerSetup(make_quick_work, float(seconds)))
