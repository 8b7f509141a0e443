"""``skydelta run`` as a process of its own, as the integration tests start, watch and end it."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Message, Producer

PATIENCE = 90.0


@dataclass
class Topics:
    """The topics of one service."""

    exposures: str
    alerts: str
    status: str
    dead_letters: str
    pointings: str | None = None


@dataclass
class ServiceProcess:
    """One running service.

    ``settings`` holds tables for the settings file, beside what every service here needs;
    ``patience`` is how many seconds it may take to become what a test waits for.
    """

    folder: Path
    bootstrap: str
    topics: Topics
    roots: list[Path]
    templates: Path
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    module: str = "service.cli"
    arguments: tuple[str, ...] = ()
    patience: float = PATIENCE

    def start(self, *, ready: bool = True) -> "ServiceProcess":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        config = self.folder / "skydelta.toml"
        config.write_text(self._toml())
        self.log_path = self.folder / "service.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SKYDELTA_")}
        command = [sys.executable, "-m", self.module, *self.arguments]
        if self.module == "service.cli":
            command.append("run")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
                start_new_session=True,
            )
        if ready:
            self.until(lambda: self.get("/readyz")[0] == 200, "ready")
        return self

    def _toml(self) -> str:
        tables: dict[str, dict[str, Any]] = {
            "kafka": {
                "bootstrap_servers": self.bootstrap,
                "group_id": self.topics.exposures,
                "transactional_id": self.topics.exposures,
                "session_timeout_seconds": 6,
            },
            "topics": {role: name for role, name in vars(self.topics).items() if name},
            "templates": {"path": str(self.templates), "cache": str(self.folder / "cache")},
            "input": {"roots": [str(root) for root in self.roots]},
            "workers": {"count": 1, "retry_seconds": 0.1},
            "web": {"port": self.port},
            "log": {"format": "json"},
        }
        for name, values in self.settings.items():
            tables.setdefault(name, {}).update(values)
        lines = []
        for name, values in tables.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        return "\n".join(lines) + "\n"

    def get(self, path: str) -> tuple[int, str]:
        """Return status code and body; code 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, OSError):
            return 0, ""

    def metric(self, name: str) -> float:
        """Return a metric; its labels belong to its name."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"there is no metric {name}")

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
            if self.process.poll() is not None:
                raise AssertionError(f"not {what}: the service ended\n{self.log}")
            time.sleep(0.05)
        raise AssertionError(f"not {what} in {self.patience:g} s\n{self.log}")

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def log_records(self) -> list[dict[str, Any]]:
        """The JSON lines of the log."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers (and not of multiprocessing's resource tracker)."""
        found = []
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            found += [int(pid) for pid in path.read_text().split()]
        return [pid for pid in found if b"spawn_main" in _command_line(pid)]

    def wait(self, timeout: float = PATIENCE) -> int:
        return self.process.wait(timeout)

    def stop(self) -> int:
        """Ask it to leave, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """End it and its workers at once, whatever state they are in."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items())} }}"
    return json.dumps(value)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def send_events(
    bootstrap: str, topic: str, events: list[bytes | dict[str, Any]], partition: int = 0
) -> None:
    """Publish events, dicts as JSON, in order."""
    producer = Producer({"bootstrap.servers": bootstrap})
    for event in events:
        value = event if isinstance(event, bytes) else json.dumps(event).encode()
        producer.produce(topic, value=value, partition=partition)
    assert producer.flush(30) == 0


def read_record(message: Message) -> dict[str, Any]:
    """Return the one record of a message's Avro container."""
    value = message.value()
    assert isinstance(value, bytes)
    (record,) = fastavro.reader(io.BytesIO(value))
    assert isinstance(record, dict)
    return record
