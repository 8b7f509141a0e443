"""Reference stars from VizieR: what is asked, what comes back, what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from core.errors import ArchiveUnavailable, ForbiddenAddress, UnexpectedAnswer, UnusableInput
from core.pointing import tangential_grid
from core.templates import mask_template
from core.templates.cache import TemplateCache
from core.templates.catalogues import VIZIER, CatalogueSource, reference_stars
from core.templates.fetching.fetcher import Fetcher, FetchPolicy
from tests.archive.server import ArchiveServer
from tests.archive.vizier import VizierPlay

SHAPE = (100, 120)
GRID = tangential_grid((359.99, 20.0), SHAPE, 2.0)
BRIGHT = (30, 40)  # row, column
FAINT = (70, 90)
UNKNOWN = (50, 20)


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
    with ArchiveServer() as running:
        yield running


@pytest.fixture
def vizier() -> VizierPlay:
    rows, columns = zip(BRIGHT, FAINT, UNKNOWN, strict=True)
    ra, dec = GRID.all_pix2world(columns, rows, 0)
    magnitudes = MaskedColumn([12.5, 18.0, 0.0], mask=[False, False, True])
    errors = MaskedColumn([0.01, 0.02, 0.0], mask=[False, False, True])
    ra, dec = np.append(ra, 100.0), np.append(dec, 20.0)  # and one far away
    magnitudes = MaskedColumn(np.ma.append(magnitudes, [11.0]))
    errors = MaskedColumn(np.ma.append(errors, [0.1]))
    table = Table(
        {"RAJ2000": ra, "DEJ2000": dec, "rmag": magnitudes, "e_rmag": errors}, masked=True
    )
    return VizierPlay({"II/349/ps1": table})


def source(server: ArchiveServer, endpoint: str, folder: Path) -> CatalogueSource:
    policy = FetchPolicy((server.host,), backoff_seconds=0.01, timeout_seconds=2)
    return CatalogueSource(Fetcher(policy), TemplateCache(folder), endpoint)


def test_stars_of_the_field_mask_what_is_saturated(
    server: ArchiveServer, vizier: VizierPlay, tmp_path: Path
) -> None:
    stars = reference_stars("ps1", GRID, SHAPE, source=source(server, vizier.at(server), tmp_path))
    assert len(stars) == 3
    assert stars.colnames == ["RAJ2000", "DEJ2000", "rmag", "e_rmag"]
    mask = mask_template(
        np.zeros(SHAPE), stars, cat_saturation_mag=15, wcs=GRID, dilate=1, mask_nans=False
    )
    assert sorted(zip(*np.nonzero(mask), strict=True)) == sorted([BRIGHT, UNKNOWN])


def test_the_limit_is_vizier_s_to_keep(
    server: ArchiveServer, vizier: VizierPlay, tmp_path: Path
) -> None:
    asked = source(server, vizier.at(server), tmp_path)
    stars = reference_stars("ps1", GRID, SHAPE, brighter_than=15, source=asked)
    assert list(stars["rmag"]) == [12.5]
    assert vizier.queries[-1]["rmag"] == "<15"


def test_an_answer_is_kept(server: ArchiveServer, vizier: VizierPlay, tmp_path: Path) -> None:
    asked = source(server, vizier.at(server), tmp_path)
    first = reference_stars("ps1", GRID, SHAPE, source=asked)
    second = reference_stars("ps1", GRID, SHAPE, source=asked)
    assert len(vizier.queries) == 1
    assert len(first) == len(second)


def test_a_field_without_stars_is_an_empty_table(
    server: ArchiveServer, vizier: VizierPlay, tmp_path: Path
) -> None:
    elsewhere = tangential_grid((200.0, -50.0), SHAPE, 2.0)
    asked = source(server, vizier.at(server), tmp_path)
    stars = reference_stars("ps1", elsewhere, SHAPE, source=asked)
    assert len(stars) == 0
    mask = mask_template(np.zeros(SHAPE), stars, cat_saturation_mag=15, wcs=elsewhere)
    assert not mask.any()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 503}, ArchiveUnavailable),
        ({"html": True}, UnexpectedAnswer),
        ({"body": b"<?xml version='1.0'?><VOTABLE><RES"}, UnexpectedAnswer),
        ({"body": b"#\n#   VizieR"}, UnexpectedAnswer),
    ],
)
def test_what_goes_wrong_is_told_and_not_kept(
    fault: dict[str, object],
    error: type[Exception],
    server: ArchiveServer,
    vizier: VizierPlay,
    tmp_path: Path,
) -> None:
    asked = source(server, vizier.at(server), tmp_path)
    server.fault("/viz-bin", **fault)
    with pytest.raises(error):
        reference_stars("ps1", GRID, SHAPE, source=asked)
    server.mend()
    assert len(reference_stars("ps1", GRID, SHAPE, source=asked)) == 3


def test_wrong_names_and_hosts_are_refused(server: ArchiveServer, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="no catalogue 'usno'; there are ps1"):
        reference_stars("usno", GRID, SHAPE)
    with pytest.raises(UnusableInput, match=r"II/349/ps1 has no band 'V'; it has g, r"):
        reference_stars("ps1", GRID, SHAPE, "V")
    with pytest.raises(ForbiddenAddress):
        reference_stars("ps1", GRID, SHAPE, source=source(server, VIZIER, tmp_path))


@pytest.mark.archives
def test_vizier_itself_answers_the_same_way() -> None:
    grid = tangential_grid((185.4, 14.2), SHAPE, 5.0)
    stars = reference_stars("ps1", grid, SHAPE, brighter_than=19)
    assert len(stars) > 3
    assert float(stars["rmag"].max()) < 19
