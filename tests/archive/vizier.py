"""VizieR on loopback: queries by region, answers as VOTables.

The parameters are those of "ASU" (https://vizier.cds.unistra.fr/doc/asu-summary.htx): ``-source``,
``-out``, ``-c`` (place), ``-c.rd`` (radius in degrees), ``-out.max``, ``-sort``, and a constraint
under the name of a column. The answer is a VOTable of one table a catalogue.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io.votable import from_table, writeto
from astropy.table import Table

from tests.archive.server import Answer, ArchiveServer, Request

PATH = "/viz-bin/votable"
EMPTY = b"""<?xml version="1.0" encoding="UTF-8"?>
<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">
<RESOURCE type="results"><INFO name="queryParameters" value="1"/></RESOURCE>
</VOTABLE>
"""


@dataclass
class VizierPlay:
    """What VizieR has: by catalogue a table, its first two columns positions in degrees."""

    tables: dict[str, Table]
    queries: list[dict[str, str]] = field(default_factory=list)

    def at(self, server: ArchiveServer) -> str:
        """Serve, and return the endpoint."""
        server.route(PATH, self._answer)
        return server.url + PATH

    def _answer(self, request: Request) -> Answer:
        query = dict(request.query)
        self.queries.append(query)
        table = self.tables.get(query.get("-source", ""))
        if table is None:
            return Answer(EMPTY, content_type="text/xml")
        ra, dec = re.fullmatch(r"([\d.]+)([+-][\d.]+)", query["-c"].replace(" ", "+")).groups()  # type: ignore[union-attr]
        place = SkyCoord(float(ra), float(dec), unit="deg")
        stars = SkyCoord(*(np.asarray(table[name]) for name in table.colnames[:2]), unit="deg")
        keep = stars.separation(place) < float(query["-c.rd"]) * u.deg
        for name in table.colnames:
            if name in query:
                keep &= np.ma.filled(np.ma.asarray(table[name]), np.inf) < float(query[name][1:])
        found = table[keep]
        if "-sort" in query:
            found.sort(query["-sort"])
        found = found[: int(query["-out.max"])][query["-out"].split(",")]
        if len(found) == 0:
            return Answer(EMPTY, content_type="text/xml")
        body = io.BytesIO()
        writeto(from_table(found), body)
        return Answer(body.getvalue(), content_type="text/xml")
