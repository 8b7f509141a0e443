"""Templates whose saturated stars are masked by a catalogue, from the settings to the pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from core.errors import InputUnavailable, NoTemplate, UnusableInput
from core.image import MaskBit
from core.pointing import tangential_grid
from core.templates import Template, TemplateRequest
from core.templates.catalogues import CATALOGUES, VIZIER, shared_circle
from core.templates.given_stars import GivenStars
from core.templates.index import Frame
from service.settings import Settings
from service.settings_report import beyond_validation
from service.template_settings import VIZIER as DEFAULT_VIZIER
from service.template_settings import CatalogueName, TemplateSettings
from service.templates import TemplateSource, make_templates
from tests.archive.server import ArchiveServer
from tests.archive.vizier import VizierPlay

SHAPE = (120, 140)
RA, DEC = 359.99, 20.0  # across RA 0
GRID = tangential_grid((RA, DEC), SHAPE, 2.0)
BRIGHT, FAINT, UNKNOWN = (30, 40), (70, 90), (50, 20)  # row, column


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ArchiveServer() as running:
        yield running


def stars(magnitude: str = "rmag") -> Table:
    rows, columns = zip(BRIGHT, FAINT, UNKNOWN, strict=True)
    ra, dec = GRID.all_pix2world(columns, rows, 0)
    unknown = [False, False, True]
    return Table(
        {
            "RAJ2000": ra,
            "DEJ2000": dec,
            magnitude: MaskedColumn([12.5, 18.0, 0.0], mask=unknown),
            f"e_{magnitude}": MaskedColumn([0.01, 0.02, 0.0], mask=unknown),
        },
        masked=True,
    )


@pytest.fixture
def vizier() -> VizierPlay:
    return VizierPlay({"II/349/ps1": stars()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A template that is larger than the exposure, by 20 pixels on every side."""
    header = tangential_grid((RA, DEC), (SHAPE[0] + 40, SHAPE[1] + 40), 2.0).to_header()
    header.update({"FILTER": "r", "MAGZP": 25.0})
    pixels = np.random.default_rng(1).normal(100, 5, (SHAPE[0] + 40, SHAPE[1] + 40))
    pixels[0, :30] = np.nan
    (tmp_path / "templates").mkdir()
    fits.writeto(tmp_path / "templates" / "r.fits", pixels.astype(np.float32), header)
    return tmp_path


def made(folder: Path, url: str, mask: dict[str, Any], **values: Any) -> TemplateSource:
    settings = TemplateSettings.model_validate(
        {
            "path": str(folder / "templates"),
            "cache": str(folder / "cache"),
            "vizier_url": url,
            "attempts": 1,
            "star_mask": mask,
            "providers": ["directory"],
        }
        | values
    )
    return make_templates(settings, max_pixels=10**6)


def request(ra: float = RA, dec: float = DEC, band: str = "r") -> TemplateRequest:
    return TemplateRequest(tangential_grid((ra, dec), SHAPE, 2.0), SHAPE, band=band)


def saturated(template: Template) -> set[tuple[int, int]]:
    """Rows and columns, on the exposure, of what is flagged as saturated."""
    places = np.argwhere((template.image.mask & MaskBit.SATURATED) != 0) - 20
    return {(int(row), int(column)) for row, column in places}


def square(place: tuple[int, int], size: int) -> set[tuple[int, int]]:
    half = size // 2
    return {
        (place[0] + row, place[1] + column)
        for row in range(-half, half + 1)
        for column in range(-half, half + 1)
    }


def test_stars_above_the_limit_are_masked_and_the_answer_is_kept(
    server: ArchiveServer, vizier: VizierPlay, folder: Path
) -> None:
    mask = {"catalogue": "ps1", "brighter_than": 15, "dilate": 7}
    url = vizier.at(server)
    source = made(folder, url, mask)
    template = source.templates.find(request())
    assert saturated(template) == square(BRIGHT, 7)
    assert template.facts.provider == "directory"
    holes = (template.image.mask & MaskBit.NO_DATA) != 0
    assert np.count_nonzero(holes) == 30  # as they were: it is the stars that are grown
    (query,) = vizier.queries
    assert query["rmag"] == "<15"
    # Neither another exposure of the field nor another process asks again.
    made(folder, url, mask).templates.find(request(ra=RA - 0.003, dec=DEC - 0.002))
    assert len(vizier.queries) == 1
    assert template.identity == source.templates.identify(request())


