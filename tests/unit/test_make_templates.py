"""The chain of providers that the settings name: order, bands, patience, hosts and the cache."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sep
from astropy.io import fits

from core.errors import ExposureError, InputUnavailable, NoTemplate
from core.pointing import tangential_grid
from core.templates import TemplateRequest
from core.templates.cache import TemplateCache
from service.settings_loading import SettingsError, load
from service.template_settings import TemplateSettings
from service.template_tally import TemplateTally
from service.templates import TemplateSource, make_cache, make_templates
from tests.archive.panstarrs import PanStarrsPlay, Projection
from tests.archive.server import Answer, ArchiveServer
from tests.archive.star_sky import StarSky

SHAPE = (200, 200)
RA, DEC = 40.0, 10.0


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    """An archive that has nothing; it answers 404."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ArchiveServer() as server:
        yield server


def made(
    folder: Path, archive: ArchiveServer | None = None, tally: Any = None, **values: Any
) -> TemplateSource:
    url = archive.url if archive else "http://127.0.0.1:1"
    known = {
        "hips": [{"band": "r", "tree": f"{url}/tree"}],
        "panstarrs_url": url,
        "legacysurvey_url": url,
        "path": str(folder / "templates"),
        "cache": str(folder / "cache"),
        "attempts": 1,
    }
    settings = TemplateSettings.model_validate(known | values)
    return make_templates(settings, max_pixels=10**6, observer=tally)


def request(band: str = "r") -> TemplateRequest:
    return TemplateRequest(tangential_grid((RA, DEC), SHAPE, 1.0), SHAPE, band=band)


ALL = ("legacysurvey", "directory", "hips", "panstarrs")


@pytest.mark.parametrize("order", [ALL, ALL[::-1]])
def test_providers_are_asked_in_the_order_of_the_settings(
    tmp_path: Path, archive: ArchiveServer, order: tuple[str, ...]
) -> None:
    (tmp_path / "templates").mkdir()
    tally = TemplateTally()
    with pytest.raises(NoTemplate) as caught:
        made(tmp_path, archive, tally, providers=order).templates.find(request())
    said = str(caught.value)
    assert sorted(order, key=lambda name: said.index(f"; {name}: ")) == list(order)
    # a list that is gone is not an empty list, and says nothing of the sky
    results = {name: "refused" if name == "panstarrs" else "none" for name in order}
    assert tally.take().requests == dict.fromkeys(results.items(), 1)
    asked = [r.path for r in archive.requests]
    places = {"hips": "/tree/", "panstarrs": "ps1filenames", "legacysurvey": "/coadd/"}
    firsts = [
        next(i for i, path in enumerate(asked) if places[name] in path)
        for name in order
        if name != "directory"
    ]
    assert firsts == sorted(firsts)


def test_bands_are_translated_for_the_surveys(tmp_path: Path, archive: ArchiveServer) -> None:
    source = made(tmp_path, archive, providers=["legacysurvey"], bands={"clear": "z"})
    for band, theirs in (("clear", "-image-z.fits"), ("g", "-image-g.fits")):
        with pytest.raises(NoTemplate):
            source.templates.find(request(band))
        assert archive.count(theirs) == archive.count("-image-") > 0
        archive.forget()


