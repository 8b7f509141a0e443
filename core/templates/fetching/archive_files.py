"""Files of an archive, fetched once: the way through the cache that all surveys share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.deadline import Deadline
from core.errors import NotInArchive, RequestRefused, UnexpectedAnswer
from core.templates.cache import CacheKey, FileCache
from core.templates.fetching.fetcher import Content, Fetcher


@dataclass(frozen=True)
class ArchiveFiles:
    """What fetches, and what keeps.

    Attributes
    ----------
    fetcher : Fetcher
        Allowed hosts, attempts.
    cache : TemplateCache or NoCache
        Where the files lie.
    """

    fetcher: Fetcher
    cache: FileCache

    @contextmanager
    def fits(self, url: str, kind: str, deadline: Deadline) -> Iterator[Path]:
        """Hand out a FITS file of the archive; it stays while the context is open.

        Raises
        ------
        core.errors.NotInArchive, core.errors.ArchiveUnavailable
            And the others of `Fetcher.download`.
        """

        def make(path: Path) -> Mapping[str, str]:
            self.fetcher.download(url, path, deadline=deadline, expect=Content.FITS)
            return {"url": url}

        with self.cache.entry(_key(url, kind), make, deadline=deadline) as entry:
            yield entry.path

    def forget(self, url: str, kind: str, deadline: Deadline) -> None:
        """Remove a FITS file that nobody needs any more."""
        self.cache.forget(_key(url, kind), deadline=deadline)

    def table(
        self,
        url: str,
        params: Mapping[str, str],
        kind: str,
        deadline: Deadline,
        columns: Collection[str],
    ) -> str:
        """Return a small table as text; one without any row is kept as a hole.

        Parameters
        ----------
        url, params, deadline
            As `Fetcher.get`.
        kind : str
            Of the cache entry.
        columns : collection of str
            Names, separated by blanks, that the first line must hold.

        Raises
        ------
        core.errors.NotInArchive
            If the answer has nothing but its first line.
        core.errors.UnexpectedAnswer
            If it is no such table.
        core.errors.RequestRefused
            If there is no service at that address, which says nothing about the survey.
        """

        def make(path: Path) -> Mapping[str, str]:
            try:
                answer = self.fetcher.get(
                    url, params=params, deadline=deadline, expect=Content.TEXT
                )
            except NotInArchive as error:
                raise RequestRefused(
                    f"{error}: it is the service that lists them; check the address in the settings"
                ) from error
            text = answer.content.decode("utf-8", errors="replace")
            lines = [line for line in text.splitlines() if line.strip()]
            if not lines or not set(columns) <= set(lines[0].split()):
                raise UnexpectedAnswer(f"{answer.url}: is not a list of files: {text[:80]!r}")
            if len(lines) < 2:
                place = ", ".join(f"{name} {value}" for name, value in params.items())
                raise NotInArchive(f"{url}: has nothing at {place}")
            path.write_bytes(answer.content)
            return {"url": answer.url}

        identity = (url, *(f"{name}={params[name]}" for name in sorted(params)))
        key = CacheKey(kind, identity, ".txt")
        with self.cache.entry(key, make, deadline=deadline) as entry:
            return entry.path.read_text(encoding="utf-8", errors="replace")


def _key(url: str, kind: str) -> CacheKey:
    return CacheKey(kind, (url,))
