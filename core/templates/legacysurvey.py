"""The DESI Legacy Imaging Surveys: coadds in bricks.

``<endpoint>/<release>/<region>/coadd/<AAA>/<brick>/legacysurvey-<brick>-<what>.fits.fz``, where
AAA are the whole degrees of the brick's right ascension and ``what`` is ``image-<band>``
(nanomaggies per pixel: one unit is of magnitude 22.5), ``invvar-<band>`` or ``maskbits``. A brick
has 3600 x 3600 pixels of 0.262 arcsec on a tangent plane of its own, and overlaps its neighbours by
165 pixels. https://www.legacysurvey.org/dr10/files, "Image Stacks"; DR9 has the same layout.
DATEOBS1 and DATEOBS2 in the header of an image are when its first and last exposure were taken.

North of Dec 32.375 and north of the Galactic plane lies the survey of BASS and MzLS (``north``),
everything else is DECam's (``south``); DR10 has the south only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from astropy.coordinates import SkyCoord

from core.deadline import Deadline
from core.templates.cells.bricks import Brick, brick_at
from core.templates.cells.cell import Cell, CellFormat
from core.templates.cells.sky_places import Places, grid_places
from core.templates.cells.survey_bits import legacy_survey_bits
from core.templates.fetching.archive_files import ArchiveFiles
from core.templates.index import Frame

NORTH = 32.375  # degrees of declination


@dataclass(frozen=True)
class LegacySurvey:
    """An archive of the Legacy Surveys.

    Attributes
    ----------
    endpoint : str
        Without a slash at the end.
    south, north : str
        Release and region in which a brick is looked for first, on either side; then the other.
        Empty for none.
    bands : str
    limits : (float, float)
        Degrees of declination outside of which neither region has anything.
    """

    endpoint: str = "https://portal.nersc.gov/cfs/cosmo/data/legacysurvey"
    south: str = "dr10/south"
    north: str = "dr9/north"
    bands: str = "griz"
    limits: tuple[float, float] = (-90.0, 85.0)
    name: str = "legacysurvey"
    zero_point: float = 22.5
    pixel_scale: float = 0.262
    cell_size: float = 0.25

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells it from other surveys and releases."""
        return self.name, self.endpoint, self.south, self.north

    def format(self, band: str) -> CellFormat:
        """Return how the bricks are stored."""
        return CellFormat("weight", legacy_survey_bits(band), zero_point=self.zero_point)

    def refusal(self, frame: Frame, band: str | None) -> str | None:
        """Return why the survey cannot have a frame, None where it may."""
        if band is None or len(band) != 1 or band not in self.bands:
            return f"the Legacy Surveys have the bands {', '.join(self.bands)}, not {band}"
        _, dec = grid_places(frame, 9)
        if dec.size and (dec.max() < self.limits[0] or dec.min() > self.limits[1]):
            return f"outside of Dec {self.limits[0]:+g} to {self.limits[1]:+g} there are no bricks"
        return None

    def cells(
        self, places: Places, band: str, files: ArchiveFiles, deadline: Deadline
    ) -> Iterable[Cell]:
        """Return the bricks at some places; whether they exist is seen when they are asked for."""
        bricks = {
            brick.name: brick
            for ra, dec in zip(*places, strict=True)
            if (brick := brick_at(float(ra), float(dec))).dec <= self.limits[1]
        }
        return [self._cell(brick, band) for brick in bricks.values()]

    def _cell(self, brick: Brick, band: str) -> Cell:
        regions = [self.south, self.north]
        if _is_north(brick):
            regions.reverse()
        cell: Cell | None = None
        for region in reversed([region for region in regions if region]):
            folder = f"{self.endpoint}/{region}/coadd/{brick.folder}/{brick.name}"
            stem = f"{folder}/legacysurvey-{brick.name}"
            cell = Cell(
                brick.name,
                f"{stem}-image-{band}.fits.fz",
                f"{stem}-invvar-{band}.fits.fz",
                f"{stem}-maskbits.fits.fz",
                otherwise=cell,
            )
        if cell is None:
            raise ValueError("neither a northern nor a southern region is given")
        return cell


def _is_north(brick: Brick) -> bool:
    if brick.dec < NORTH:
        return False
    return bool(SkyCoord(brick.ra, brick.dec, unit="deg").galactic.b.deg > 0)
