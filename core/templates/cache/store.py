"""A folder of files that were made once and are used by many."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from core.deadline import Deadline
from core.errors import ExposureError, NotInArchive
from core.templates.cache.cached_file import CachedFile, Make
from core.templates.cache.eviction import Ledger, Pruned
from core.templates.cache.faults import out_of_space
from core.templates.cache.inventory import (
    CacheEntry,
    CacheStatistics,
    damage_of,
    described,
    entries_of,
    statistics_of,
)
from core.templates.cache.key import CacheKey
from core.templates.cache.layout import Place, Stored
from core.templates.cache.locks import (
    LockTimeout,
    exclusive,
    is_at,
    release,
    remove_unused,
    try_lock,
)
from core.templates.cache.scratch import made_in_scratch
from core.templates.cache.sidecar import DamagedEntry, Sidecar, checksum_of, verify_file
from core.templates.observer import Silent, TemplateObserver

logger = logging.getLogger(__name__)

_DAY = 86_400.0
_FREED = 0.25  # of what the cache holds, when the disk is full


class TemplateCache:
    """Files by what determines their content, made once and kept while there is room.

    Many processes on many hosts may use one folder; what they share is the file system and its
    locks (flock, which network file systems pass on). One makes a file, the others wait for it.
    It gets its name only when it is complete, and its checksum is verified whenever it is handed
    out, so that neither a killed process nor a failing disk can put half a template before anyone:
    what is not sound is made again. (There is no fsync: what a power cut tears, the checksum
    finds.) Files of others in the folder are left alone.

    When the folder cannot be written to or is full the files are made for one use; a warning says
    so once.

    Parameters
    ----------
    folder : path
        Made when it is first needed.
    max_bytes : int
        What the folder may hold; the least recently used goes first, what is in use never. A file
        for which there is no room is used and not kept.
    negative_seconds : float
        How long it is believed that an archive has no such file.
    observer : TemplateObserver or None
        Hears of hits, misses, evictions.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int = 50_000_000_000,
        negative_seconds: float = _DAY,
        observer: TemplateObserver | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.negative_seconds = negative_seconds
        self._observer: TemplateObserver = observer or Silent()
        self._warned = False

    @property
    def ledger(self) -> Ledger:
        """What keeps the folder below its size."""
        return Ledger(self.folder, self.max_bytes, self.negative_seconds, self._observer)

    @contextmanager
    def entry(
        self,
        key: CacheKey,
        make: Make,
        *,
        deadline: Deadline | None = None,
        max_age: float = math.inf,
    ) -> Iterator[CachedFile]:
        """Hand out the file of a key, made if it is not there; it is in use while this is open.

        Parameters
        ----------
        key : CacheKey
            What determines the file.
        make : callable
            Given a path, writes the file there. A mapping that it returns (of what JSON knows) is
            kept with it. If it raises `core.errors.NotInArchive`, that is remembered.
        deadline : Deadline or None
            How long to wait while another process makes it; None for as long as it takes.
        max_age : float
            Seconds after which it is made again.

        Yields
        ------
        CachedFile

        Raises
        ------
        core.errors.NotInArchive
            If it is known that there is no such file.
        core.errors.InputUnavailable
            If another process was still making it at the deadline, or no disk has room.
        Exception
            Whatever ``make`` raises.
        """
        with ExitStack() as stack:
            yield self._obtain(key, make, deadline, max_age, stack)

    def peek(self, key: CacheKey, *, max_age: float = math.inf) -> Path | None:
        """Return the file of a key if it is kept, which counts as a use of it.

        It is neither verified nor kept from being removed: that is for whoever uses it, by `entry`.

        Raises
        ------
        core.errors.NotInArchive
            If it is known that there is no such file.
        """
        place = Place.of(self.folder, key)
        try:
            sidecar = _read_sidecar(place.sidecar, key)
        except DamagedEntry:
            return None
        if sidecar is None:
            return None
        if sidecar.hole is not None:
            if self._is_believed(sidecar):
                raise NotInArchive(_hole(sidecar))
            return None
        if sidecar.age > max_age:
            return None
        try:
            if place.data.stat().st_size != sidecar.size:
                return None
        except OSError:
            return None
        _touch(place.data)
        return place.data

    def prune(self, max_bytes: int | None = None, *, deadline: Deadline | None = None) -> Pruned:
        """Clear up what killed processes left, forget old holes, and evict down to ``max_bytes``.

        Without ``max_bytes``, down to the size that the cache was given.
        """
        if not self.folder.is_dir():
            return Pruned()
        limit = self.max_bytes if max_bytes is None else max_bytes
        return self.ledger.prune(limit, deadline)

    def forget(self, key: CacheKey, *, deadline: Deadline | None = None) -> bool:
        """Remove an entry, unless somebody uses it; return whether it is gone."""
        place = Place.of(self.folder, key)
        stored = Stored(key.kind, key.digest, place.data.parent, place.data, place.sidecar, 0, 0.0)
        try:
            return self.ledger.remove(stored, deadline)
        except (OSError, LockTimeout) as error:
            logger.debug("%s is not removed: %s", place.data, error)
            return False

    def entries(self) -> Iterator[CacheEntry]:
        """Describe what is kept, the least recently used first."""
        return entries_of(self.folder)

    @property
    def size(self) -> int:
        """Bytes that are kept, from the ledger: no file is looked for."""
        return self.ledger.total()

    def statistics(self) -> CacheStatistics:
        """Count what is kept, by names and sizes."""
        return statistics_of(self.folder)

    def verify(self, *, deadline: Deadline | None = None) -> Iterator[CacheEntry]:
        """Read everything, remove what is not sound and not in use, and name it."""
        for entry in entries_of(self.folder):
            if damage_of(entry) is None:
                continue
            again = described(entry.stored)  # it may have been replaced while it was read
            damage = None if again is None else damage_of(again)
            if damage is not None:
                self._observer.cache(entry.stored.kind, "corrupt", entry.stored.size)
                self.ledger.remove(entry.stored, deadline)
                yield replace(entry, damage=damage)

    def _obtain(
        self,
        key: CacheKey,
        make: Make,
        deadline: Deadline | None,
        max_age: float,
        stack: ExitStack,
    ) -> CachedFile:
        place = Place.of(self.folder, key)
        try:
            found = self._find(key, place, max_age, stack)
        except DamagedEntry:  # or replaced while we looked at it; seen again under the lock
            found = None
        if found is not None:
            return found
        try:
            making = self._locked(key, place, deadline)
        except OSError as error:
            return self._unkept(key, make, stack, error)
        with making:
            try:
                found = self._find(key, place, max_age, stack)
            except DamagedEntry as error:
                logger.warning("cache entry %s is made again: %s", place.data, error)
                self._observer.cache(key.kind, "corrupt")
            if found is not None:
                return found
            self._observer.cache(key.kind, "miss")
            return self._made(key, place, make, deadline, stack)

    def _find(
        self, key: CacheKey, place: Place, max_age: float, stack: ExitStack
    ) -> CachedFile | None:
        """Return the entry if it is there, young enough and sound.

        Raises
        ------
        DamagedEntry
            If it is not sound.
        NotInArchive
            If it is a hole.
        """
        with ExitStack() as use:
            fd = _opened_for_use(place.data)
            if fd is not None:
                use.callback(release, fd)
            sidecar = _read_sidecar(place.sidecar, key)
            if sidecar is None:
                return None
            if sidecar.hole is not None:
                if not self._is_believed(sidecar):
                    return None
                self._observer.cache(key.kind, "negative_hit", age=sidecar.age)
                raise NotInArchive(_hole(sidecar))
            if sidecar.age > max_age:
                return None
            if fd is None:
                raise DamagedEntry("its file is missing")
            verify_file(fd, sidecar)
            _touch(place.data)
            stack.push(use.pop_all())
        self._observer.cache(key.kind, "hit", sidecar.size, sidecar.age)
        return CachedFile(place.data, sidecar.source, age=sidecar.age)

    def _is_believed(self, hole: Sidecar) -> bool:
        return 0 <= hole.until - time.time() <= self.negative_seconds

    def _locked(self, key: CacheKey, place: Place, deadline: Deadline | None) -> ExitStack:
        """Lock the entry for making; on a full disk once more after evicting."""
        for last in (False, True):
            making = ExitStack()
            try:
                place.lock.parent.mkdir(parents=True, exist_ok=True)
                making.enter_context(
                    exclusive(
                        place.lock,
                        deadline,
                        f"another process making the {key.kind} entry {place.data}",
                        on_wait=lambda: self._observer.cache(key.kind, "wait"),
                    )
                )
            except OSError as error:
                if last or not out_of_space(error) or not self._free_space():
                    raise
            else:
                break
        return making

    def _made(
        self,
        key: CacheKey,
        place: Place,
        make: Make,
        deadline: Deadline | None,
        stack: ExitStack,
    ) -> CachedFile:
        """Make the entry; to be called by whoever holds its lock."""
        for leftover in place.leftovers():
            # Of one who was killed, as there is no other maker now; or in use where it was
            # written, because it could not be kept.
            remove_unused(leftover)
        temporary = place.temporary()
        stack.callback(_discard, temporary)
        try:
            facts = self._written(temporary, make)
        except NotInArchive as error:
            self._keep_hole(key, place, str(error), deadline)
            raise
        except _FolderFault as fault:
            _discard(temporary)
            return self._unkept(key, make, stack, fault.error)
        fd = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(release, fd)
        try_lock(fd, shared=True)
        size, checksum = checksum_of(fd)
        source = dict(facts) if isinstance(facts, Mapping) else {}
        sidecar = Sidecar(key.kind, key.identity, time.time(), size, checksum, source)
        self._keep(sidecar, place, temporary, deadline)
        # What could not be kept is used where it was written, and goes afterwards.
        path = temporary if temporary.exists() else place.data
        return CachedFile(path, source, fresh=True)

    def _written(self, temporary: Path, make: Make) -> object:
        """Let the file be written; on a full disk once more after evicting.

        Raises
        ------
        _FolderFault
            If it cannot be written here.
        """
        for last in (False, True):
            try:
                temporary.touch()  # so that a read-only folder is not taken for the maker's fault
            except OSError as error:
                raise _FolderFault(error) from error
            try:
                return make(temporary)
            except (OSError, ExposureError) as error:
                if not out_of_space(error):
                    raise
                _discard(temporary)
                if last or not self._free_space():
                    raise _FolderFault(error) from error
        raise AssertionError("unreachable")

    def _keep_hole(
        self, key: CacheKey, place: Place, reason: str, deadline: Deadline | None
    ) -> None:
        now = time.time()
        sidecar = Sidecar(
            key.kind, key.identity, now, hole=reason, until=now + self.negative_seconds
        )
        self._keep(sidecar, place, None, deadline)

    def _keep(
        self, sidecar: Sidecar, place: Place, file: Path | None, deadline: Deadline | None
    ) -> None:
        """Put an entry in its place, if there is room for it."""
        description = place.temporary()
        try:
            sidecar.write(description)
            size = sidecar.size + description.stat().st_size
            with self.ledger.make_room(size, deadline) as fits:
                if fits:
                    if file is not None:
                        file.replace(place.data)
                    description.replace(place.sidecar)
            fault = None if fits else f"{self.max_bytes} bytes are not enough for what is in use"
        except (OSError, LockTimeout) as error:
            fault = str(error)
        finally:
            _discard(description)
        if fault is None:
            self._observer.cache(sidecar.kind, "stored", sidecar.size)
        else:
            self._complain(fault)
            self._observer.cache(sidecar.kind, "unkept", sidecar.size)

    def _unkept(
        self, key: CacheKey, make: Make, stack: ExitStack, error: BaseException
    ) -> CachedFile:
        """Make the file outside of the folder, for this use only."""
        self._complain(str(error))
        self._observer.cache(key.kind, "unkept")
        return stack.enter_context(made_in_scratch(key, make))

    def _complain(self, fault: str) -> None:
        if not self._warned:
            logger.warning(
                "the template cache %s cannot keep files (%s); they are made for one use",
                self.folder,
                fault,
            )
        self._warned = True

    def _free_space(self) -> bool:
        """Evict a part of the cache; return whether anything went."""
        try:
            freed = self.ledger.free(_FREED)
        except (OSError, LockTimeout) as error:
            logger.debug("nothing can be evicted: %s", error)
            return False
        return freed.entries > 0


class _FolderFault(Exception):
    """A file cannot be written in the folder of the cache."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _opened_for_use(path: Path) -> int | None:
    """Open a file and lock it against eviction; None if it is not there."""
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # Whoever excludes us is about to remove it, and done at once.
            fcntl.flock(fd, fcntl.LOCK_SH)
            if is_at(fd, path):
                return fd
        except OSError:
            os.close(fd)
            return None
        os.close(fd)


def _read_sidecar(path: Path, key: CacheKey) -> Sidecar | None:
    try:
        sidecar = Sidecar.read(path)
    except FileNotFoundError:
        return None
    if (sidecar.kind, sidecar.identity) != (key.kind, key.identity):
        raise DamagedEntry("it is described as something else")
    return sidecar


def _hole(sidecar: Sidecar) -> str:
    return f"{sidecar.hole} (known for {sidecar.age / 3600:.1f} h)"


def _touch(path: Path) -> None:
    """Note the use; where that may not be written it is as old as it was."""
    with suppress(OSError):
        os.utime(path)


def _discard(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
