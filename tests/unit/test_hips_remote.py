"""Templates from HiPS by HTTP, tile by tile and from hips2fits, on good days and bad."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import Galactic, SkyCoord
from astropy.io import fits
from astropy_healpix import HEALPix

from core.asinh import AsinhScale
from core.deadline import Deadline
from core.errors import ForbiddenAddress, InputUnavailable, NoTemplate, RequestRefused
from core.resample import resample
from core.templates.cache import NoCache, TemplateCache
from core.templates.fetching.fetcher import Fetcher, FetchPolicy
from core.templates.hips.assembly import HipsLimits
from core.templates.hips.hips2fits import Hips2Fits
from core.templates.hips.properties import HipsProperties
from core.templates.hips.provider import HipsTemplates
from core.templates.hips.survey import HIPS_ASINH, HipsSurvey, linear_fluxes
from tests.archive.hips import Hips2FitsService, write_hips
from tests.archive.server import ArchiveServer
from tests.shared_data import shared_data
from tests.unit.made_hips import (
    LEVEL,
    ORDER,
    PLACES,
    SCALE,
    SHAPE,
    WIDTH,
    exposure,
    local,
    measured,
    sky_at,
)


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ArchiveServer() as server:
        yield server


# Tiles


def remote(archive: ArchiveServer, cache: object = None, **policy: object) -> HipsTemplates:
    values = {"allowed_hosts": (archive.host,), "backoff_seconds": 0.01, "timeout_seconds": 5.0}
    fetcher = Fetcher(FetchPolicy(**{**values, **policy}))  # type: ignore[arg-type]
    survey = HipsSurvey(tree=f"{archive.url}/hips/", band="r")
    return HipsTemplates([survey], fetcher=fetcher, cache=cache or NoCache())  # type: ignore[arg-type]


@pytest.fixture
def tree(archive: ArchiveServer, tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    write_hips(folder, sky_at(), exposure().wcs, SHAPE, order=ORDER, width=WIDTH, padded=False)
    archive.tree("/hips", folder)
    return folder


def test_over_http_as_from_a_folder(archive: ArchiveServer, tree: Path) -> None:
    near, far = local(tree).find(exposure()), remote(archive).find(exposure())
    np.testing.assert_array_equal(near.image.data, far.image.data)
    np.testing.assert_array_equal(near.image.mask, far.image.mask)
    assert far.sources == (f"{archive.url}/hips",)


def test_neighbouring_exposures_share_tiles(
    archive: ArchiveServer, tree: Path, tmp_path: Path
) -> None:
    cache = TemplateCache(tmp_path / "cache")
    provider = remote(archive, cache)
    provider.find(exposure())
    first = archive.count("/Npix")
    assert archive.count("properties") == 1
    archive.forget()
    again = provider.find(exposure())
    assert archive.count() == 0  # also the tiles that are not there are not asked for again
    assert again.facts.overlap == 1.0
    provider.find(exposure(150.02, 2.0, angle=20.0))
    assert 0 < archive.count("/Npix") < 0.8 * first
    asked = [request.path for request in archive.requests]
    assert len(asked) == len(set(asked))


def write_moc(folder: Path, cells: dict[int, list[int]], *, ranges: bool, frame: str = "C") -> None:
    """Write a coverage map; cells by order (https://www.ivoa.net/documents/MOC/, section 4.3)."""
    if ranges:
        values = [
            [n << 2 * (29 - order), (n + 1) << 2 * (29 - order)]
            for order, numbers in cells.items()
            for n in numbers
        ]
        data, name = np.ravel(sorted(values)), "RANGE"
    else:
        data = np.array([4 * 4**order + n for order, numbers in cells.items() for n in numbers])
        name = "UNIQ"
    column = fits.Column(name, "K", array=data.astype(np.int64))
    table = fits.BinTableHDU.from_columns([column])
    table.header["ORDERING"] = "RANGE" if ranges else "NUNIQ"
    table.header["COORDSYS"] = frame
    table.writeto(folder / "Moc.fits", overwrite=True)


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("frame", ["C", "G"])
def test_outside_the_coverage_map_no_tile_is_asked_for(
    archive: ArchiveServer, tree: Path, ranges: bool, frame: str
) -> None:
    place = SkyCoord(150.0, 2.0, unit="deg")
    place = place.galactic.spherical if frame == "G" else place.icrs.spherical
    here = {
        order: [int(HEALPix(2**order, order="nested").lonlat_to_healpix(place.lon, place.lat))]
        for order in (3, 8)
    }
    here[8].append((here[3][0] + 1) % 768 * 4**5)  # a small cell elsewhere
    write_moc(tree, here, ranges=ranges, frame=frame)
    assert remote(archive).find(exposure()).facts.overlap == 1.0
    archive.forget()
    with pytest.raises(NoTemplate, match=r"coverage map has nothing at RA 20\.0000 Dec -40\.0000"):
        remote(archive).find(exposure(20.0, -40.0))
    assert archive.count("/Npix") == 0
    with pytest.raises(NoTemplate, match="coverage map has nothing"):
        remote(archive).identify(exposure(20.0, -40.0))  # so that a chain looks further
    with pytest.raises(NoTemplate, match="coverage map has nothing"):
        local(tree).find(exposure(330.0, -2.0))


@pytest.mark.parametrize("body", [b"", b"rubbish", None])
def test_a_coverage_map_that_makes_no_sense_is_left_alone(tree: Path, body: bytes | None) -> None:
    path = tree / "Moc.fits"
    if body is None:
        fits.BinTableHDU.from_columns([fits.Column("UNIQ", "K", array=[0, 1])]).writeto(path)
    else:
        path.write_bytes(body)
    assert local(tree).find(exposure()).facts.overlap == 1.0


def grow_old(cache: TemplateCache, days: float) -> None:
    for sidecar in cache.folder.rglob("*.json"):
        facts = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps(facts | {"made": facts["made"] - 86_400 * days}))