def test_a_folder_of_coadds_calls_the_bands_as_the_exposures_do(
    tmp_path: Path, archive: ArchiveServer
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = [
        values["templates"]
        for values in map(tomllib.loads, re.findall(r"^```toml\n(.*?)^```$", readme, re.M | re.S))
        if "bands" in values["templates"]
    ]
    folder = tmp_path / "templates"
    folder.mkdir()
    pixels = np.random.default_rng(1).normal(100, 5, SHAPE).astype(np.float32)
    source = made(tmp_path, archive, providers=example["providers"], bands=example["bands"])
    for band in example["bands"]:
        header = tangential_grid((RA, DEC), SHAPE, 1.0).to_header()
        header["FILTER"] = band
        fits.writeto(folder / f"{band}.fits", pixels, header)
    for band in example["bands"]:
        found = source.templates.find(request(band)).facts
        assert (found.provider, found.template_id) == ("directory", f"{band}.fits")


def test_what_is_bare_is_filled_if_the_settings_say_so(
    tmp_path: Path, archive: ArchiveServer
) -> None:
    """The folder has the lower part, Pan-STARRS the whole, brighter by 2.5 magnitudes a count."""
    projection = Projection(1226, RA, DEC, cell=440)
    sky = StarSky.lattice(projection.wcs, projection.shape, 60)
    PanStarrsPlay(sky, (projection,), noisy=True).serve(archive)
    folder = tmp_path / "templates"
    folder.mkdir()
    grid = tangential_grid((RA, DEC), SHAPE, 1.0)
    header = grid.to_header()
    header.update({"FILTER": "r", "MAGZP": 22.5, "EXPTIME": 60.0})
    pixels = np.random.default_rng(1).normal(0, 0.05, SHAPE).astype(np.float32)
    pixels += sky.drawn(grid, SHAPE, 22.5)
    fits.writeto(folder / "lower.fits", pixels[:120], header)
    for fill, sources in ((False, 1), (True, 3)):
        source = made(tmp_path, archive, providers=["directory", "panstarrs"], fill=fill)
        template = source.templates.find(request())
        assert template.facts.overlap == pytest.approx(1.0 if fill else 0.6, abs=0.02)
        assert len(template.sources) == sources
        image = template.image
        if fill:
            assert template.facts.template_id.startswith("lower.fits + r skycell.1226")
            x, y = sky.places(image.wcs)
            on = (x > 70) & (x < 250) & (y > 70) & (y < 250)
            flux, _, _ = sep.sum_circle(image.data - np.median(image.data), x[on], y[on], 4.0)
            assert flux == pytest.approx(sky.fluxes(22.5)[on], rel=0.05)
            of = template.origin[np.rint(y[on]).astype(int), np.rint(x[on]).astype(int)]
            assert set(of) == {0, 1, 2}  # the lower cells were not even asked for


def test_patience_is_that_of_the_settings(tmp_path: Path, archive: ArchiveServer) -> None:
    archive.fault(status=503, retry_after="0")
    source = made(tmp_path, archive, providers=["hips"], attempts=3)
    with pytest.raises(InputUnavailable, match="HTTP 503"):
        source.templates.find(request())
    assert archive.count() == 3
    archive.mend()
    archive.fault(delay=20)
    for patience in ({"deadline_seconds": 0.2}, {"timeout_seconds": 0.2}):
        source = made(tmp_path, archive, providers=["hips"], **patience)
        began = time.monotonic()
        with pytest.raises(InputUnavailable):
            source.templates.find(request())
        assert time.monotonic() - began < 10


def test_only_hosts_of_the_settings_are_spoken_to(tmp_path: Path, archive: ArchiveServer) -> None:
    with ArchiveServer() as elsewhere:
        archive.fault(redirect=f"{elsewhere.url}/there")
        refused = made(tmp_path, archive, providers=["legacysurvey"])
        with pytest.raises(NoTemplate, match=f"{elsewhere.host} is not among those"):
            refused.templates.find(request())
        assert elsewhere.count() == 0
        allowed = made(
            tmp_path, archive, providers=["legacysurvey"], allowed_hosts=[elsewhere.host]
        )
        with pytest.raises(NoTemplate, match="missing: "):
            allowed.templates.find(request())
        assert elsewhere.count() > 0


def test_downloads_are_bounded(tmp_path: Path, archive: ArchiveServer) -> None:
    archive.route("/", lambda request: Answer(bytes(5000)))
    source = made(tmp_path, archive, providers=["legacysurvey"], max_download_bytes=1000)
    with pytest.raises(NoTemplate, match="5000 bytes are more than the limit of 1000"):
        source.templates.find(request())


def test_whoever_counts_hears_of_the_cache_and_of_what_was_sent(
    tmp_path: Path, archive: ArchiveServer
) -> None:
    archive.file("/tree/properties", b"# nothing else\n", "text/plain")
    tally = TemplateTally()
    with pytest.raises(ExposureError):
        made(tmp_path, archive, tally, providers=["hips"]).templates.find(request())
    counts = tally.take()
    assert counts.fetched_bytes == {archive.host: 15}
    assert counts.cache_events["hips-properties", "stored"] == 1


def test_larger_templates_than_the_service_takes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    pixels = np.zeros((1001, 1000), np.float32)
    header = tangential_grid((RA, DEC), pixels.shape, 1.0).to_header()
    fits.writeto(folder / "big.fits", pixels, header)
    with pytest.raises(NoTemplate, match="limit of 1000000"):
        made(tmp_path).templates.find(request())


def test_holes_are_remembered_for_as_long_as_the_settings_say(
    tmp_path: Path, archive: ArchiveServer
) -> None:
    for seconds, again in ((3600.0, False), (0.0, True)):
        source = made(
            tmp_path / str(seconds), archive, providers=["legacysurvey"], cache_hole_seconds=seconds
        )
        for _ in range(2):
            archive.forget()
            with pytest.raises(NoTemplate):
                source.templates.find(request())
        assert (archive.count() > 0) == again


@pytest.mark.parametrize(("cache_bytes", "kept"), [(0, False), (10**9, True)])
def test_nothing_is_kept_without_a_cache(
    tmp_path: Path, archive: ArchiveServer, cache_bytes: int, kept: bool
) -> None:
    source = made(
        tmp_path, archive, providers=["legacysurvey"], keep_projected=True, cache_bytes=cache_bytes
    )
    with pytest.raises(NoTemplate):
        source.templates.find(request())
    assert (tmp_path / "cache").exists() == kept
    assert (source.projected is not None) == kept


def test_projected_templates_are_kept_on_demand_in_the_same_cache(tmp_path: Path) -> None:
    assert made(tmp_path).projected is None
    kept = made(tmp_path, keep_projected=True, cache_bytes=12345, cache_hole_seconds=7.0).projected
    settings = TemplateSettings(cache=tmp_path / "cache", cache_bytes=12345, cache_hole_seconds=7.0)
    for cache in (kept, make_cache(settings)):
        assert isinstance(cache, TemplateCache)
        assert cache.folder == tmp_path / "cache"
        assert (cache.max_bytes, cache.negative_seconds) == (12345, 7.0)


def test_files_of_a_url_go_through_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    header = tangential_grid((RA, DEC), SHAPE, 1.0).to_header()
    header["FILTER"] = "r"
    pixels = np.random.default_rng(1).normal(100, 5, SHAPE).astype(np.float32)
    fits.writeto(folder / "there.fits", pixels, header)
    tally = TemplateTally()
    source = made(tmp_path, tally=tally, path=folder.as_uri())
    assert source.templates.find(request()).facts.template_id == "there.fits"
    assert sum(n for (_, e), n in tally.take().cache_events.items() if e == "stored") > 0


def test_address_that_nobody_can_read_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "skydelta.toml"
    path.write_text('[templates]\npath = "s4://bucket/templates"\n')
    with pytest.raises(SettingsError, match=r"templates\.path.*s4://"):
        load(path)
