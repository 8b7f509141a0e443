"""Fetching and reading the cells of a survey."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from astropy.wcs import WCS

from core.deadline import Deadline
from core.errors import NotInArchive, UnusableInput
from core.templates.cache import CacheKey, Make
from core.templates.cells.binning import binned, read_written_cell, write_cell
from core.templates.cells.cell import (
    Cell,
    CellFormat,
    CellImage,
    box_around,
    footprint,
    read_cell,
    touches,
)
from core.templates.cells.sky_places import Places
from core.templates.fetching.archive_files import ArchiveFiles

logger = logging.getLogger(__name__)

# Cells are fetched side by side and read one after the other, so that no more than one of them is
# whole in memory.
_READING = threading.Lock()

_BINNED_VERSION = "3"  # of how a binned cell is made; part of the key under which it is kept


@dataclass(frozen=True)
class CellLoader:
    """Reads cells, some at a time.

    Attributes
    ----------
    name : str
        Of the survey; kinds of cache entries begin with it.
    files : ArchiveFiles
        What fetches and keeps.
    workers : int
        Cells at a time.
    """

    name: str
    files: ArchiveFiles
    workers: int = 2

    def load(
        self,
        cells: Sequence[Cell],
        layout: CellFormat,
        around: Places,
        bins: int,
        deadline: Deadline,
        keep_bits: bool = True,
    ) -> tuple[list[CellImage], list[str]]:
        """Read several cells.

        Parameters
        ----------
        cells : sequence of Cell
        layout : CellFormat
            How they are stored.
        around : (ra, dec)
            Places on the frame; a cell is cut to them.
        bins : int
            Pixels of each axis that become one. Of binned cells only the binned pixels are kept.
        deadline : Deadline
        keep_bits : bool
            Keep the survey's own masks too.

        Returns
        -------
        images : list of CellImage
            Those that lie on the frame.
        missing : list of str
            Cells that the archive does not have, or that cannot be read.

        Raises
        ------
        core.errors.ArchiveUnavailable
            If the archive does not answer.
        """

        def read(cell: Cell) -> CellImage | str | None:
            try:
                found = self._load(cell, layout, around, bins, deadline)
                return found if keep_bits or found is None else replace(found, bits=None)
            except NotInArchive as error:
                logger.info("%s: %s is missing: %s", self.name, cell.name, error)
            except UnusableInput as error:
                logger.warning("%s: %s cannot be used: %s", self.name, cell.name, error)
            return cell.name

        with ThreadPoolExecutor(self.workers) as pool:
            results = list(pool.map(read, cells))
        images = [result for result in results if isinstance(result, CellImage)]
        return images, [result for result in results if isinstance(result, str)]

    def footprint(
        self, cell: Cell, layout: CellFormat, around: Places, bins: int, deadline: Deadline
    ) -> tuple[WCS, tuple[int, int]] | None:
        """Return where a cell lies, after making sure that all files of it are here.

        Parameters
        ----------
        cell, layout, around, bins, deadline
            As `load`.

        Returns
        -------
        (WCS, (ny, nx)) or None
            None where the archive has no such cell, or it does not lie on the frame.

        Raises
        ------
        core.errors.ExposureError
            What ``files`` raises, or if a header cannot be read.
        """
        kind = f"{self.name}-cell"
        try:
            if bins > 1:
                key = _binned_key(self.name, cell, bins)
                make = self._binning(cell, layout, bins, deadline)
                with self.files.cache.entry(key, make, deadline=deadline) as entry:
                    return footprint(entry.path, cell.name, layout)
            with self.files.fits(cell.image, kind, deadline) as image:
                place = footprint(image, cell.name, layout)
            if box_around(*place, *around) is None:
                return None
            for url in (cell.noise, cell.mask):
                with self.files.fits(url, kind, deadline):
                    pass
        except NotInArchive:
            if cell.otherwise is None:
                return None
        else:
            return place
        return self.footprint(cell.otherwise, layout, around, bins, deadline)

    def _load(
        self, cell: Cell, layout: CellFormat, around: Places, bins: int, deadline: Deadline
    ) -> CellImage | None:
        try:
            if bins == 1:
                return self._load_native(cell, layout, around, deadline)
            return self._load_binned(cell, layout, around, bins, deadline)
        except NotInArchive:
            if cell.otherwise is None:
                raise
        return self._load(cell.otherwise, layout, around, bins, deadline)

    def _load_native(
        self, cell: Cell, layout: CellFormat, around: Places, deadline: Deadline
    ) -> CellImage | None:
        kind = f"{self.name}-cell"
        with ExitStack() as stack:
            image = stack.enter_context(self.files.fits(cell.image, kind, deadline))
            # A list may name a cell that only touches; its other planes need not be fetched.
            with _READING:
                if not touches(image, cell.name, layout, around):
                    return None
            others = [
                stack.enter_context(self.files.fits(url, kind, deadline))
                for url in (cell.noise, cell.mask)
            ]
            with _READING:
                return read_cell((image, others[0], others[1]), cell.name, layout, around)

    def _load_binned(
        self, cell: Cell, layout: CellFormat, around: Places, bins: int, deadline: Deadline
    ) -> CellImage | None:
        key = _binned_key(self.name, cell, bins)
        make = self._binning(cell, layout, bins, deadline)
        with self.files.cache.entry(key, make, deadline=deadline) as entry, _READING:
            return read_written_cell(entry.path, cell.name, layout, around)

    def _binning(self, cell: Cell, layout: CellFormat, bins: int, deadline: Deadline) -> Make:
        """Return what fetches a cell and writes it with fewer pixels."""

        def make(path: Path) -> Mapping[str, str]:
            # Each plane is kept until the cell is made, so that a try that ends at its deadline is
            # gone on with by the next; what stays is the binned cell.
            kind, urls = f"{self.name}-part", (cell.image, cell.noise, cell.mask)
            with ExitStack() as stack:
                planes = [stack.enter_context(self.files.fits(url, kind, deadline)) for url in urls]
                with _READING:
                    whole = read_cell((planes[0], planes[1], planes[2]), cell.name, layout)
                    assert whole is not None  # nothing was cut
                    write_cell(binned(whole, bins, layout), path)
            for url in urls:
                self.files.forget(url, kind, deadline)
            return {"url": cell.image, "bins": str(bins)}

        return make


def _binned_key(survey: str, cell: Cell, bins: int) -> CacheKey:
    return CacheKey(f"{survey}-binned", (_BINNED_VERSION, cell.image, str(bins)))