def released(tree: Path, level: float, date: str) -> None:
    sky = replace(sky_at(), level=level)
    write_hips(
        tree, sky, exposure().wcs, SHAPE, order=ORDER, width=WIDTH, hips_release_date=date
    )  # fmt: skip


def test_a_new_release_is_seen(archive: ArchiveServer, tree: Path, tmp_path: Path) -> None:
    cache = TemplateCache(tmp_path / "cache")
    released(tree, 100.0, "2026-01-01T00:00Z")
    first = remote(archive, cache).find(exposure())
    released(tree, 900.0, "2026-06-01T00:00Z")
    archive.forget()
    assert np.median(remote(archive, cache).find(exposure()).image.data) == pytest.approx(
        np.median(first.image.data)
    )
    assert archive.count() == 0
    grow_old(cache, 1.0)
    assert not remote(archive, cache).is_kept(exposure())
    second = remote(archive, cache).find(exposure())
    assert np.median(second.image.data) > 5 * np.median(first.image.data)
    assert second.identity != first.identity
    archive.forget()
    remote(archive, cache).find(exposure())
    assert archive.count() == 0


@pytest.mark.parametrize("fault", [{"status": 404}, {"status": 503}, {"body": b"maxorder = ?"}])
def test_where_the_release_cannot_be_seen_the_known_one_is_used(
    archive: ArchiveServer, tree: Path, tmp_path: Path, fault: dict[str, object]
) -> None:
    cache = TemplateCache(tmp_path / "cache")
    first = remote(archive, cache).find(exposure())
    grow_old(cache, 1.0)
    archive.fault("", times=None, **fault)  # type: ignore[arg-type]
    archive.forget()
    for _ in range(2):
        again = remote(archive, cache, attempts=1).find(exposure())
        np.testing.assert_array_equal(again.image.data, first.image.data)
    assert archive.count() == 1  # and not once for each exposure


def test_a_tile_that_cannot_be_fetched_is_no_hole(archive: ArchiveServer, tree: Path) -> None:
    archive.fault("/Npix", status=503)
    with pytest.raises(InputUnavailable, match="HTTP 503") as caught:
        remote(archive, attempts=2).find(exposure())
    assert caught.value.retriable


def test_the_deadline_holds_for_all_tiles_together(archive: ArchiveServer, tree: Path) -> None:
    archive.fault("/Npix", delay=0.4)
    with pytest.raises(InputUnavailable, match="deadline"):
        remote(archive).find(replace(exposure(), deadline=Deadline(1.0)))


def test_trees_elsewhere_are_not_asked(archive: ArchiveServer, tree: Path) -> None:
    survey = HipsSurvey(tree="http://elsewhere.example/hips")
    fetcher = Fetcher(FetchPolicy((archive.host,)))
    with pytest.raises(ForbiddenAddress, match="not among those that the settings allow"):
        HipsTemplates([survey], fetcher=fetcher).find(exposure())
    with pytest.raises(NoTemplate, match="no archive may be asked"):
        HipsTemplates([survey]).find(exposure())


# hips2fits


