"""The tiles of a HiPS, from a folder or by HTTP through the cache."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from core.deadline import Deadline
from core.errors import InputUnavailable, NoTemplate, NotInArchive, UnusableInput
from core.fitsfile import open_fits
from core.image import FloatImage
from core.templates.cache import CachedFile, CacheKey, FileCache
from core.templates.fetching.fetcher import Content, Fetcher
from core.templates.hips.healpix import nested_number
from core.templates.hips.moc import Moc, read_moc
from core.templates.hips.properties import HipsProperties

logger = logging.getLogger(__name__)

_AT_ONCE = 6  # requests
_RELEASE_SECONDS = 43_200.0  # after which the archive is asked for the release again
_ASKING_AGAIN_SECONDS = 10.0  # at most, where the last answer will do


class HipsTree(Protocol):
    """Where tiles come from."""

    @property
    def place(self) -> str:
        """Folder or URL."""
        ...

    def properties(self, deadline: Deadline) -> HipsProperties:
        """Return what the HiPS says about itself.

        Raises
        ------
        core.errors.NoTemplate
            If there is no HiPS, or none that can give templates.
        core.errors.InputUnavailable
            If it cannot be read now.
        """
        ...

    def coverage(self, properties: HipsProperties, deadline: Deadline) -> Moc | None:
        """Return the part of the sky that the HiPS covers; None where it does not say."""
        ...

    def state(self, order: int, keys: Iterable[int]) -> str:
        """Return what changes when some tiles change, found without reading them."""
        ...

    def has_tile(
        self, properties: HipsProperties, order: int, number: int, deadline: Deadline
    ) -> bool:
        """Return whether there is such a tile; it is fetched if it is not here."""
        ...

    def tile(
        self, properties: HipsProperties, order: int, number: int, deadline: Deadline
    ) -> FloatImage | None:
        """Return a tile as stored, float32 of shape (width, width), NaN without data.

        None where the HiPS has no such tile, or a damaged one.
        """
        ...


class LocalTree:
    """A HiPS in a folder.

    Parameters
    ----------
    folder : path
        That holds ``properties``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def place(self) -> str:
        """See `HipsTree.place`."""
        return str(self.folder)

    def properties(self, deadline: Deadline) -> HipsProperties:
        """See `HipsTree.properties`."""
        path = self.folder / "properties"
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError as error:
            raise NoTemplate(
                f"{self.folder}: is no HiPS, it has no file 'properties'; correct the settings"
            ) from error
        except OSError as error:
            raise InputUnavailable(f"{path}: cannot be read ({error.strerror})") from error
        return HipsProperties.parse(text, str(path))

    def coverage(self, properties: HipsProperties, deadline: Deadline) -> Moc | None:
        """See `HipsTree.coverage`."""
        path = self.folder / "Moc.fits"
        return read_moc(path) if path.exists() else None

    def state(self, order: int, keys: Iterable[int]) -> str:
        """See `HipsTree.state`: sizes and times of the files."""
        stats = []
        for key in keys:
            path = self.folder / tile_path(order, int(nested_number(key, order)))
            with suppress(OSError):
                found = path.stat()
                stats.append(f"{path.name} {found.st_size} {found.st_mtime_ns}")
        return sha256("\n".join(stats).encode()).hexdigest()

    def has_tile(
        self, properties: HipsProperties, order: int, number: int, deadline: Deadline
    ) -> bool:
        """See `HipsTree.has_tile`."""
        return (self.folder / tile_path(order, number)).exists()

    def tile(
        self, properties: HipsProperties, order: int, number: int, deadline: Deadline
    ) -> FloatImage | None:
        """See `HipsTree.tile`."""
        path = self.folder / tile_path(order, number)
        if not path.exists():
            return None
        return _read_or_none(path, properties.tile_width, str(path))


