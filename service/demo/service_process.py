"""The service as its own process, started and stopped for the demonstration."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.demo.broker import DemoBroker
from service.demo.options import DemoFailed, DemoOptions, DemoPaths

_COMMAND = "import sys; from service.cli import main; sys.exit(main())"
_SHUTDOWN_SECONDS = 20.0


@dataclass
class ServiceProcess:
    """A running `skydelta run`."""

    process: subprocess.Popen[bytes]
    port: int
    paths: DemoPaths

    def check(self) -> None:
        """Raise `DemoFailed` if the service is no longer there."""
        code = self.process.poll()
        if code is not None:
            raise DemoFailed(f"the service ended with exit code {code}; see {self.paths.log}")

    def wait_until_ready(self, deadline: float, tick: Callable[[], None]) -> None:
        """Wait until ``/readyz`` says yes; ``tick`` is called between two looks.

        Raises
        ------
        DemoFailed
            If the service ends, or `time.monotonic` passes ``deadline``.
        """
        while True:
            self.check()
            if self._is_ready():
                return
            if time.monotonic() > deadline:
                raise DemoFailed(f"the service did not get ready in time; see {self.paths.log}")
            tick()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def running_service(
    options: DemoOptions, paths: DemoPaths, broker: DemoBroker
) -> Iterator[ServiceProcess]:
    """Start the service with settings of its own; stop it, whatever happens."""
    port = _free_port()
    paths.config.write_text(_settings(options, paths, broker, port))
    # The user's own settings must not lead the demonstration to the user's own broker.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SKYDELTA_")}
    with paths.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, "run", "--config", str(paths.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it in order
        )
    try:
        yield ServiceProcess(process, port, paths)
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            # Its session holds it and its workers, and nothing else.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _settings(options: DemoOptions, paths: DemoPaths, broker: DemoBroker, port: int) -> str:
    """Return the service's TOML file; JSON strings and numbers are TOML ones."""
    tables: dict[str, dict[str, object]] = {
        "kafka": {
            "bootstrap_servers": broker.address,
            "group_id": broker.exposures,
            "transactional_id": broker.exposures,
        },
        "topics": {
            "exposures": broker.exposures,
            "alerts": broker.alerts,
            "status": broker.status,
            "dead_letters": broker.dead_letters,
        },
        "templates": {"path": str(paths.survey / "template")},
        "pipeline": {"threshold": options.threshold},
        "input": {"roots": [str(paths.survey)]},
        "web": {"host": "127.0.0.1", "port": port},
        "log": {"format": "human"},
    }
    lines = ["# Written by skydelta demo; try: skydelta check-config --config " + paths.config.name]
    for table, values in tables.items():
        lines += ["", f"[{table}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"
