"""What the settings allow an event to make the service fetch, and how long and large it may get."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.deadline import Deadline
from core.errors import InputUnavailable, UnusableInput
from service.byte_sizes import shown_bytes
from service.input_addresses import Address, parse_prefix

if TYPE_CHECKING:
    from service.settings import Settings

_PART_OF_DEADLINE = 0.8  # of a worker's: a fetch that takes too long must be told, not killed


@dataclass(frozen=True)
class InputLimits:
    """What may be read.

    Attributes
    ----------
    roots : tuple of Path
        Folders that files may be read from.
    prefixes : tuple of Address
        Folders of servers and buckets that files may be fetched from.
    max_file_bytes : int
        Larger files are refused, unread.
    timeout_seconds : float
        A server that is silent for so long is given up.
    fetch_seconds : float
        All files of an exposure must have come within this.
    download_folder : Path or None
        Where they lie meanwhile; None is the platform's place for temporary files.
    """

    roots: tuple[Path, ...] = ()
    prefixes: tuple[Address, ...] = ()
    max_file_bytes: int = 4 * 10**9
    timeout_seconds: float = 20.0
    fetch_seconds: float = 120.0
    download_folder: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> InputLimits:
        """Take them out of the service's settings."""
        chosen = settings.input
        most = _PART_OF_DEADLINE * settings.workers.deadline_seconds
        return cls(
            roots=chosen.roots,
            prefixes=tuple(parse_prefix(prefix) for prefix in chosen.prefixes),
            max_file_bytes=chosen.max_file_bytes,
            timeout_seconds=chosen.timeout_seconds,
            fetch_seconds=min(chosen.fetch_seconds, most),
            download_folder=chosen.download_folder,
        )


@dataclass(frozen=True)
class FetchTerms:
    """What holds for one fetch."""

    prefixes: tuple[Address, ...]
    max_bytes: int
    timeout_seconds: float
    deadline: Deadline

    def check_size(self, size: int | None, url: str) -> None:
        """Refuse what is larger than a file may be; None is not known."""
        if size is not None and size > self.max_bytes:
            raise UnusableInput(
                f"{url}: more than input.max_file_bytes ({shown_bytes(self.max_bytes)})"
                + ("" if size <= self.max_bytes + (1 << 20) else f": {shown_bytes(size)}")
            )

    def check_time(self, url: str, size: int) -> None:
        """Give up once the deadline has passed."""
        if self.deadline.expired:
            raise InputUnavailable(
                f"{url}: only {size} bytes came within the time that there was; try again"
            )