def with_service(
    archive: ArchiveServer, *endpoints: str, cache: object = None, **facts: object
) -> HipsTemplates:
    values = {"hips": "CDS/P/made/r", "band": "r", "pixel_scale": 0.6} | facts
    return HipsTemplates(
        [HipsSurvey(**values)],  # type: ignore[arg-type]
        fetcher=Fetcher(FetchPolicy((archive.host,), attempts=2, backoff_seconds=0.01)),
        cache=cache or NoCache(),  # type: ignore[arg-type]
        endpoints=endpoints,
    )


@pytest.mark.parametrize(("ra", "dec", "angle", "mirrored", "frame"), PLACES)
def test_hips2fits_gives_the_same(
    archive: ArchiveServer, ra: float, dec: float, angle: float, mirrored: bool, frame: str
) -> None:
    sky = sky_at(ra, dec)
    endpoint = Hips2FitsService({"CDS/P/made/r": sky}).at(archive)
    request = exposure(ra, dec, angle=angle, mirrored=mirrored)
    template = with_service(archive, endpoint, zero_point=24.0).find(request)
    gridded = resample(template.image, request.wcs, SHAPE)
    level = LEVEL * SCALE**2 / sky.pixel**2
    assert not gridded.mask.any()
    np.testing.assert_allclose(measured(gridded, sky, level), 1.0, atol=4e-3)
    assert template.image.facts.zero_point == 24.0
    assert template.facts.template_id == "CDS/P/made/r"


def test_the_second_host_answers_when_the_first_does_not(archive: ArchiveServer) -> None:
    service = Hips2FitsService({"CDS/P/made/r": sky_at()})
    first, second = service.at(archive, "/first"), service.at(archive, "/second")
    for fault in ({"status": 503}, {"html": True}, {"cut_file": 5000}, {"break_off": 10}):
        archive.mend()
        archive.forget()
        archive.fault("/first", **fault)
        template = with_service(archive, first, second).find(exposure(shape=(90, 100)))
        assert template.facts.overlap == 1.0
        assert (archive.count("/first"), archive.count("/second")) == (2, 1)


@pytest.mark.parametrize("status", [400, 403, 404])
def test_the_second_host_answers_when_the_first_refuses(
    archive: ArchiveServer, status: int
) -> None:
    service = Hips2FitsService({"CDS/P/made/r": sky_at()})
    first, second = service.at(archive, "/first"), service.at(archive, "/second")
    archive.fault("/first", status=status)
    template = with_service(archive, first, second).find(exposure(shape=(90, 100)))
    assert template.facts.overlap == 1.0


def test_a_service_that_moved_is_no_hole(archive: ArchiveServer, tmp_path: Path) -> None:
    endpoint = Hips2FitsService({"CDS/P/made/r": sky_at()}).at(archive)
    provider = with_service(archive, endpoint, cache=TemplateCache(tmp_path / "cache"))
    archive.fault(status=404)
    with pytest.raises(RequestRefused, match=r"no host makes this image.*HTTP 404"):
        provider.find(exposure(shape=(90, 100)))
    archive.mend()
    assert provider.find(exposure(shape=(90, 100))).facts.overlap == 1.0


def test_a_slow_host_leaves_time_for_the_other(archive: ArchiveServer) -> None:
    service = Hips2FitsService({"CDS/P/made/r": sky_at()})
    first, second = service.at(archive, "/first"), service.at(archive, "/second")
    archive.fault("/first", delay=30)
    request = replace(exposure(shape=(90, 100)), deadline=Deadline(6.0))
    assert with_service(archive, first, second).find(request).facts.overlap == 1.0


def test_an_answer_of_another_size_is_not_taken(archive: ArchiveServer) -> None:
    service = Hips2FitsService({"CDS/P/made/r": sky_at()})
    right = service.at(archive, "/right")
    archive.route(
        "/wrong",
        lambda request: service(
            replace(
                request,
                query={
                    **request.query,
                    "wcs": request.query["wcs"].replace('"NAXIS1": ', '"NAXIS1": 1'),
                },
            )
        ),
    )
    with pytest.raises(InputUnavailable, match=r"answered with \d+ x \d+ pixels instead of"):
        with_service(archive, archive.url + "/wrong").find(exposure(shape=(90, 100)))
    with_service(archive, archive.url + "/wrong", right).find(exposure(shape=(90, 100)))


def test_the_service_says_what_it_does_not_like(archive: ArchiveServer) -> None:
    endpoint = Hips2FitsService({}).at(archive)
    with pytest.raises(RequestRefused, match="Unknown HiPS: CDS/P/made/r") as caught:
        with_service(archive, endpoint, endpoint).find(exposure(shape=(90, 100)))
    assert archive.count() == 2
    assert not caught.value.retriable


