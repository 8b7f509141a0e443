"""Fetching ahead does nothing where all of it is in the cache already, and all where it is not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import ICRS, Galactic, SkyCoord
from astropy.table import Table
from astropy_healpix import HEALPix

from core.errors import NoTemplate, NotInArchive
from core.tangent import unit_vectors
from core.templates.cache import CacheKey, KeptOnly, NoCache, NotKept, TemplateCache
from core.templates.catalogues import CatalogueSource
from core.templates.chain import ChainTemplates, Link
from core.templates.directory import DirectoryTemplates
from core.templates.fetching.fetcher import Fetcher, FetchPolicy
from core.templates.hips.healpix import nested_number
from core.templates.hips.projection import tiles_at
from core.templates.hips.properties import HipsProperties
from core.templates.hips.tree import tile_path
from core.templates.star_mask import StarMask, StarMaskedTemplates
from core.templates.template import Keeping, Template, TemplateProvider, TemplateRequest
from service.fetching_ahead import fetch_ahead
from tests.archive.hips import Hips2FitsService, write_hips
from tests.archive.server import ArchiveServer
from tests.archive.vizier import VizierPlay
from tests.unit import made_hips, test_hips_remote, test_legacysurvey, test_panstarrs
from tests.unit.test_combining import half
from tests.unit.test_templates_directory import put, request, tan

KEY = CacheKey("made", ("one",), ".txt")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ArchiveServer() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> TemplateCache:
    return TemplateCache(tmp_path / "cache")


class Counted:
    """Passes everything on, and counts how often a template was made."""

    def __init__(self, provider: TemplateProvider) -> None:
        self.provider, self.found = provider, 0
        self.name = provider.name

    def find(self, request: TemplateRequest) -> Template:
        self.found += 1
        return self.provider.find(request)

    def is_kept(self, request: TemplateRequest) -> bool:
        assert isinstance(self.provider, Keeping)
        return self.provider.is_kept(request)


def check(
    provider: TemplateProvider, wanted: TemplateRequest, server: ArchiveServer, cache: TemplateCache
) -> None:
    """It is made once; again as soon as one file is gone; never where nothing is kept."""
    counted = Counted(provider)
    chain = ChainTemplates([Link(counted)])
    assert not counted.is_kept(wanted)
    name = fetch_ahead(chain, wanted)
    assert name.startswith(f"{provider.name} ")
    assert counted.found == 1
    server.forget()
    for _ in range(3):
        assert fetch_ahead(chain, replace(wanted)) == f"{provider.name}: all of it was here"
    assert counted.found == 1
    assert server.requests == []
    kinds = {entry.stored.kind for entry in cache.entries()}
    for kind in kinds - {"hips-moc"}:  # a hole, which need not be there
        entry = next(e for e in cache.entries() if e.stored.kind == kind and e.stored.data)
        assert entry.stored.data is not None
        entry.stored.data.unlink()
        assert not counted.is_kept(wanted), kind
        fetch_ahead(chain, wanted)
    assert counted.found == 1 + len(kinds - {"hips-moc"})


@pytest.mark.parametrize(
    ("shape", "scale", "kind"), [((300, 320), 0.3, "cell"), ((90, 90), 1.0, "binned")]
)
def test_sky_cells(
    server: ArchiveServer, cache: TemplateCache, shape: tuple[int, int], scale: float, kind: str
) -> None:
    test_panstarrs.play(server, step=60)
    wanted = test_panstarrs.exposure(shape=shape, scale=scale)
    check(test_panstarrs.provider(server, cache), wanted, server, cache)
    assert f"panstarrs-{kind}" in {entry.stored.kind for entry in cache.entries()}


def test_bricks(server: ArchiveServer, cache: TemplateCache) -> None:
    """They are looked for in the one region first, then in the other."""
    wanted = test_legacysurvey.exposure(112.5, 22.12)
    test_legacysurvey.play(server, wanted, regions=("dr9/north",))
    check(test_legacysurvey.provider(server, cache), wanted, server, cache)


def test_tiles_of_a_hips(server: ArchiveServer, cache: TemplateCache, tmp_path: Path) -> None:
    wanted = made_hips.exposure()
    write_hips(
        tmp_path / "tree", made_hips.sky_at(), wanted.wcs, made_hips.SHAPE,
        order=made_hips.ORDER, width=made_hips.WIDTH,
    )  # fmt: skip
    server.tree("/hips", tmp_path / "tree")
    provider = test_hips_remote.remote(server, cache)
    check(provider, wanted, server, cache)
    # Of another exposure that lies on the same tiles there is nothing to be fetched either.
    assert provider.is_kept(made_hips.exposure(150.0002, 2.0002))
    assert not provider.is_kept(made_hips.exposure(150.1, 2.0))


def test_a_hole_in_a_hips_is_one_only_under_the_exposure(tmp_path: Path) -> None:
    wanted = made_hips.exposure()
    write_hips(
        tmp_path, made_hips.sky_at(), wanted.wcs, made_hips.SHAPE, order=made_hips.ORDER,
        width=made_hips.WIDTH,
    )  # fmt: skip
    provider = made_hips.local(tmp_path)
    assert provider.is_kept(wanted)
    under = tiles_at(unit_vectors([150.0], [2.0]), made_hips.ORDER, np.eye(3))
    number = int(nested_number(under, made_hips.ORDER)[0])
    (tmp_path / tile_path(made_hips.ORDER, number)).unlink()
    assert not provider.is_kept(wanted)


@pytest.mark.parametrize("frame", ["equatorial", "galactic"])
def test_tiles_are_those_of_healpix(frame: str) -> None:
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    properties = replace(HipsProperties("made", 5), frame=frame)
    healpix = HEALPix(2**5, order="nested", frame=ICRS() if frame == "equatorial" else Galactic())
    expected = np.unique(healpix.skycoord_to_healpix(SkyCoord(ra, dec, unit="deg")))
    found = tiles_at(unit_vectors(ra, dec), 5, properties.rotation)
    np.testing.assert_array_equal(np.sort(nested_number(found, 5)), expected)


def test_images_of_hips2fits(server: ArchiveServer, cache: TemplateCache) -> None:
    endpoint = Hips2FitsService({"CDS/P/made/r": made_hips.sky_at()}).at(server, "/hips2fits")
    provider = test_hips_remote.with_service(server, endpoint, cache=cache)
    check(provider, made_hips.exposure(shape=(90, 100)), server, cache)


def test_files_of_a_web_server(server: ArchiveServer, cache: TemplateCache, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    from tests.unit.test_remote_folder import serving

    put(tmp_path / "survey" / "all.fits", tan(), FILTER="r")
    with serving(tmp_path / "survey") as folder:
        provider = DirectoryTemplates(folder.url, cache=cache)
        assert not provider.is_kept(request())
        fetch_ahead(ChainTemplates([Link(provider)]), request())
        asked = len(folder.asked)
        assert provider.is_kept(request())
        assert len(folder.asked) == asked


def test_files_of_a_folder_are_here(tmp_path: Path) -> None:
    provider = DirectoryTemplates(tmp_path)
    with pytest.raises(NoTemplate):
        provider.is_kept(request())
    put(tmp_path / "part.fits", half(-0.4), FILTER="r")
    assert not provider.is_kept(request())  # the rest may be somebody else's
    put(tmp_path / "all.fits", tan(), FILTER="r")
    assert provider.is_kept(request())


def test_stars_that_mask_it(server: ArchiveServer, cache: TemplateCache, tmp_path: Path) -> None:
    put(tmp_path / "all.fits", tan(), FILTER="r")
    stars = Table({"RAJ2000": [10.0], "DEJ2000": [20.0], "rmag": [11.0], "e_rmag": [0.1]})
    fetcher = Fetcher(FetchPolicy((server.host,), backoff_seconds=0.01))
    source = CatalogueSource(fetcher, cache, VizierPlay({"II/349/ps1": stars}).at(server))
    mask = StarMask("ps1", source, brighter_than=14)
    check(StarMaskedTemplates(DirectoryTemplates(tmp_path), mask), request(), server, cache)


def test_those_who_have_none_are_passed_over(
    server: ArchiveServer, cache: TemplateCache, tmp_path: Path
) -> None:
    """Without asking: the south by its declination, a hole by what is remembered of it."""
    south = test_panstarrs.provider(server, cache)
    wanted = replace(test_legacysurvey.exposure(52.0, -45.0), min_overlap=0.3)
    archive = test_legacysurvey.play(server, wanted)
    bricks = test_legacysurvey.provider(server, cache)
    chain = ChainTemplates([Link(south), Link(bricks)])
    assert chain.kept_by(wanted) is None
    chain.find(wanted)
    assert chain.kept_by(wanted) == "legacysurvey"
    assert archive.bricks
    put(tmp_path / "all.fits", tan(), FILTER="r")
    chain = ChainTemplates([Link(bricks), Link(DirectoryTemplates(tmp_path))])
    assert chain.kept_by(request()) is None  # nobody has asked for these bricks yet
    chain.find(request())
    assert chain.kept_by(request()) == "directory"
    assert chain.kept_by(replace(request(), band="q")) is None


def test_a_part_of_an_exposure_is_looked_for_again(
    server: ArchiveServer, cache: TemplateCache
) -> None:
    test_panstarrs.play(server, missing={(1226, 0)})
    counted = Counted(test_panstarrs.provider(server, cache))
    for number in (1, 2):
        fetch_ahead(ChainTemplates([Link(counted)]), test_panstarrs.exposure())
        assert counted.found == number


def test_what_is_looked_up_counts_as_used(cache: TemplateCache) -> None:
    with cache.entry(KEY, lambda path: path.write_text("one")) as made:
        path = made.path
    os.utime(path, (1, 1))
    assert cache.peek(KEY) == path
    assert time.time() - path.stat().st_mtime < 60
    path.write_text("another")  # not what was kept
    assert cache.peek(KEY) is None
    assert NoCache().peek(KEY) is None
    cache.forget(KEY)
    assert cache.peek(KEY) is None


def test_a_hole_is_known_for_a_while(tmp_path: Path) -> None:
    cache = TemplateCache(tmp_path, negative_seconds=100)

    def make(path: Path) -> None:
        raise NotInArchive("nothing there")

    with pytest.raises(NotInArchive), cache.entry(KEY, make):
        pass
    with pytest.raises(NotInArchive, match="nothing there"):
        cache.peek(KEY)
    assert TemplateCache(tmp_path, negative_seconds=0).peek(KEY) is None


def test_what_is_not_kept_is_not_made(cache: TemplateCache) -> None:
    kept = KeptOnly(cache)
    with pytest.raises(NotKept, match="no made of this"), kept.entry(KEY, _never):
        pass
    with cache.entry(KEY, lambda path: path.write_text("one")):
        pass
    with kept.entry(KEY, _never) as file:
        assert file.path.read_text() == "one"
    assert not kept.forget(KEY)
    assert cache.peek(KEY) is not None


def _never(path: Path) -> None:
    raise AssertionError("nothing is to be made")
