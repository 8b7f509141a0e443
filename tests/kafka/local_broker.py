"""An Apache Kafka of one node on the loopback interface: start, stop, kill, start again.

``python -m tests.kafka.local_broker`` (``make broker``) runs one in the foreground.
"""

import argparse
import base64
import contextlib
import logging
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.kafka.errors import BrokerFailed, BrokerUnavailable
from tests.kafka.jars import DEPLOY, fetch_jars, find_java, kafka_version

logger = logging.getLogger(__name__)

START_TIMEOUT = 90.0
STOP_TIMEOUT = 30.0
FENCE_TIMEOUT = 30.0
FENCED = b"because its session has timed out"  # of a broker, in the controller's log
# Below Linux's ephemeral range: a client that reconnects to a port of that range while the broker
# is down can be given the same port as its source, and then talks to itself.
PORTS = range(20000, 32000)
_BEHAVIOUR = "--- below this line"


def behaviour() -> dict[str, str]:
    """Return the broker properties that are not about ports and folders."""
    text = (DEPLOY / "server.properties").read_text()
    lines = text[text.index(_BEHAVIOUR) :].splitlines()[1:]
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def free_port(avoid: int | None = None) -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    for port in random.sample(PORTS, 200):
        if port != avoid and port_is_free(port):
            return port
    raise BrokerUnavailable(f"no free port found in {PORTS.start}..{PORTS.stop}")


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class LocalBroker:
    """One Kafka node, broker and controller, run from jars with Java.

    Ports and data outlive `stop` and `kill`: the next `start` brings the same broker back, with
    its topics, groups and open transactions.

    Parameters
    ----------
    folder : Path
        Where its data, its configuration and its log (``broker.log``) go.
    port, controller_port : int, optional
        The ports to listen on; free ones are chosen when not given.
    properties : mapping, optional
        Kafka broker properties that are added to, or replace, those of
        ``deploy/kafka/server.properties``.
    heap : str
        Java's heap limit.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        controller_port: int | None = None,
        properties: Mapping[str, str] | None = None,
        heap: str = "512m",
    ) -> None:
        self.folder = Path(folder)
        self.port = port or free_port()
        self.controller_port = controller_port or free_port(avoid=self.port)
        self.properties = dict(properties or {})
        self.heap = heap
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The address that clients are given."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What the broker wrote, over all its starts."""
        return self.folder / "broker.log"

    @property
    def pid(self) -> int | None:
        """The process id, None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start it, and return once it answers.

        Parameters
        ----------
        timeout : float
            Seconds to wait for the first answer.

        Raises
        ------
        BrokerUnavailable
            If Java or Kafka's jars cannot be had.
        BrokerFailed
            If it exits or does not answer in time.
        """
        if self.pid is not None:
            return
        java = self._java()
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self._write_configuration()
        if not (self._data / "meta.properties").exists():
            self._format(java, configuration)
        elif not (self._data / ".kafka_cleanshutdown").exists():
            self._bury_the_crashed(java, configuration)
        self._process = self._run(java, configuration)
        try:
            self._wait_until_it_answers(time.monotonic() + timeout)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Shut it down in order, or kill it where that takes more than ``timeout`` seconds."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wait(self) -> int:
        """Wait until the process exits by itself; return its exit status."""
        if self._process is None:
            raise BrokerFailed("the broker was not started")
        return self._process.wait()

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _data(self) -> Path:
        return self.folder.resolve() / "data"

    def _java(self) -> list[str]:
        """The command that runs one of Kafka's classes."""
        java = [str(find_java()), f"-Xmx{self.heap}", "-XX:+UseSerialGC"]
        java += [f"-Dlog4j2.configurationFile={DEPLOY / 'log4j2.yaml'}"]
        return [*java, "-cp", f"{fetch_jars()}/*"]

    def _run(self, java: list[str], configuration: Path) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [*java, "kafka.Kafka", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C reaches us first, and we stop it in order
            )

    def _bury_the_crashed(self, java: list[str], configuration: Path) -> None:
        """Let the controller alone find that the broker is dead, before it is started again.

        A node that starts after a crash still believes that it leads its partitions. Kafka 4.3.1
        then sends the commit markers that the crash kept it from writing to itself, before it
        listens, and drops them ("partitions are likely deleted already") once its controller
        fences the crashed broker: a transaction whose commit was acknowledged hangs, and with it
        every ``read_committed`` reader of its partitions. Where there are replicas another broker
        would lead by then; a single node has to be declared dead first.
        """
        own = ("listeners=", "advertised.listeners=", "inter.broker.listener.name=")
        lines = configuration.read_text().splitlines()
        listener = f"listeners=CONTROLLER://127.0.0.1:{self.controller_port}"
        lines = [line for line in lines if not line.startswith(own)]
        lines += ["process.roles=controller", listener, f"advertised.{listener}"]
        lines += ["broker.session.timeout.ms=1000", "broker.heartbeat.interval.ms=500"]
        alone = self.folder / "controller.properties"
        alone.write_text("\n".join(lines) + "\n")
        said_before = self.log.stat().st_size
        process = self._run([*java, "-Dskydelta.controller.level=info"], alone)
        try:
            deadline = time.monotonic() + FENCE_TIMEOUT
            while process.poll() is None and time.monotonic() < deadline:
                with open(self.log, "rb") as log:
                    log.seek(said_before)
                    if FENCED in log.read():
                        return
                time.sleep(0.1)
            if process.poll() is not None:
                raise BrokerFailed(
                    f"Kafka's controller exited with {process.poll()}; its log {self.log} ends\n"
                    f"{self.log_tail()}"
                )
            # It had not come so far as to lead anything: then there is nothing to bury.
            logger.warning("the controller of %s knows no live broker", self.folder)
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT)

    def _write_configuration(self) -> Path:
        text = (DEPLOY / "server.properties").read_text()
        for name, value in {
            "{port}": str(self.port),
            "{controller_port}": str(self.controller_port),
            "{data}": str(self._data),
        }.items():
            text = text.replace(name, value)
        # Java's properties: the last line that names a key wins.
        text += "".join(f"{name}={value}\n" for name, value in self.properties.items())
        path = self.folder / "server.properties"
        path.write_text(text)
        return path

    def _format(self, java: list[str], configuration: Path) -> None:
        # A Kafka uuid is 16 bytes in url-safe base64; a leading dash would read as an option.
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        command = [*java, "kafka.tools.StorageTool", "format", "--standalone"]
        with open(self.log, "ab") as log:
            status = subprocess.run(
                [*command, "-t", cluster, "-c", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                timeout=START_TIMEOUT,
            ).returncode
        if status != 0:
            raise BrokerFailed(
                f"Kafka's StorageTool exited with {status}; its log {self.log} ends\n"
                f"{self.log_tail()}"
            )

    def _wait_until_it_answers(self, deadline: float) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        while True:
            assert self._process is not None
            status = self._process.poll()
            if status is not None:
                raise BrokerFailed(
                    f"Kafka exited with {status} while starting; its log {self.log} ends\n"
                    f"{self.log_tail()}"
                )
            with contextlib.suppress(KafkaException):
                admin.list_topics(timeout=1)
                return
            if time.monotonic() > deadline:
                raise BrokerFailed(
                    f"Kafka does not answer at {self.bootstrap}; its log {self.log} ends\n"
                    f"{self.log_tail()}"
                )
            time.sleep(0.1)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Run a broker in the foreground until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="make broker", description=main.__doc__)
    parser.add_argument("--port", type=int, help="port to listen on (9092, else a free one)")
    parser.add_argument("--data", type=Path, help="folder for its data, kept (a temporary one)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a broker property"
    )
    options = parser.parse_args(arguments)
    malformed = [pair for pair in options.set if "=" not in pair]
    if malformed:
        parser.error(f"--set needs KEY=VALUE, not {malformed[0]!r}")
    if options.port is not None and not port_is_free(options.port):
        parser.error(f"port {options.port} is taken: choose another with --port")
    port = options.port or (9092 if port_is_free(9092) else None)
    signal.signal(signal.SIGTERM, _leave)
    # a shell starts what runs in the background deaf to Ctrl-C; who sends it one means it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        folder = options.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        properties = dict(pair.split("=", 1) for pair in options.set)
        broker = LocalBroker(folder, port, properties=properties)
        sys.stdout.write("starting Apache Kafka ...\n")
        sys.stdout.flush()
        try:
            stack.enter_context(broker)
            sys.stdout.write(
                f"Apache Kafka {kafka_version(fetch_jars())} is ready at {broker.bootstrap}\n"
                f"  the tests use it after  "
                f"export SKYDELTA_TEST_BOOTSTRAP={shlex.quote(broker.bootstrap)}\n"
                f"  data, configuration, log: {folder}\n"
                "  Ctrl-C stops it\n"
            )
            sys.stdout.flush()
            status = broker.wait()
        except KeyboardInterrupt:
            sys.stdout.write("\nstopping\n")
            return 0
        except (BrokerUnavailable, BrokerFailed) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        sys.stderr.write(f"Kafka exited with {status}; its log ends\n{broker.log_tail()}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
