"""Reference stars of a file that the operator gives, in place of a catalogue on the net."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from xml.parsers.expat import ExpatError

import numpy as np
from astropy.io.fits.verify import VerifyError
from astropy.io.registry import IORegistryError
from astropy.table import MaskedColumn, Table
from astropy.units import UnitsError

from core.errors import InputUnavailable, UnusableInput
from core.quiet import quiet
from core.tangent import unit_vectors
from core.templates.index import Frame

# What the readers of the formats raise; all of it means the same.
_NO_TABLE = (ValueError, TypeError, LookupError, VerifyError, IORegistryError, ExpatError)


class GivenStars:
    """A table of stars on disk, read once and again when it has changed.

    Parameters
    ----------
    path : path
        Of any format that astropy knows by its name: FITS, ECSV, CSV, VOTable ...
    ra, dec : str
        Columns of the ICRS positions, degrees.
    magnitude, error : str
        Columns of the magnitudes; ``{band}`` stands for the band. Errors need not be there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ra: str = "RAJ2000",
        dec: str = "DEJ2000",
        magnitude: str = "{band}mag",
        error: str = "e_{band}mag",
    ) -> None:
        self.path = Path(path)
        self._columns = ra, dec, magnitude, error
        self._lock = threading.Lock()
        self._read: tuple[str, Table] | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells it from others, and from itself when it has changed.

        Raises
        ------
        core.errors.InputUnavailable
            If the file is not there.
        """
        return str(self.path), self._stamp(), *self._columns

    def around(self, frame: Frame, band: str) -> Table:
        """Return the stars on a frame or near it.

        Parameters
        ----------
        frame : Frame
        band : str
            As the columns name it.

        Returns
        -------
        Table
            Columns ``RAJ2000``, ``DEJ2000`` (degrees), ``<band>mag`` and, if it is known,
            ``e_<band>mag``.

        Raises
        ------
        core.errors.InputUnavailable
            If the file cannot be read now.
        core.errors.UnusableInput
            If it is no table, or has not these columns.
        """
        ra, dec, magnitude, error = (name.format(band=band) for name in self._columns)
        table = self._table()
        missing = [name for name in (ra, dec, magnitude) if name not in table.colnames]
        if missing:
            raise UnusableInput(
                f"{self.path}: has no column {', '.join(missing)}; it has "
                f"{', '.join(table.colnames[:20])}"
            )
        try:
            places = unit_vectors(*(np.ma.filled(table[name], np.nan) for name in (ra, dec)))
        except (TypeError, ValueError, UnitsError) as fault:
            raise UnusableInput(f"{self.path}: {ra} and {dec} are not degrees ({fault})") from None
        near = places @ frame.centre > np.cos(np.radians(min(180.0, 1.1 * frame.radius)))
        names = {ra: "RAJ2000", dec: "DEJ2000", magnitude: f"{band}mag"}
        if error in table.colnames:
            names[error] = f"e_{band}mag"
        return Table(
            {ours: MaskedColumn(table[theirs][near]) for theirs, ours in names.items()},
            masked=True,
        )

    def _stamp(self) -> str:
        try:
            found = self.path.stat()
        except OSError as error:
            raise InputUnavailable(
                f"{self.path}: the catalogue cannot be read ({error.strerror}); is it mounted?"
            ) from error
        return f"{found.st_mtime_ns} {found.st_size}"

    def _table(self) -> Table:
        with self._lock:
            stamp = self._stamp()
            if self._read is None or self._read[0] != stamp:
                self._read = stamp, self._from_disk()
            return self._read[1]

    def _from_disk(self) -> Table:
        try:
            with quiet():
                return Table.read(self.path)
        except (OSError, *_NO_TABLE) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise InputUnavailable(
                    f"{self.path}: the catalogue cannot be read ({error.strerror})"
                ) from error
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UnusableInput(f"{self.path}: is no table ({reason})") from error
