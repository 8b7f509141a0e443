"""Coverage maps of surveys (MOC), read as far as it takes to say whether they cover a place."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
import numpy as np
import numpy.typing as npt
from astropy.coordinates import ICRS, BarycentricMeanEcliptic, BaseCoordinateFrame, Galactic
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy_healpix import lonlat_to_healpix

from core.celestial import change_frame
from core.templates.hips.healpix import FloatArray, IntArray

logger = logging.getLogger(__name__)

_DEEPEST = 29
_FRAMES = {"C": ICRS, "G": Galactic, "E": BarycentricMeanEcliptic}


@dataclass(frozen=True)
class Moc:
    """A part of the sky as ranges of HEALPix cells of order 29.

    Attributes
    ----------
    first, last : ndarray of int64, shape (n,)
        Nested numbers, ascending; ``last`` is not part of the range.
    frame : BaseCoordinateFrame
        Of the cells.
    """

    first: IntArray
    last: IntArray
    frame: BaseCoordinateFrame

    def covers(self, ra: FloatArray, dec: FloatArray) -> npt.NDArray[np.bool_]:
        """Return whether places lie in it.

        Parameters
        ----------
        ra, dec : ndarray of float64, shape (n,)
            ICRS, degrees; not finite is not in it.
        """
        inside = np.zeros(ra.shape, dtype=np.bool_)
        known = np.isfinite(ra) & np.isfinite(dec)
        lon, lat = change_frame(ra[known], dec[known], ICRS(), self.frame)
        cells = np.asarray(lonlat_to_healpix(lon * u.deg, lat * u.deg, 2**_DEEPEST, order="nested"))
        place = np.searchsorted(self.first, cells, side="right") - 1
        inside[known] = (place >= 0) & (cells < self.last[place])
        return inside


def read_moc(path: Path) -> Moc | None:
    """Read a coverage map; see IVOA MOC 2.0, section 4.3.

    Parameters
    ----------
    path : Path
        FITS: a table of cells (NUNIQ) or of ranges (RANGE).

    Returns
    -------
    Moc or None
        None, and a warning, where it cannot be understood: then nothing is known.
    """
    try:
        with fits.open(path, memmap=False) as file:
            header, table = file[1].header, file[1].data
            cells = np.asarray(table.field(0)).astype(np.int64).ravel()
        frame = _FRAMES[str(header.get("COORDSYS", "C")).strip().upper()[:1]]()
        if str(header.get("ORDERING", "NUNIQ")).strip().upper() == "RANGE":
            first, last = cells[0::2], cells[1::2]
        else:
            if (cells < 4).any():
                raise ValueError("it holds numbers that are no cells")
            order = np.floor(np.log2(cells // 4) / 2).astype(np.int64)
            shift = 2 * (_DEEPEST - order)
            first = (cells - 4 * 4**order) << shift
            last = first + (np.int64(1) << shift)
        if first.size == 0 or first.size != last.size or (first >= last).any() or first.min() < 0:
            raise ValueError("it holds no cells, or impossible ones")
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, VerifyError) as e:
        logger.warning("the coverage map %s was left alone: %s", path.name, e)
        return None
    along = np.argsort(first)
    return Moc(first[along], last[along], frame)
