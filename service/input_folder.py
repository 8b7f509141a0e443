"""A folder of a worker's own for what it downloads; what a killed worker leaves is cleared up."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import InputUnavailable
from core.templates.cache.locks import is_at, try_lock

logger = logging.getLogger(__name__)

_PREFIX = "skydelta-inputs-"


@contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that only this user can read, and remove it with all that is in it.

    The folder is locked while it is in use, and the lock goes with the process. So the folders of
    processes that were killed can be told from those in use, and are removed here.

    Parameters
    ----------
    parent : Path or None
        Where it is made; None is the platform's place for temporary files.

    Raises
    ------
    InputUnavailable
        If it cannot be made.
    """
    place = parent or Path(tempfile.gettempdir())
    remove_abandoned(place)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputUnavailable(
            f"no folder for downloads can be made in {place} ({error.strerror}); mend that or set "
            "input.download_folder"
        ) from error
    try:
        # Another process that clears up may hold the lock for a moment, and then has removed it.
        if not try_lock(held) or not is_at(held, folder):
            raise InputUnavailable(f"{folder} was removed by another process; try again")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def remove_abandoned(place: Path) -> int:
    """Remove the folders whose processes are gone; return how many."""
    removed = 0
    for folder in place.glob(f"{_PREFIX}*"):
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or just removed by somebody else
        try:
            if os.fstat(held).st_uid == os.geteuid() and try_lock(held):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        finally:
            os.close(held)
    if removed:
        logger.info("%d folders of downloads that killed workers left were removed", removed)
    return removed
