"""Templates out of the cells of a survey: which are needed, fetched, and made one image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from core.bands import canonical_band
from core.celestial import pixel_size
from core.deadline import Deadline
from core.errors import InputUnavailable, NoTemplate, UnusableInput
from core.exposure import TemplateFacts
from core.templates.cache import KeptOnly
from core.templates.cells.cell import Cell, CellFormat, CellImage
from core.templates.cells.grid import covered_by, covered_share, native_grid
from core.templates.cells.loading import CellLoader
from core.templates.cells.sky_places import (
    Places,
    grid_places,
    lattice_places,
    on_image,
    thinned,
)
from core.templates.epochs import Epochs, as_facts
from core.templates.fetching.archive_files import ArchiveFiles
from core.templates.index import Frame
from core.templates.mosaic.mosaicking import mosaic
from core.templates.shared_grids import grid_fingerprint
from core.templates.template import Template, TemplateRequest

BoolArray = npt.NDArray[np.bool_]

_CHECKS = 33  # places along each axis of a frame at which its coverage is checked
_TOLERATED = 0.125  # how much finer than half the exposure's pixels a template may be
_REMEMBERED = 1000  # pointings with missing cells
_ROUNDS = 6  # of asking again where something is not covered


class CellSurvey(Protocol):
    """A survey that is cut into cells."""

    @property
    def name(self) -> str:
        """What the provider is called."""
        ...

    @property
    def endpoint(self) -> str:
        """Address of the archive, without a slash at its end."""
        ...

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells it from other surveys and releases."""
        ...

    @property
    def zero_point(self) -> float:
        """AB magnitude of one unit of the templates made of it."""
        ...

    @property
    def pixel_scale(self) -> float:
        """Arcsec per pixel."""
        ...

    @property
    def cell_size(self) -> float:
        """Degrees from the middle of one cell to that of the next."""
        ...

    def format(self, band: str) -> CellFormat:
        """Return how the cells of a band are stored."""
        ...

    def refusal(self, frame: Frame, band: str | None) -> str | None:
        """Return why the survey cannot have a frame, as far as it is known without asking."""
        ...

    def cells(
        self, places: Places, band: str, files: ArchiveFiles, deadline: Deadline
    ) -> Iterable[Cell]:
        """Return the cells that hold some places; none for a place outside the survey."""
        ...


@dataclass(frozen=True)
class Collected:
    """The cells of a frame.

    Attributes
    ----------
    cells : tuple of CellImage
        At least one.
    missing : tuple of str
        Cells that the archive does not have, or that cannot be read.
    """

    cells: tuple[CellImage, ...]
    missing: tuple[str, ...]


