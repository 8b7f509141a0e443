"""Every archive at once, on one server of loopback, and what each of them shows of which field."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.templates.cells.bricks import Brick, brick_at
from tests.archive.hips import Hips2FitsService, write_hips
from tests.archive.legacysurvey import LegacySurveyPlay
from tests.archive.panstarrs import PanStarrsPlay, Projection
from tests.archive.server import ArchiveServer
from tests.integration.observed_field import PIXELS, ObservedField

HIPS_ZERO_POINT, HIPS_PIXEL = 25.0, 0.6
HIPS_EPOCHS = 51488.0, 51955.0
HIPS_ORDER = 11  # tiles of 128 pixels of 0.8 arcsec

TREE, HIPS2FITS, PANSTARRS, LEGACYSURVEY = "/tree/g/", "/hips2fits", "skycell", "/dr10/"
PANSTARRS_LIST = "ps1filenames"


@dataclass(frozen=True)
class SkyArchive:
    """The server, and the fields that it knows.

    Attributes
    ----------
    server : ArchiveServer
    north : ObservedField
        Band g: the tree of a HiPS; band i: hips2fits; all bands: Pan-STARRS, unless asked before.
    south : ObservedField
        Bands g, r and z: the Legacy Surveys; band y: the folder.
    gap : ObservedField
        Band g: the folder; nobody else has it.
    nowhere : ObservedField
        Known to nobody.
    templates : Path
        The folder.
    """

    server: ArchiveServer
    north: ObservedField
    south: ObservedField
    gap: ObservedField
    nowhere: ObservedField
    templates: Path

    @property
    def settings(self) -> dict[str, Any]:
        """The table ``templates`` of a service that asks all of them, the folder last."""
        scale = {"pixel_scale": HIPS_PIXEL, "zero_point": HIPS_ZERO_POINT}
        url = self.server.url
        return {
            "providers": ["hips", "panstarrs", "legacysurvey", "directory"],
            "path": str(self.templates),
            "hips": [
                {"band": "g", "tree": url + TREE.rstrip("/"), **scale},
                {"band": "i", "survey": "made/i", **scale},
            ],
            "hips2fits_urls": [url + HIPS2FITS],
            "panstarrs_url": url,
            "legacysurvey_url": url,
            "attempts": 2,
        }

    @property
    def south_bricks(self) -> list[Brick]:
        """The bricks that an exposure of the southern field needs."""
        return _bricks(self.south)


@contextmanager
def sky_archive(folder: Path) -> Iterator[SkyArchive]:
    """Make the files of the archives, and serve them."""
    north, south = ObservedField("north", 40.0, 10.0), ObservedField("south", 52.132, -45.0)
    gap, nowhere = ObservedField("gap", 60.0, 20.0), ObservedField("nowhere", 200.0, -60.0)
    sky = north.star_field(HIPS_ZERO_POINT, HIPS_PIXEL)
    tree = folder / "hips"
    write_hips(
        tree, sky, north.wcs(), (PIXELS, PIXELS), order=HIPS_ORDER, encode=_noisy,
        t_min=HIPS_EPOCHS[0], t_max=HIPS_EPOCHS[1],
    )  # fmt: skip
    templates = folder / "templates"
    south.write_template(templates, "y")
    gap.write_template(templates, "g")
    with ArchiveServer() as server:
        server.tree(TREE, tree)
        Hips2FitsService({"made/i": sky}, {"made/i": _noisy}).at(server, HIPS2FITS)
        projection = Projection(1226, north.ra, north.dec, cell=800)
        PanStarrsPlay(north.stars, (projection,), noisy=True).serve(server)
        LegacySurveyPlay(
            south.stars, {"dr10/south": _bricks(south)}, pixels=1800, scale=0.524, noisy=True
        ).serve(server)
        for brick in _bricks(south):  # one by one: astropy's HCOMPRESS is not safe in threads
            name = f"{brick.folder}/{brick.name}/legacysurvey-{brick.name}-maskbits.fits.fz"
            urllib.request.urlopen(f"{server.url}/dr10/south/coadd/{name}").close()
        yield SkyArchive(server, north, south, gap, nowhere, templates)


def _bricks(field: ObservedField) -> list[Brick]:
    edges = np.array([-20.0, PIXELS / 2, PIXELS + 19.0])
    x, y = np.meshgrid(edges, edges)
    ra, dec = field.wcs().all_pix2world(x.ravel(), y.ravel(), 0)
    return list({b.name: b for b in map(brick_at, ra.tolist(), dec.tolist())}.values())


def _noisy(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add a noise far below that of the exposures, another one to every tile."""
    seed = int(np.nansum(values)) % 2**32
    return values + np.random.default_rng(seed).normal(0, 0.3, values.shape)