def test_nobody_answers(archive: ArchiveServer) -> None:
    archive.fault(status=502)
    with pytest.raises(InputUnavailable, match="no host answered") as caught:
        with_service(archive, archive.url + "/a", archive.url + "/b").find(
            exposure(shape=(90, 100))
        )
    assert caught.value.retriable


def test_large_images_come_in_strips(archive: ArchiveServer) -> None:
    sky = sky_at()
    endpoint = Hips2FitsService({"x": sky}, max_pixels=15_000).at(archive)
    service = Hips2Fits(Fetcher(FetchPolicy((archive.host,))), (endpoint,), max_pixels=15_000)
    request = exposure()
    data = service.image("x", request.wcs, SHAPE, Deadline(30.0))
    assert archive.count() == 4
    np.testing.assert_allclose(data, sky.image(request.wcs, SHAPE), rtol=1e-4)


def test_repeated_pointings_share_a_cut_out(archive: ArchiveServer, tmp_path: Path) -> None:
    sky = sky_at()
    endpoint = Hips2FitsService({"CDS/P/made/r": sky}).at(archive)
    provider = with_service(archive, endpoint, cache=TemplateCache(tmp_path))
    for k in range(4):
        provider.find(exposure(150.0 + k * 1e-4, 2.0, angle=0.2 * k))
    assert archive.count() <= 2


def test_a_tree_that_hangs_leaves_time_for_the_service(archive: ArchiveServer, tree: Path) -> None:
    endpoint = Hips2FitsService({"CDS/P/made/r": sky_at()}).at(archive)
    provider = with_service(archive, endpoint, tree=f"{archive.url}/hips")
    archive.fault("/hips/", delay=30)
    request = replace(exposure(shape=(90, 100)), deadline=Deadline(6.0))
    assert provider.find(request).sources == ("CDS/P/made/r",)


def test_the_tree_comes_first_and_the_service_when_it_is_down(
    archive: ArchiveServer, tree: Path
) -> None:
    endpoint = Hips2FitsService({"CDS/P/made/r": sky_at()}).at(archive)
    provider = with_service(archive, endpoint, tree=f"{archive.url}/hips")
    provider.find(exposure())
    assert archive.count("hips2fits") == 0
    assert provider.identify(exposure()) == provider.find(exposure()).identity
    archive.fault("/hips/", status=500)
    assert provider.find(exposure()).sources == ("CDS/P/made/r",)
    assert provider.identify(exposure()) == provider.find(exposure()).identity
    archive.forget()
    provider.find(exposure())
    assert archive.count("hips2fits") == 1
    archive.mend()
    # A field that the tree does not cover is not asked for once more.
    with pytest.raises(NoTemplate, match="none of its"):
        provider.find(exposure(20.0, 40.0))
    assert archive.count("hips2fits") == 1


# Pan-STARRS

STORED = AsinhScale(0.0, 1.0)


@pytest.mark.parametrize("way", ["tree", "service"])
@pytest.mark.parametrize("scale", [0.85, 3.3])
def test_asinh_scaled_surveys_are_made_linear_first(
    archive: ArchiveServer, tmp_path: Path, way: str, scale: float
) -> None:
    """Averages of logarithms are not logarithms of averages: fluxes would be off by 4 %."""
    encode: Callable[[np.ndarray], np.ndarray] = STORED.stored
    request = exposure(scale=scale, shape=(110, 120))
    sky = sky_at(sigma=1.3 * scale, level=20.0, radius=0.015 * scale, number=8)
    if way == "tree":
        write_hips(
            tmp_path, sky, request.wcs, request.shape, order=ORDER, width=WIDTH, lowest=ORDER - 2,
            encode=encode, creator_did="ivo://CDS/P/PanSTARRS/DR1/r",
        )  # fmt: skip
        provider = local(tmp_path, pixel_scale=0.6)
    else:
        name = "CDS/P/PanSTARRS/DR1/r"
        service = Hips2FitsService({name: sky}, {name: encode})
        provider = with_service(archive, service.at(archive), hips=name)
    gridded = resample(provider.find(request).image, request.wcs, request.shape)
    if way == "service":
        asked = json.loads(archive.requests[0].query["wcs"])
        pixel = 3600 * np.hypot(asked["PC1_1"], asked.get("PC1_2", 0.0))
        assert pixel == pytest.approx(scale / {0.85: 1, 3.3: 4}[scale], rel=1e-6)
    level = 20.0 * scale**2 / sky.pixel**2
    atol = 0.01 if way == "tree" or scale < 1 else 0.05
    np.testing.assert_allclose(measured(gridded, sky, level), 1.0, atol=atol)