class SurveyTemplates:
    """Templates made of the cells of a survey.

    The cells that an exposure needs are pasted onto the pixel grid of the one that covers most of
    it; those of another projection are interpolated onto it. Where cells overlap they show the
    same exposures, so that their noise is the same.

    Parameters
    ----------
    survey : CellSurvey
    files : ArchiveFiles
        What fetches and keeps.
    max_cells : int
        An exposure that needs more is refused, before anything is fetched.
    workers : int
        Cells that are fetched and read at a time.
    threads : int
        For interpolation.
    """

    def __init__(
        self,
        survey: CellSurvey,
        files: ArchiveFiles,
        *,
        max_cells: int = 64,
        workers: int = 2,
        threads: int = 1,
    ) -> None:
        self.survey = survey
        self.files = files
        self._max_cells = max_cells
        self._loader = CellLoader(survey.name, files, workers)
        self._threads = threads
        self._incomplete: dict[tuple[str, ...], tuple[str, ...]] = {}

    @property
    def name(self) -> str:
        """What the provider is called in status records and packets."""
        return self.survey.name

    def find(self, request: TemplateRequest) -> Template:
        """Return a mosaic around the exposure, in the survey's own pixels.

        Those are binned first to between about half the size of the exposure's and all of it, so
        that a template has at most five times as many pixels as the exposure.

        Raises
        ------
        core.errors.NoTemplate
            If the survey has too little of the exposure, or not its band.
        core.errors.ArchiveUnavailable
            If the archive does not answer.
        """
        frame, band, bins = self._understood(request)
        deadline = request.deadline or Deadline.never()
        found = self.collect(frame, band, deadline, bins=bins, keep_bits=False)
        place = self._place(frame, band, bins)
        if found.missing:
            if len(self._incomplete) >= _REMEMBERED:
                self._incomplete.clear()
            self._incomplete[place] = tuple(sorted(found.missing))
        else:
            self._incomplete.pop(place, None)
        wcs, shape = native_grid(found.cells, frame)
        made = mosaic(
            [cell.image for cell in found.cells],
            wcs,
            shape,
            zero_point=self.survey.zero_point,
            shared_noise=True,
            threads=self._threads,
        )
        overlap = covered_share(made.image.mask, wcs, frame)
        if overlap < request.min_overlap:
            raise NoTemplate(
                f"{self.name}: covers only {100 * overlap:.0f} % of the exposure, "
                f"{100 * request.min_overlap:.0f} % are needed; "
                f"{_counted(len(found.missing), 'cell')} missing"
            )
        facts = TemplateFacts(
            provider=self.name,
            template_id=f"{band} {made.image.name}",
            band=band,
            zero_point=self.survey.zero_point,
            overlap=overlap,
            n_frames=int(np.median([cell.n_frames for cell in found.cells])),
            **as_facts(Epochs.spanning(cell.epochs for cell in found.cells)),
        )
        image = replace(made.image, facts=replace(made.image.facts, band=band))
        return Template(
            image,
            facts,
            sources=made.sources,
            origin=made.origin,
            identity=self._identity(frame, band, bins),
        )

    def identify(self, request: TemplateRequest) -> tuple[str, ...]:
        """Return the identity of the template that is expected, without asking the archive.

        A template in which cells are missing is another one every day, so that they are looked for
        again.

        Raises
        ------
        core.errors.NoTemplate
            If it is known without asking that the survey has none.
        """
        frame, band, bins = self._understood(request)
        refusal = self._refusal(frame, band)
        if refusal:
            raise NoTemplate(refusal)
        return self._identity(frame, band, bins)

    def is_kept(self, request: TemplateRequest) -> bool:
        """Return whether nothing is to be fetched for a template; see `Keeping`.

        Raises
        ------
        core.errors.NoTemplate
            If it is known without asking that the survey has none.
        """
        frame, band, bins = self._understood(request)
        refusal = self._refusal(frame, band)
        if refusal:
            raise NoTemplate(refusal)
        files = replace(self.files, cache=KeptOnly(self.files.cache))
        loader = replace(self._loader, files=files)
        layout, never = self.survey.format(band), Deadline.never()
        checks = grid_places(frame, _CHECKS)

        def look_at(cells: list[Cell]) -> BoolArray:
            covered = np.zeros(checks[0].shape, dtype=bool)
            for cell in cells:
                place = loader.footprint(cell, layout, checks, bins, never)
                if place is not None:
                    covered |= on_image(*place, *checks)
            return covered

        try:
            covered, _ = self._go_round(frame, band, files, never, look_at)
        except (InputUnavailable, UnusableInput):
            return False
        if not covered.any():
            raise NoTemplate(f"{self._where(frame, band)}: no cell is there")
        return bool(covered.all())

    def collect(
        self,
        frame: Frame,
        band: str,
        deadline: Deadline,
        *,
        bins: int = 1,
        keep_bits: bool = True,
    ) -> Collected:
        """Return all cells that lie on a frame, cut to it.

        Parameters
        ----------
        frame : Frame
        band : str
            As the survey names it.
        deadline : Deadline
        bins : int
            Pixels of each axis that become one. Of binned cells only the binned pixels are kept.
        keep_bits : bool
            Keep the survey's own masks too.

        Raises
        ------
        core.errors.NoTemplate
            If there are none.
        core.errors.ArchiveUnavailable
            If the archive does not answer.
        """
        refusal = self._refusal(frame, band)
        if refusal:
            raise NoTemplate(refusal)
        where = self._where(frame, band)
        checks = grid_places(frame, _CHECKS)
        if checks[0].size == 0:
            raise NoTemplate(f"{where}: the exposure's WCS puts none of it on the sky")
        layout = self.survey.format(band)
        read: list[CellImage] = []
        missing: list[str] = []

        def load(cells: list[Cell]) -> BoolArray:
            images, lost = self._loader.load(cells, layout, checks, bins, deadline, keep_bits)
            read.extend(images)
            missing.extend(lost)
            return covered_by(images, *checks)

        _, known = self._go_round(frame, band, self.files, deadline, load)
        if not read:
            looked = f"{_counted(known, 'cell')} looked at" if known else "no cell is there"
            gone = f", missing: {', '.join(missing[:3])}" if missing else ""
            raise NoTemplate(f"{where}: {looked}{gone}")
        return Collected(tuple(read), tuple(missing))

    def _go_round(
        self,
        frame: Frame,
        band: str,
        files: ArchiveFiles,
        deadline: Deadline,
        take: Callable[[list[Cell]], BoolArray],
    ) -> tuple[BoolArray, int]:
        """Take cells until they cover a frame, or there are no more.

        Parameters
        ----------
        take : callable
            Returns which of ``grid_places(frame, _CHECKS)`` some cells cover.

        Returns
        -------
        covered : ndarray of bool
            Which of these places all of them cover.
        known : int
            How many cells there are.

        Raises
        ------
        core.errors.NoTemplate
            If there are too many.
        """
        checks = grid_places(frame, _CHECKS)
        covered = np.zeros(checks[0].shape, dtype=bool)
        known: set[str] = set()
        places = lattice_places(frame, self.survey.cell_size / 2)
        for _ in range(_ROUNDS):
            cells = {
                cell.name: cell
                for cell in self.survey.cells(places, band, files, deadline)
                if cell.name not in known
            }
            if not cells:
                break
            known |= set(cells)
            if len(known) > self._max_cells:
                raise NoTemplate(f"{self._where(frame, band)}: {self._too_many(len(known))}")
            covered |= take(list(cells.values()))
            if covered.all():
                break
            places = thinned(checks[0][~covered], checks[1][~covered], self.survey.cell_size / 4)
        return covered, len(known)

    def _band(self, band: str | None) -> str:
        if band is None:
            raise NoTemplate(
                f"{self.name}: the exposure's band is not known; state it in the event"
            )
        return canonical_band(band) or band

    def _understood(self, request: TemplateRequest) -> tuple[Frame, str, int]:
        """Return the frame, the band as the survey names it, and how many pixels become one."""
        if request.wcs is None:
            raise NoTemplate(f"{self.name}: the exposure has no WCS; solve its astrometry first")
        frame = Frame.of(request.wcs, request.shape)
        ratio = 3600 * pixel_size(request.wcs) / self.survey.pixel_scale
        bins = max(1, math.ceil(ratio / 2 - _TOLERATED))
        return frame, self._band(request.band), bins

    def _identity(self, frame: Frame, band: str, bins: int) -> tuple[str, ...]:
        # The survey does not change, so that the grid of the exposure determines the pixels.
        identity = (*self.survey.identity, band, f"bins {bins}")
        missing = self._incomplete.get(self._place(frame, band, bins))
        if not missing:
            return identity
        return (*identity, f"day {int(time.time() // 86_400)}", *missing)

    def _place(self, frame: Frame, band: str, bins: int) -> tuple[str, ...]:
        return band, f"bins {bins}", grid_fingerprint(frame.wcs, frame.shape)

    def _refusal(self, frame: Frame, band: str) -> str | None:
        refusal = self.survey.refusal(frame, band) or self._too_large(frame)
        return f"{self._where(frame, band)}: {refusal}" if refusal else None

    def _where(self, frame: Frame, band: str) -> str:
        ra, dec = frame.position
        return f"{self.name}: RA {ra:.4f} Dec {dec:+.4f}, band {band}"

    def _too_large(self, frame: Frame) -> str | None:
        area = pixel_size(frame.wcs) ** 2 * frame.shape[0] * frame.shape[1]
        number = area / self.survey.cell_size**2
        return self._too_many(round(number)) if number > self._max_cells else None

    def _too_many(self, number: int) -> str:
        side = (math.sqrt(self._max_cells) - 1) * self.survey.cell_size
        return (
            f"the exposure needs about {number} cells, more than the limit of {self._max_cells}; "
            f"fields of up to about {side:.2g} deg on a side work; take a HiPS for wider ones"
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