class RemoteTree:
    """A HiPS by HTTP; every tile is kept in the cache, where neighbouring exposures share it.

    Tiles and coverage map are kept under the release that the ``properties`` state. Those are asked
    for again after half a day, so that a new release is seen, and its tiles are fetched; as long as
    they cannot be had, the release that is known is used.

    Parameters
    ----------
    url : str
        Of the folder that holds ``properties``.
    fetcher : Fetcher
        Whose policy allows the host.
    cache : TemplateCache or NoCache
        For tiles, and for ``properties``.
    """

    def __init__(self, url: str, fetcher: Fetcher, cache: FileCache) -> None:
        self._url = url.rstrip("/")
        self._fetcher = fetcher
        self._cache = cache

    @property
    def place(self) -> str:
        """See `HipsTree.place`."""
        return self._url

    def properties(self, deadline: Deadline) -> HipsProperties:
        """See `HipsTree.properties`."""
        url = f"{self._url}/properties"
        key = CacheKey("hips-properties", (self._url,), ".txt")
        before = self._properties_before(key)

        def make(path: Path) -> None:
            if before is None:
                self._fetcher.download(url, path, deadline=deadline, expect=Content.TEXT)
                return
            brief = deadline.shorter(_ASKING_AGAIN_SECONDS)
            try:
                self._fetcher.download(url, path, deadline=brief, expect=Content.TEXT)
                HipsProperties.parse(path.read_text(encoding="utf-8", errors="replace"), url)
            except (NoTemplate, InputUnavailable) as error:
                # What is here of the release that is known is as good as it was.
                logger.warning("whether there is a new release cannot be seen now: %s", error)
                path.write_bytes(before)

        try:
            with self._cache.entry(key, make, deadline=deadline, max_age=_RELEASE_SECONDS) as file:
                text = file.path.read_text(encoding="utf-8", errors="replace")
        except NotInArchive as error:
            raise NoTemplate(
                f"{self._url}: is no HiPS, it has no file 'properties'; correct the settings"
            ) from error
        return HipsProperties.parse(text, url)

    def coverage(self, properties: HipsProperties, deadline: Deadline) -> Moc | None:
        """See `HipsTree.coverage`."""

        def make(path: Path) -> None:
            self._fetcher.download(f"{self._url}/Moc.fits", path, deadline=deadline)

        try:
            key = CacheKey("hips-moc", (self._url, properties.release))
            with self._cache.entry(key, make, deadline=deadline) as file:
                return read_moc(file.path)
        except NotInArchive:
            return None

    def _properties_before(self, key: CacheKey) -> bytes | None:
        """Return the properties that are in the cache, however old, if they make sense."""
        try:
            path = self._cache.peek(key)
            text = None if path is None else path.read_bytes()
            if text is not None:
                HipsProperties.parse(text.decode("utf-8", errors="replace"), key.identity[0])
        except (NoTemplate, OSError):
            return None
        return text

    def state(self, order: int, keys: Iterable[int]) -> str:
        """See `HipsTree.state`: nothing but the release, which is known already."""
        return ""

    def has_tile(
        self, properties: HipsProperties, order: int, number: int, deadline: Deadline
    ) -> bool:
        """See `HipsTree.has_tile`."""
        try:
            with self._tile_file(properties, order, number, deadline):
                return True
        except NotInArchive:
            return False

    def tile(
        self, properties: HipsProperties, order: int, number: int, deadline: Deadline
    ) -> FloatImage | None:
        """See `HipsTree.tile`."""
        url = f"{self._url}/{tile_path(order, number)}"
        try:
            with self._tile_file(properties, order, number, deadline) as file:
                return _read_or_none(file.path, properties.tile_width, url)
        except NotInArchive:
            return None

    def _tile_file(
        self, properties: HipsProperties, order: int, number: int, deadline: Deadline
    ) -> AbstractContextManager[CachedFile]:
        url = f"{self._url}/{tile_path(order, number)}"

        def make(path: Path) -> dict[str, str]:
            self._fetcher.download(url, path, deadline=deadline)
            return {"url": url, "release": properties.release}

        key = CacheKey("hips-tile", (self._url, properties.release, str(order), str(number)))
        return self._cache.entry(key, make, deadline=deadline)


def tile_path(order: int, number: int) -> str:
    """Return where a tile lies below a HiPS; see IVOA HiPS 1.0, section 4.1."""
    return f"Norder{order}/Dir{number // 10_000 * 10_000}/Npix{number}.fits"


def read_tiles(
    tree: HipsTree, properties: HipsProperties, order: int, keys: Iterable[int], deadline: Deadline
) -> dict[int, FloatImage]:
    """Return the tiles that there are, by key (see `core.templates.hips.healpix`), several at once.

    Raises
    ------
    core.errors.InputUnavailable
        If one of them cannot be fetched now: half a template is none.
    """
    wanted = list(keys)

    def one(key: int) -> FloatImage | None:
        return tree.tile(properties, order, int(nested_number(key, order)), deadline)

    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        found = list(pool.map(one, wanted))
    finally:
        pool.shutdown(cancel_futures=True)
    return {key: tile for key, tile in zip(wanted, found, strict=True) if tile is not None}


def _read_or_none(path: Path, width: int, source: str) -> FloatImage | None:
    try:
        return read_tile(path, width, source)
    except UnusableInput as error:
        # The rest of the frame is none the worse for it; its place is masked.
        logger.warning("tile left out: %s", error)
        return None


def read_tile(path: Path, width: int, source: str) -> FloatImage:
    """Return the pixels of a tile.

    Parameters
    ----------
    path : Path
        FITS; the padding at its end may be missing. BSCALE, BZERO and BLANK are applied.
    width : int
        What the properties promise.
    source : str
        For messages.

    Raises
    ------
    UnusableInput
        If it is no image of that size.
    """
    file = open_fits(path, max_pixels=width * width)
    image = next((hdu for hdu in file.hdus if hdu.is_image), None)
    if image is None or image.shape != (width, width):
        size = "no image" if image is None else f"{image.shape[1]} x {image.shape[0]} pixels"
        raise UnusableInput(f"{source}: the tile has {size}, the HiPS promises {width} x {width}")
    values = file.pixels(image).astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return values