def test_asinh_scaled_surveys_are_asked_for_no_finer_than_the_limit(archive: ArchiveServer) -> None:
    name = "CDS/P/PanSTARRS/DR1/r"
    service = Hips2FitsService({name: sky_at(level=20.0)}, {name: STORED.stored})
    provider = HipsTemplates(
        [HipsSurvey(hips=name, pixel_scale=0.6)],
        fetcher=Fetcher(FetchPolicy((archive.host,))),
        endpoints=(service.at(archive),),
        limits=HipsLimits(max_pixels=300_000),
    )
    provider.find(exposure(scale=3.3, shape=(60, 70)))
    asked = json.loads(archive.requests[0].query["wcs"])
    assert 75_000 < asked["NAXIS1"] * asked["NAXIS2"] <= 300_000


@pytest.mark.parametrize("way", ["tree", "service"])
def test_a_survey_that_is_linear_by_now_is_left_as_it_is(
    archive: ArchiveServer, tmp_path: Path, way: str
) -> None:
    """Its name says asinh, its values of some hundreds do not; as an asinh they are infinite."""
    sky, request = replace(sky_at(), level=300.0), exposure(shape=(90, 100))
    name = "CDS/P/PanSTARRS/DR1/r"
    if way == "tree":
        write_hips(
            tmp_path, sky, request.wcs, request.shape, order=ORDER, width=WIDTH, lowest=ORDER - 2,
            creator_did=f"ivo://{name}",
        )  # fmt: skip
        found = local(tmp_path, pixel_scale=0.6).find(request)
    else:
        endpoint = Hips2FitsService({name: sky}).at(archive)
        found = with_service(archive, endpoint, hips=name).find(request)
    assert np.isfinite(found.image.data).all()
    assert found.facts.overlap == 1.0
    assert 10 < np.median(found.image.data) < 1e4


def test_values_that_stand_for_no_flux_are_none() -> None:
    stored = np.array([[0.0, 5.0, 300.0, np.nan]], np.float32)
    flux = linear_fluxes(HIPS_ASINH, stored)
    assert np.isfinite(flux[0, :2]).all()
    assert np.isnan(flux[0, 2:]).all()


def test_asinh_is_told_by_the_name_and_can_be_overruled() -> None:
    assert HipsSurvey(hips="CDS/P/PanSTARRS/DR1/r").asinh_scale() is not None
    for linear in ("PanSTARRS/DR1/g", "CDS/P/PanSTARRS/DR1/g"):
        assert HipsSurvey(hips=linear).asinh_scale() is None
        assert HipsSurvey(tree=f"https://there/{linear}/").asinh_scale(linear) is None
        assert HipsSurvey(hips=linear, asinh=True).asinh_scale() is not None
    assert HipsSurvey(hips="CDS/P/PanSTARRS/DR1/r", asinh=False).asinh_scale() is None
    assert HipsSurvey(hips="CDS/P/DSS2/red").asinh_scale() is None
    assert HipsSurvey(hips="CDS/P/DSS2/red", asinh=True).asinh_scale() is not None
    with pytest.raises(ValueError, match="needs an identifier"):
        HipsSurvey()


# Real tiles


@pytest.mark.data
@pytest.mark.parametrize(
    ("survey", "number", "frame"),
    [("DSS2Red", 449, "icrs"), ("Planck-HFI143", 281, "galactic"), ("IRAC4", 297, "galactic")],
)
def test_real_tiles_over_http(archive: ArchiveServer, survey: str, number: int, frame: str) -> None:
    archive.tree("/hips", shared_data("hips_tiles") / survey)
    healpix = HEALPix(8, order="nested", frame=Galactic() if frame == "galactic" else None)
    if frame == "galactic":
        place = healpix.healpix_to_skycoord(number).icrs
    else:
        lon, lat = healpix.healpix_to_lonlat(number)
        place = SkyCoord(lon, lat, frame="icrs")
    request = exposure(place.ra.deg, place.dec.deg, angle=30.0, scale=60.0, shape=(150, 150))
    template = remote(archive).find(request)
    image = template.image
    assert template.facts.overlap > 0.6
    assert np.isfinite(image.data).all()
    good = image.mask == 0
    assert np.ptp(image.data[good]) > 0


@pytest.mark.data
def test_real_pictures_are_refused_in_one_sentence() -> None:
    folder = shared_data("hips_tiles") / "2MASS6XH"
    text = (folder / "properties").read_text().replace("png jpeg fits", "png jpeg")
    assert "png jpeg" in text
    with pytest.raises(NoTemplate, match=r"has only pictures \(png, jpeg\), no FITS tiles"):
        HipsProperties.parse(text, "2MASS")
