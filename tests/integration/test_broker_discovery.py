"""Which broker the tests get, and what they say when there is none: pytest run on its own.

Each test lays a small project into a temporary folder (the real conftest and broker code, no
jars) and runs pytest there, with an environment in which only some ways to a broker are open.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

def test_without_a_broker():
    pass

@pytest.mark.kafka
def test_marked():
    pass

def test_that_asks(kafka_bootstrap):
    print("GOT", kafka_bootstrap)
"""


class Project:
    """A folder with the real conftest, three tests, and an environment without any broker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "libs")
        shutil.copytree(REPOSITORY / "tests" / "kafka", folder / "tests" / "kafka", ignore=ignored)
        shutil.copytree(REPOSITORY / "deploy", folder / "deploy", ignore=ignored)
        for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
            shutil.copy(REPOSITORY / name, folder / name)
        (folder / "tests" / "unit").mkdir()
        (folder / "tests" / "unit" / "test_three.py").write_text(TESTS)
        (folder / "empty").mkdir()
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SKYDELTA_")
        }
        self.environment |= {
            "PATH": str(folder / "empty"),  # neither Maven nor Java
            "DOCKER_HOST": "tcp://127.0.0.1:1",  # nobody listens there
            "HOME": str(folder),
        }

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,  # the search for a broker must never hang
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_without_a_broker_one_line_says_how_to_get_one(project: Project) -> None:
    status, output = project.run()
    assert status == 0
    assert "1 passed, 2 skipped" in output
    lines = [line for line in output.splitlines() if line.startswith("NO KAFKA BROKER")]
    assert len(lines) == 1
    assert output.splitlines()[-2] == lines[0]  # the last thing before pytest's closing line
    assert output.count("SKIPPED [2]") == 1
    assert "2 tests skipped" in lines[0]
    assert "no Docker engine answers" in lines[0]
    assert "Maven (mvn) is not installed" in lines[0]
    assert "SKYDELTA_TEST_BOOTSTRAP" in lines[0]
    assert "apt-get install maven" in lines[0]


def test_required_broker_that_is_missing_is_a_failure(project: Project) -> None:
    status, output = project.run(SKYDELTA_REQUIRE_KAFKA="1")
    assert status == 1
    assert "1 passed, 2 errors" in output
    assert "SKYDELTA_REQUIRE_KAFKA is set and there is no Kafka broker" in output
    assert "During handling of the above exception" not in output
    assert project.run(SKYDELTA_REQUIRE_KAFKA="0")[0] == 0


def test_no_word_about_a_broker_that_nobody_needed(project: Project) -> None:
    status, output = project.run("-m", "not kafka")
    assert status == 0
    assert "1 passed, 2 deselected" in output  # the fixture alone makes a test a kafka test
    assert "NO KAFKA BROKER" not in output


def test_given_address_wins(project: Project, kafka_bootstrap: str) -> None:
    status, output = project.run(SKYDELTA_TEST_BOOTSTRAP=kafka_bootstrap)
    assert status == 0
    assert "3 passed" in output
    assert f"GOT {kafka_bootstrap}" in output


def test_given_address_that_does_not_answer_is_a_failure(project: Project) -> None:
    status, output = project.run(SKYDELTA_TEST_BOOTSTRAP="127.0.0.1:1")
    assert status == 1
    assert "1 passed, 2 errors" in output
    assert "SKYDELTA_TEST_BOOTSTRAP=127.0.0.1:1 does not answer" in output


def test_docker_engine_that_never_answers_is_passed_over(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        status, output = project.run(DOCKER_HOST=f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    assert status == 0
    assert "1 passed, 2 skipped" in output
    assert "no Docker engine answers" in output


@pytest.fixture
def broken_engine() -> Iterator[tuple[str, list[str]]]:
    """A Docker engine that is up and cannot start anything; the requests that it got."""
    requests: list[str] = []

    class Engine(BaseHTTPRequestHandler):
        def answer(self) -> None:
            requests.append(f"{self.command} {self.path}")
            body, status = b'{"message": "no space left on device"}', 500
            if self.path.endswith("/_ping"):
                body, status = b"OK", 200
            elif self.path.endswith("/version"):
                body, status = b'{"ApiVersion": "1.50", "Version": "28.0.0"}', 200
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"tcp://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_docker_is_asked_before_maven_and_its_failure_is_told(
    project: Project, broken_engine: tuple[str, list[str]]
) -> None:
    address, requests = broken_engine
    status, output = project.run(DOCKER_HOST=address)
    assert status == 0
    assert any("/images/" in request for request in requests)
    line = next(line for line in output.splitlines() if line.startswith("NO KAFKA BROKER"))
    assert "Docker could not start Kafka" in line
    assert "no space left on device" in line
    assert line.index("Docker") < line.index("Maven")
