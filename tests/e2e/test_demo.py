"""`skydelta demo` as a person runs it: a process of its own, looked at from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import fastavro
import matplotlib.image
import pytest

DEMO = [sys.executable, "-m", "service.cli", "demo", "--exposures", "2", "--size", "512"]
# Seed 2 is a sky without a bright pair of stars in a corner; what a demonstration must reach is
# tested, not what one sky makes of it.
QUICK = [*DEMO, "--seed", "2", "--cadence", "0.5", "--timeout", "240"]


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("demo") / "out"
    environment = os.environ | {
        # Must not lead the demonstration to somebody's broker.
        "SKYDELTA_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    }
    run = subprocess.run(
        [*QUICK, "--out", str(out)], capture_output=True, text=True, timeout=300, env=environment
    )
    return out, run


def test_demo_passes(passed: tuple[Path, subprocess.CompletedProcess]) -> None:
    out, run = passed
    assert run.returncode == 0, run.stdout + run.stderr + _log(out)
    assert re.search(
        r"^sim_0002_001: published, \d+ candidates, recovered \d+/\d+", run.stdout, re.M
    )
    assert "\x1b[" not in run.stdout  # no colours where nobody sees them
    for name in ("contact-sheet.png", "report.html", "alerts", "service.log"):
        assert str(out / name) in run.stdout


def test_demo_figures_agree_with_packets_and_status(
    passed: tuple[Path, subprocess.CompletedProcess],
) -> None:
    out, _ = passed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["passed"] is True
    assert summary["exposures"] == summary["exposures_published"] == 2
    assert summary["injected_bright"] >= 5
    assert summary["recovered_bright"] >= 0.9 * summary["injected_bright"]
    assert summary["false"] <= 4
    statuses = [
        json.loads(line) for line in (out / "exposure-status.jsonl").read_text().split("\n") if line
    ]
    assert sorted(s["exposure_id"] for s in statuses) == ["sim_0002_001", "sim_0002_002"]
    packets = sorted((out / "alerts").glob("*.avro"))
    assert len(packets) == summary["alerts"] == sum(s["alerts"] for s in statuses)
    assert len(packets) == (
        summary["recovered_transients"] + summary["recovered_variables"] + summary["false"]
    )
    for path in packets:
        with path.open("rb") as stream:
            (record,) = fastavro.reader(stream)
        assert str(record["candid"]) == path.stem
        assert record["skydelta"]["exposure_id"] in {"sim_0002_001", "sim_0002_002"}


def test_demo_pictures_and_report_stand_alone(
    passed: tuple[Path, subprocess.CompletedProcess],
) -> None:
    out, _ = passed
    sheet = matplotlib.image.imread(out / "contact-sheet.png")
    assert sheet.shape[0] > 300
    assert sheet.shape[1] > 1500
    assert sheet[..., :3].std() > 0.05
    report = (out / "report.html").read_text()
    packets = list((out / "alerts").glob("*.avro"))
    assert report.count('<img src="data:image/png;base64,') == len(packets)
    assert all(path.stem in report for path in packets)
    assert not re.search(r"(?:src|href)=\"(?!data:)", report)
    assert "passed" in report


def test_demo_leaves_no_service_behind(passed: tuple[Path, subprocess.CompletedProcess]) -> None:
    out, _ = passed
    assert not _listens(_port(out))
    assert "stopped" in _log(out)


def test_demo_fails_when_too_little_is_recovered(tmp_path: Path) -> None:
    run = subprocess.run(
        [*QUICK, "--threshold", "60", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(r"failed: only \d+ of \d+ transients above 10 sigma came out", run.stdout)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["passed"] is False
    assert "failed" in (tmp_path / "out" / "report.html").read_text()


def test_interrupt_stops_the_service_too(tmp_path: Path) -> None:
    with _started(tmp_path / "out") as demo:
        _wait_for(lambda: _listens(_port(tmp_path / "out")))
        demo.send_signal(signal.SIGINT)
        _, stderr = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert stderr.splitlines() == ["skydelta demo: interrupted"]
    assert not _listens(_port(tmp_path / "out"))


def test_demo_says_when_the_service_dies(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _started(out) as demo:
        _wait_for(lambda: _listens(_port(out)))
        (service,) = _children(demo.pid)
        os.kill(service, signal.SIGKILL)
        _, stderr = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert stderr.splitlines() == [
        f"skydelta demo: the service ended with exit code -9; see {out / 'service.log'}"
    ]


def test_demo_does_not_touch_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("the only copy")
    run = subprocess.run(
        [*QUICK, "--out", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert "choose another --out" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "arguments", [["--exposures", "0"], ["--size", "10"], ["--cadence", "nan"], ["--seed", "x"]]
)
def test_demo_refuses_wrong_use(arguments: list[str], tmp_path: Path) -> None:
    run = subprocess.run(
        [*DEMO, *arguments, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert arguments[0] in run.stderr
    assert not (tmp_path / "out").exists()


def _started(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*QUICK, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _port(out: Path) -> int | None:
    try:
        return int(tomllib.loads((out / "service.toml").read_text())["web"]["port"])
    except (FileNotFoundError, KeyError):
        return None


def _listens(port: int | None) -> bool:
    if port is None:
        return False
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited for two minutes"
        time.sleep(0.1)


def _log(out: Path) -> str:
    path = out / "service.log"
    return path.read_text() if path.exists() else "no service log"
