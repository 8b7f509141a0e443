"""Tidying up after a process that cannot do it itself, because it was killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import TracebackType

# Run in a process of its own. Its input ends when the process that holds the other end does,
# however that came about; a last word of "done" says that nothing is left to tidy.
_WATCH = """
import os, shutil, signal, sys
words = sys.stdin.read().split()
if words[-1:] != ["done"]:
    for group in words:
        try:
            os.killpg(int(group), signal.SIGKILL)
        except (OSError, ValueError):
            pass
    if sys.argv[1]:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class Guard:
    """While it is open: should this process be killed, end a process group, remove a folder.

    A worker past its deadline is ended with a signal that no ``finally`` sees. What it had started
    would go on computing, and its temporary folder would stay.

    Parameters
    ----------
    folder : Path, optional
        Removed with all that is in it; None where the files are to be kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Guard:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH, str(self._folder or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._say("done")
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def watch(self, group: int) -> None:
        """Name a process group that must not outlive this process."""
        self._say(str(group))

    def _say(self, word: str) -> None:
        assert self._process is not None and self._process.stdin is not None  # noqa: PT018
        with contextlib.suppress(OSError):  # the guard itself was ended: no reason to fail
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
