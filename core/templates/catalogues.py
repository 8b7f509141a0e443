"""Reference stars of a field from VizieR, for masking what a template has saturated."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
from astropy.coordinates import SkyCoord
from astropy.io.votable import parse_single_table
from astropy.io.votable.exceptions import VOWarning
from astropy.table import Table
from astropy.wcs import WCS

from core.deadline import Deadline
from core.errors import UnexpectedAnswer, UnusableInput
from core.quiet import quiet
from core.templates.cache import CacheKey, FileCache, NoCache
from core.templates.fetching.fetcher import Content, Fetcher, FetchPolicy
from core.templates.index import Frame

VIZIER = "https://vizier.cds.unistra.fr/viz-bin/votable"


@dataclass(frozen=True)
class Catalogue:
    """A catalogue of VizieR.

    Attributes
    ----------
    table : str
        As VizieR names it.
    ra, dec : str
        Columns of the positions, degrees.
    magnitudes : mapping of str to str
        Column of the magnitude of each band.
    """

    table: str
    ra: str
    dec: str
    magnitudes: Mapping[str, str]

    def columns(self, band: str) -> tuple[str, ...]:
        """Return position, magnitude and its error, in that order.

        Raises
        ------
        core.errors.UnusableInput
            If the catalogue does not have the band.
        """
        if band not in self.magnitudes:
            raise UnusableInput(
                f"{self.table} has no band {band!r}; it has {', '.join(self.magnitudes)}"
            )
        return self.ra, self.dec, self.magnitudes[band], f"e_{self.magnitudes[band]}"


CATALOGUES: Mapping[str, Catalogue] = {
    "ps1": Catalogue(
        "II/349/ps1", "RAJ2000", "DEJ2000", {band: f"{band}mag" for band in "grizy"}
    ),
    "gaiadr3": Catalogue(
        "I/355/gaiadr3", "RA_ICRS", "DE_ICRS", {"G": "Gmag", "BP": "BPmag", "RP": "RPmag"}
    ),
    "skymapper": Catalogue(
        "II/379/smssdr4", "RAICRS", "DEICRS", {band: f"{band}PSF" for band in "uvgriz"}
    ),
    "apass": Catalogue(
        "II/336/apass9", "RAJ2000", "DEJ2000",
        {"B": "Bmag", "V": "Vmag", "g": "g'mag", "r": "r'mag", "i": "i'mag"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CatalogueSource:
    """Where catalogues are asked for.

    Attributes
    ----------
    fetcher : Fetcher
        Must be allowed to speak to the endpoint.
    cache : TemplateCache or NoCache
        Where answers are kept.
    endpoint : str
        A VizieR that answers with a VOTable.
    max_rows : int
        The brightest so many are wanted at most.
    """

    fetcher: Fetcher
    cache: FileCache
    endpoint: str = VIZIER
    max_rows: int = 100_000

    @classmethod
    def public(cls) -> CatalogueSource:
        """Return VizieR itself, nothing kept."""
        return cls(Fetcher(FetchPolicy(("vizier.cds.unistra.fr",))), NoCache())


def shared_circle(frame: Frame) -> tuple[float, float, float]:
    """Return a circle around a frame that frames some arcminutes away have, too.

    Exposures of one field do not point exactly alike; so their stars are asked for once. The
    centre is moved to a lattice whose steps are between a quarter and a half of the radius.

    Returns
    -------
    ra, dec, radius : float
        Degrees; the circle holds the frame.
    """
    (ra, dec), radius = frame.position, frame.radius
    step = 2.0 ** math.ceil(math.log2(radius / 4))
    dec = min(90.0, max(-90.0, round(dec / step) * step))
    number = max(1, round(360 * math.cos(math.radians(dec)) / step))
    ra = round(ra / 360 * number) / number * 360 % 360
    # Half a step in declination and, with the rounding of their number, hardly more in the other.
    return ra, dec, min(180.0, math.ceil(radius / step) * step + step)


def reference_stars(
    name: str,
    wcs: WCS,
    shape: tuple[int, int],
    band: str = "r",
    *,
    brighter_than: float | None = None,
    source: CatalogueSource | None = None,
    deadline: Deadline | None = None,
) -> Table:
    """Return the stars of a catalogue around a frame, as `mask_template` takes them.

    They are those of a circle that neighbouring frames share (`shared_circle`), so that one answer
    serves for all exposures of a field.

    Parameters
    ----------
    name : str
        One of `CATALOGUES`.
    wcs : astropy.wcs.WCS
        Celestial.
    shape : tuple of int
        (ny, nx) of the frame.
    band : str
        Whose magnitudes are wanted.
    brighter_than : float or None
        Only stars brighter than this magnitude.
    source : CatalogueSource or None
        VizieR itself if None.
    deadline : Deadline or None
        By when the answer is wanted.

    Returns
    -------
    Table
        Columns ``RAJ2000``, ``DEJ2000`` (degrees), ``<band>mag``, ``e_<band>mag``; magnitudes that
        the catalogue does not give are masked. Empty where there is no star.

    Raises
    ------
    core.errors.UnusableInput
        If there is no such catalogue, or it does not have the band.
    core.errors.ArchiveUnavailable
        If VizieR does not answer, or with something else.
    """
    if name not in CATALOGUES:
        raise UnusableInput(f"no catalogue {name!r}; there are {', '.join(CATALOGUES)}")
    catalogue = CATALOGUES[name]
    columns = catalogue.columns(band)
    source = source or CatalogueSource.public()
    query = _query(catalogue, columns, Frame.of(wcs, shape), brighter_than, source.max_rows)

    def make(path: Path) -> Mapping[str, str]:
        answer = source.fetcher.get(
            source.endpoint,
            params=query,
            deadline=deadline or Deadline.never(),
            expect=Content.TEXT,
        )
        _parsed(answer.content, columns, answer.url)  # what is not a table is not to be kept
        path.write_bytes(answer.content)
        return {"url": answer.url}

    identity = (source.endpoint, *(f"{key}={query[key]}" for key in sorted(query)))
    with source.cache.entry(
        CacheKey("catalogue", identity, ".xml"), make, deadline=deadline
    ) as file:
        table = _parsed(file.path.read_bytes(), columns, source.endpoint)
    table.rename_columns(columns, ("RAJ2000", "DEJ2000", f"{band}mag", f"e_{band}mag"))
    return table


def _query(
    catalogue: Catalogue,
    columns: tuple[str, ...],
    frame: Frame,
    brighter_than: float | None,
    rows: int,
) -> dict[str, str]:
    """Let astroquery put the query into VizieR's words."""
    from astroquery.vizier import Vizier  # not for those who never ask

    magnitude = columns[2]
    ra, dec, radius = shared_circle(frame)
    limits = {} if brighter_than is None else {magnitude: f"<{brighter_than:g}"}
    vizier = Vizier(columns=list(columns), column_filters=limits, row_limit=rows)
    payload = vizier.query_region_async(
        SkyCoord(ra, dec, unit="deg"),
        radius=radius * u.deg,
        catalog=catalogue.table,
        get_query_payload=True,
    )
    query = dict(line.split("=", 1) for line in payload.splitlines() if line)
    return {**query, "-sort": magnitude}


def _parsed(content: bytes, columns: tuple[str, ...], url: str) -> Table:
    """Return the columns of a VOTable; a table without rows, or none, is an empty one."""
    try:
        with quiet():
            table = parse_single_table(io.BytesIO(content), verify="ignore").to_table(
                use_names_over_ids=True
            )
    except IndexError:  # no table: VizieR has nothing there
        return Table({name: [] for name in columns}, masked=True)
    except (ValueError, VOWarning, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnexpectedAnswer(f"{url}: is not a VOTable: {reason}") from None
    missing = [name for name in columns if name not in table.colnames]
    if missing:
        raise UnexpectedAnswer(f"{url}: the table has no column {', '.join(missing)}")
    return Table(table[list(columns)], masked=True)
