"""Pan-STARRS: the stacks of the 3pi survey, cell by cell.

Cells are found through the archive's file-list service ("PS1 Image Cutout Service", section "PS1
image list service"): asked for a place, it answers with a table of the columns ``projcell subcell
ra dec filter mjd type filename shortname badflag``, one row a file, whose ``filename`` is a path on
the same host. A cell is about 6250 pixels of 0.25 arcsec wide, overlaps its neighbours by 480
pixels, and shares its tangent plane with the hundred cells of its projection cell ("PS1 Sky
tessellation patterns"); so the pixels of those fall onto each other.

Of each cell come the stack (asinh-scaled, see `core.asinh`), ``.wt`` (which is the *variance* of
the stack, asinh-scaled with cards of its own) and ``.mask`` (`core.templates.cells.survey_bits`).
Stacks are scaled to a zero point of 25 for one count a second, so that one count of a stack is of
magnitude ``25 + 2.5 log10(EXPTIME)``, EXPTIME being the sum over all its exposures ("PS1 Stack
images"). All pages are at https://outerspace.stsci.edu/display/PANSTARRS.

MJD-OBS of a stack is the mean of its exposures. Their names are in ``INP_nnnn``, and begin with the
night: ``o6521g0191o`` is the exposure 191 of MJD 56521 (as in real stacks).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from astropy.io.fits import Header

from core.deadline import Deadline
from core.errors import NotInArchive, UnexpectedAnswer
from core.fitsfile import card
from core.templates.cells.cell import Cell, CellFormat, stated_epochs
from core.templates.cells.sky_places import Places, grid_places
from core.templates.cells.survey_bits import PANSTARRS
from core.templates.epochs import Epochs
from core.templates.fetching.archive_files import ArchiveFiles
from core.templates.index import Frame

BANDS = "grizy"

_COLUMNS = ("projcell", "subcell", "filter", "type", "filename")
_TYPES = ("stack", "stack.wt", "stack.mask")
# Only such paths become part of a URL; the host is always that of the settings.
_PATH = re.compile(
    r"/(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*\.fits(?:\.fz)?"
)
_INPUT = re.compile(r"o(\d{4})g\d{4}o")  # an exposure, with its night
_NIGHT_ZERO = 50_000  # MJD
_ASKING = 4  # lists that are asked for at a time


@dataclass(frozen=True)
class PanStarrsSurvey:
    """The Pan-STARRS archive.

    Attributes
    ----------
    endpoint : str
        Scheme and host, without a slash at the end.
    southern_limit : float
        Degrees of declination; south of it the survey has nothing.
    """

    endpoint: str = "https://ps1images.stsci.edu"
    southern_limit: float = -31.0
    name: str = "panstarrs"
    zero_point: float = 25.0
    pixel_scale: float = 0.25
    cell_size: float = 0.4

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells it from other surveys and releases."""
        return self.name, self.endpoint

    def format(self, band: str) -> CellFormat:
        """Return how the cells are stored."""
        # Headers lack RADESYS; "PS1 DR2 caveats" says to insert FK5.
        return CellFormat(noise="variance", bits=PANSTARRS, frame="FK5", epochs=stack_epochs)

    def refusal(self, frame: Frame, band: str | None) -> str | None:
        """Return why the survey cannot have a frame, None where it may."""
        if band is None or len(band) != 1 or band not in BANDS:
            return f"Pan-STARRS has the bands {', '.join(BANDS)}, not {band}"
        _, dec = grid_places(frame, 9)
        if dec.size and dec.max() < self.southern_limit:
            return f"south of {self.southern_limit:+g} deg Pan-STARRS has nothing"
        return None

    def cells(
        self, places: Places, band: str, files: ArchiveFiles, deadline: Deadline
    ) -> Iterable[Cell]:
        """Ask the file-list service for the cells at some places.

        All bands are asked for, so that an answer serves for all.
        """
        url = f"{self.endpoint}/cgi-bin/ps1filenames.py"

        def ask(place: tuple[float, float]) -> list[Cell]:
            params = {
                "ra": f"{place[0]:.4f}",
                "dec": f"{place[1]:.4f}",
                "filters": BANDS,
                "type": ",".join(_TYPES),
            }
            try:
                text = files.table(url, params, f"{self.name}-list", deadline, _COLUMNS)
            except NotInArchive:
                return []
            return self._listed(text, band, url)

        wanted = sorted(
            {
                (round(float(ra), 4) % 360, round(float(dec), 4))
                for ra, dec in zip(*places, strict=True)
                if dec > self.southern_limit
            }
        )
        with ThreadPoolExecutor(_ASKING) as pool:
            answers = list(pool.map(ask, wanted))
        return list({cell.name: cell for answer in answers for cell in answer}.values())

    def _listed(self, text: str, band: str, url: str) -> list[Cell]:
        """Return the cells of a list that have all three planes in a band."""
        names, *rows = [line.split() for line in text.splitlines() if line.strip()]
        at = {column: names.index(column) for column in _COLUMNS}
        planes: dict[str, dict[str, str]] = {}
        for row in rows:
            if len(row) < len(names):
                raise UnexpectedAnswer(
                    f"{url}: a row of the list is broken: {' '.join(row)[:80]!r}"
                )
            if row[at["filter"]] != band or row[at["type"]] not in _TYPES:
                continue
            path = row[at["filename"]]
            if not _PATH.fullmatch(path):
                raise UnexpectedAnswer(f"{url}: names {path[:80]!r}, which is no path of a file")
            try:
                numbers = int(row[at["projcell"]]), int(row[at["subcell"]])
            except ValueError as error:
                raise UnexpectedAnswer(f"{url}: names a cell without number") from error
            name = f"skycell.{numbers[0]:04d}.{numbers[1]:03d}"
            planes.setdefault(name, {})[row[at["type"]]] = self.endpoint + path
        return [
            Cell(name, found["stack"], found["stack.wt"], found["stack.mask"])
            for name, found in planes.items()
            if all(kind in found for kind in _TYPES)
        ]


def stack_epochs(header: Header) -> Epochs | None:
    """Return when the exposures of a stack were taken, to the day, from their names.

    The last day counts to its end. Where no names are given it is what MJD-OBS states, the mean.
    """
    names = [str(card(header, keyword)) for keyword in header if keyword.startswith("INP_")]
    nights = [_NIGHT_ZERO + int(found[1]) for name in names if (found := _INPUT.match(name))]
    if not nights:
        return stated_epochs(header)
    return Epochs(float(min(nights)), float(max(nights) + 1))
