"""Traps in front of a running service: at the next such moment of a transaction it is struck."""

import os
import signal
from pathlib import Path

SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


def set_trap(folder: Path, moment: str, what: str) -> Path:
    """Lay a trap; it is gone once it was sprung, and `what` happens: ``kill`` or ``freeze``."""
    trap = folder / moment.replace(" ", "-")
    unfinished = trap.with_suffix(".new")
    unfinished.write_text(what)
    unfinished.rename(trap)
    return trap


def spring(folder: Path, moment: str) -> None:
    """Strike this process where a trap lies for the moment."""
    trap = folder / moment.replace(" ", "-")
    try:
        what = trap.read_text()
    except FileNotFoundError:
        return
    trap.unlink()
    os.kill(os.getpid(), SIGNALS[what])
