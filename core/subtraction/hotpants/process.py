"""Finding and running an external program: no shell, a deadline, its messages kept."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from core.errors import SubtractionFailed

log = logging.getLogger(__name__)

Report = Callable[[str], object]
LAST_LINES = 6
KEPT_LINES = 20_000


def find_program(name: str) -> str:
    """Return the full path of the user's HOTPANTS.

    Parameters
    ----------
    name : str
        A name to look up on ``PATH``, or a path.

    Raises
    ------
    core.errors.SubtractionFailed
        One sentence that says that it is not installed and what to do.
    """
    found = shutil.which(os.path.expanduser(name))
    if found is None:
        where = "there" if os.path.dirname(name) else "on PATH"
        raise SubtractionFailed(
            f"HOTPANTS is not installed: no program {name!r} was found {where}; install it "
            "(https://github.com/acbecker/hotpants) or name its executable"
        )
    return os.path.abspath(found)


def run_program(
    arguments: Sequence[str],
    folder: Path,
    deadline: float,
    report: Report | None = None,
    started_group: Callable[[int], object] | None = None,
) -> list[str]:
    """Run HOTPANTS in a folder and return its messages.

    It gets a process group of its own, which is killed as a whole when the deadline has passed or
    when anything interrupts the wait, so that nothing is left behind.

    Parameters
    ----------
    arguments : sequence of str
        The program and its arguments.
    folder : Path
        Its working directory.
    deadline : float
        Seconds.
    report : callable, optional
        Handed every line of its messages as it comes; they are logged at DEBUG in any case.
    started_group : callable, optional
        Handed the process group's number once it runs.

    Returns
    -------
    list of str
        Its messages, output and errors in the order they were written.

    Raises
    ------
    core.errors.SubtractionFailed
        If it cannot be started, is late, ends with an error or by a signal; with its last words.
    """
    log.debug("running %s in %s", " ".join(arguments), folder)
    try:
        process = subprocess.Popen(
            list(arguments),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise SubtractionFailed(f"HOTPANTS cannot be started: {error}") from error
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill_group(process)

    timer = threading.Timer(deadline, stop)
    timer.daemon = True
    started = time.perf_counter()
    messages: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        timer.start()
        if started_group is not None:
            started_group(process.pid)
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", errors="replace").rstrip()
            messages.append(line)
            log.debug("hotpants: %s", line)
            if report is not None:
                report(line)
        status = process.wait()
    finally:
        timer.cancel()
        _kill_group(process)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    lines = list(messages)
    if late.is_set():
        raise SubtractionFailed(
            f"HOTPANTS was stopped after {time.perf_counter() - started:.1f} s, its deadline of "
            f"{deadline:g} s having passed; its last words: {last_words(lines)}"
        )
    if status < 0:
        name = _signal_name(-status)
        raise SubtractionFailed(
            f"HOTPANTS was ended by {name}; its last words: {last_words(lines)}"
        )
    if status > 0:
        raise SubtractionFailed(
            f"HOTPANTS ended with status {status}; its last words: {last_words(lines)}"
        )
    return lines


def last_words(lines: Sequence[str]) -> str:
    """Return the last messages that say anything, as one line."""
    said = [line.strip() for line in lines if line.strip()]
    return " / ".join(said[-LAST_LINES:]) if said else "(none)"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The group outlives its leader while anything that it started is left, and the number cannot
    # be given to another process before that.
    if process.returncode is None or _group_exists(process.pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