def test_stars_without_magnitude_only_on_request(
    server: ArchiveServer, vizier: VizierPlay, folder: Path
) -> None:
    """In a deep catalogue they are the faintest; a limit would keep them from the answer."""
    mask = {"catalogue": "ps1", "brighter_than": 15, "dilate": 0, "unknown": True}
    template = made(folder, vizier.at(server), mask).templates.find(request())
    assert saturated(template) == {BRIGHT, UNKNOWN}
    assert "rmag" not in vizier.queries[0]


def test_stars_that_have_lost_light_are_found_by_photometry(
    server: ArchiveServer, folder: Path
) -> None:
    """Those above 14.5 are cut off in the template."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[12:115:14, 12:135:14]
    x, y = x.ravel().astype(float), y.ravel().astype(float)
    mag = np.linspace(13.0, 19.0, x.size)[rng.permutation(x.size)]
    ra, dec = GRID.all_pix2world(x, y, 0)
    table = Table({"RAJ2000": ra, "DEJ2000": dec, "rmag": mag, "e_rmag": np.full(x.size, 0.01)})
    path = folder / "templates" / "r.fits"
    data, header = fits.getdata(path, header=True)
    rows, columns = np.mgrid[: data.shape[0], : data.shape[1]]
    peak = 10 ** (0.4 * (25.0 - mag)) / (2 * np.pi * 1.5**2)
    for cx, cy, height in zip(x + 20, y + 20, peak, strict=True):
        data += (height * np.exp(-((columns - cx) ** 2 + (rows - cy) ** 2) / 4.5)).astype("f4")
    limit = 10 ** (0.4 * (25.0 - 14.5)) / (2 * np.pi * 1.5**2)
    fits.writeto(path, np.minimum(data, np.float32(limit)), header, overwrite=True)
    url = VizierPlay({"II/349/ps1": table}).at(server)
    mask = {"catalogue": "ps1", "photometric": True, "dilate": 0}
    found = saturated(made(folder, url, mask).templates.find(request()))
    burnt = {(int(row), int(col)) for row, col, m in zip(y, x, mag, strict=True) if m < 14.2}
    fine = {(int(row), int(col)) for row, col, m in zip(y, x, mag, strict=True) if m > 14.8}
    assert burnt <= found
    assert not fine & found


@pytest.mark.parametrize("suffix", [".fits", ".ecsv", ".csv"])
def test_a_file_of_stars_in_place_of_a_catalogue(folder: Path, suffix: str) -> None:
    path = folder / f"stars{suffix}"
    stars("mag_r").write(path)
    mask = {"file": str(path), "brighter_than": 15, "dilate": 3, "magnitude": "mag_{band}"}
    source = made(folder, "http://127.0.0.1:1", mask)
    first = source.templates.find(request())
    assert saturated(first) == square(BRIGHT, 3)
    # It is read again when it has changed, and what was projected before is not taken then.
    changed = stars("mag_r")
    changed["mag_r"][1] = 11.0
    changed.write(path, overwrite=True)
    os.utime(path, ns=(1, 1))
    second = source.templates.find(request())
    assert saturated(second) == square(BRIGHT, 3) | square(FAINT, 3)
    assert second.identity == source.templates.identify(request()) != first.identity


def test_stars_of_the_other_side_of_the_sky_are_not_taken(folder: Path) -> None:
    table = stars()
    table.add_row([(RA + 180) % 360, -DEC, 3.0, 0.01])
    path = folder / "stars.fits"
    table.write(path)
    found = GivenStars(path).around(Frame.of(GRID, SHAPE), "r")
    assert len(found) == 3
    assert found.colnames == ["RAJ2000", "DEJ2000", "rmag", "e_rmag"]
    assert list(found["rmag"].mask) == [False, False, True]


def test_bands_are_translated_for_the_catalogue(
    server: ArchiveServer, vizier: VizierPlay, folder: Path
) -> None:
    path = folder / "templates" / "r.fits"
    data, header = fits.getdata(path, header=True)
    header["FILTER"] = "Clear"
    fits.writeto(path, data, header, overwrite=True)
    mask = {"catalogue": "ps1", "brighter_than": 15, "dilate": 0}
    url = vizier.at(server)
    with pytest.raises(NoTemplate, match="II/349/ps1 has no band 'clear'"):
        made(folder, url, mask).templates.find(request(band="clear"))
    source = made(folder, url, mask | {"bands": {"clear": "r"}})
    assert saturated(source.templates.find(request(band="clear"))) == {BRIGHT}
    del header["FILTER"]
    fits.writeto(path, data, header, overwrite=True)
    unknown = replace(request(), band=None)
    with pytest.raises(NoTemplate, match="its band is not known"):
        source.templates.find(unknown)


def test_without_the_catalogue_there_is_no_template_yet(
    server: ArchiveServer, vizier: VizierPlay, folder: Path
) -> None:
    mask = {"catalogue": "ps1", "brighter_than": 15, "dilate": 0}
    source = made(folder, vizier.at(server), mask)
    server.fault("/viz-bin", status=503)
    with pytest.raises(InputUnavailable, match=r"directory: .*HTTP 503"):
        source.templates.find(request())
    server.mend()
    assert saturated(source.templates.find(request())) == {BRIGHT}


def test_only_the_providers_that_are_named(
    server: ArchiveServer, vizier: VizierPlay, folder: Path
) -> None:
    mask = {"catalogue": "ps1", "brighter_than": 15, "providers": ["panstarrs"]}
    source = made(
        folder, vizier.at(server), mask, providers=["directory", "panstarrs"],
        panstarrs_url=server.url,
    )  # fmt: skip
    assert saturated(source.templates.find(request())) == set()
    assert vizier.queries == []


def test_a_file_that_is_no_table_is_named(folder: Path) -> None:
    frame = Frame.of(GRID, SHAPE)
    with pytest.raises(InputUnavailable, match=r"none\.fits: the catalogue cannot be read"):
        GivenStars(folder / "none.fits").around(frame, "r")
    for name, text in (
        ("a.fits", "no FITS"),
        ("a.ecsv", "a b\n1"),
        ("a.xml", "<VOTABLE"),
        ("a", ""),
    ):
        (folder / name).write_text(text)
        with pytest.raises(UnusableInput, match="is no table"):
            GivenStars(folder / name).around(frame, "r")
    stars().write(folder / "b.fits")
    with pytest.raises(UnusableInput, match="has no column gmag; it has RAJ2000, DEJ2000, rmag"):
        GivenStars(folder / "b.fits").around(frame, "g")
    with pytest.raises(UnusableInput, match="has no column RA;"):
        GivenStars(folder / "b.fits", ra="RA").around(frame, "r")


@pytest.mark.parametrize(
    ("ra", "dec"), [(0.001, 0.0), (123.4, -56.7), (359.99, 89.9), (10.0, -90.0)]
)
def test_circles_hold_the_frame_and_are_shared(ra: float, dec: float) -> None:
    frame = Frame.of(tangential_grid((ra, dec), (4096, 4096), 1.0), (4096, 4096))
    found = shared_circle(frame)
    centre = np.radians(found[:2])
    vector = np.array(
        [np.cos(centre[1]) * np.cos(centre[0]), np.cos(centre[1]) * np.sin(centre[0]),
         np.sin(centre[1])]
    )  # fmt: skip
    apart = np.degrees(np.arccos(min(1.0, float(vector @ frame.centre))))
    assert apart + frame.radius < found[2] < 1.8 * frame.radius
    circles = set()
    for number in range(40):
        step = np.random.default_rng(number).normal(0, 10 / 3600, 2)  # ten arcseconds
        place = (ra + step[0]) % 360, min(90.0, max(-90.0, dec + step[1]))
        circles.add(
            shared_circle(Frame.of(tangential_grid(place, (4096, 4096), 1.0), (4096, 4096)))
        )
    assert len(circles) <= 4


def test_settings_and_core_know_the_same_catalogues() -> None:
    assert set(CatalogueName.__args__) == set(CATALOGUES)
    assert DEFAULT_VIZIER == VIZIER


def test_what_cannot_be_known_from_types_is_found(tmp_path: Path) -> None:
    for mask, said in (
        ({"catalogue": "gaiadr3", "bands": {"r": "R"}}, "no band 'R'; gaiadr3 has G, BP, RP"),
        ({"file": str(tmp_path / "none.csv")}, "none.csv is not a file"),
    ):
        settings = Settings(templates={"star_mask": mask | {"brighter_than": 12}})
        problems = [str(each) for each in beyond_validation(settings)]
        assert any("templates.star_mask" in each and said in each for each in problems)
