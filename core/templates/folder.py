"""Where a survey keeps its template files: a folder here, or one elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from core.deadline import Deadline
from core.errors import InputUnavailable
from core.fitsfile import FitsFile, open_fits
from core.templates.siblings import is_fits_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundFile:
    """A file as the listing of a folder shows it.

    Attributes
    ----------
    path : str
        Local path, or URL.
    name : str
        Below the folder.
    stamp : str
        Size and time of change, or whatever else tells that it has changed.
    """

    path: str
    name: str
    stamp: str

    @property
    def identity(self) -> str:
        """What no other file has, nor this one when it has changed."""
        return f"{self.path} {self.stamp}"


class TemplateFolder(Protocol):
    """A folder with FITS files in it and below it.

    Names that begin with a dot are left out, so that a template can be written under such a name
    and then renamed.
    """

    @property
    def shown(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def at_once(self) -> int:
        """How many headers may be read at a time, each in a thread."""
        ...

    def files(self, deadline: Deadline | None) -> list[FoundFile]:
        """List the FITS files.

        Raises
        ------
        core.errors.InputUnavailable
            If that cannot be done now.
        """
        ...

    def headers(self, file: FoundFile, deadline: Deadline | None) -> FitsFile:
        """Read a file's headers, not more of it than necessary.

        Raises
        ------
        core.errors.InputUnavailable, core.errors.UnusableInput
            If it cannot be read, or is no FITS file.
        """
        ...

    def local(
        self, files: Sequence[FoundFile], deadline: Deadline | None
    ) -> AbstractContextManager[list[str]]:
        """Return paths at which the files can be read while the context is open.

        Raises
        ------
        core.errors.InputUnavailable
            If they cannot be had now.
        """
        ...

    def is_kept(self, files: Sequence[FoundFile]) -> bool:
        """Return whether files can be read without fetching them."""
        ...

    def is_same(self, file: FoundFile, path: str) -> bool:
        """Return whether a file is the one that an event names."""
        ...


class LocalFolder:
    """A folder on a disk of this machine, or mounted.

    Parameters
    ----------
    path : path
    """

    at_once = 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.shown = os.fspath(path)

    def files(self, deadline: Deadline | None) -> list[FoundFile]:
        """List the files; see `TemplateFolder`."""
        try:
            os.listdir(self.shown)  # os.walk would pass over a folder that is not there
        except OSError as error:
            raise InputUnavailable(
                f"the template folder {self.shown} cannot be read ({error.strerror}); "
                "is it mounted?"
            ) from error
        return list(self._walk())

    def headers(self, file: FoundFile, deadline: Deadline | None) -> FitsFile:
        """Read the headers; see `TemplateFolder`."""
        # With a limit of 0 no pixels are kept.
        return open_fits(file.path, max_pixels=0, only_primary=True)

    @contextmanager
    def local(self, files: Sequence[FoundFile], deadline: Deadline | None) -> Iterator[list[str]]:
        """Return the paths; see `TemplateFolder`."""
        yield [file.path for file in files]

    def is_kept(self, files: Sequence[FoundFile]) -> bool:
        """Return True; see `TemplateFolder`."""
        return True

    def is_same(self, file: FoundFile, path: str) -> bool:
        """Compare, links followed; see `TemplateFolder`."""
        try:
            return os.path.samefile(file.path, path)
        except OSError:
            return False

    def _walk(self) -> Iterator[FoundFile]:
        for folder, subfolders, names in os.walk(self.shown, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in names:
                if name.startswith(".") or not is_fits_name(name):
                    continue
                path = os.path.join(folder, name)
                try:
                    stat = os.stat(path)
                except FileNotFoundError:  # removed since it was listed
                    continue
                except OSError as error:  # a circle of links, a server that forgot the file ...
                    logger.warning("template %s is left out: %s", path, error.strerror)
                    continue
                stamp = f"{stat.st_mtime_ns} {stat.st_size}"
                yield FoundFile(path, os.path.relpath(path, self.shown), stamp)
