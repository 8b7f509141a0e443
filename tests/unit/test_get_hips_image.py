"""The documented function, against a service on loopback that knows the true sky."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from core.asinh import AsinhScale
from core.tangent import TangentGrid
from core.templates import get_hips_image
from core.templates.hips.image import _normalized
from core.templates.wrong_request import WrongRequest
from tests.archive.hips import Hips2FitsService, StarField
from tests.archive.server import ArchiveServer

RA, DEC, SHAPE = 150.0, 2.0, (100, 120)
RED, PANSTARRS = "CDS/P/DSS2/red", "CDS/P/PanSTARRS/DR1/r"
STORED = AsinhScale(0.0, 1.0)


@pytest.fixture(scope="module")
def sky() -> StarField:
    return StarField.random(RA, DEC, 0.02, 15, sigma=2.0, pixel=1.0, level=500.0)


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, sky: StarField) -> Iterator[ArchiveServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ArchiveServer() as server:
        service = Hips2FitsService({RED: sky, PANSTARRS: sky}, {PANSTARRS: STORED.stored})
        service.at(server, "/one")
        service.at(server, "/two")
        yield server


@pytest.fixture
def hosts(archive: ArchiveServer) -> tuple[str, ...]:
    return archive.url + "/one", archive.url + "/two"


def wcs_at(angle: float = 20.0) -> WCS:
    return TangentGrid(RA, DEC, 1.0 / 3600, angle, SHAPE, (59.5, 49.5)).wcs


def test_signature_is_as_documented() -> None:
    public = [p for p in inspect.signature(get_hips_image).parameters.values() if p.name[0] != "_"]
    documented = (
        "hips, ra=None, dec=None, width=None, height=None, fov=None, wcs=None, shape=None, "
        "header=None, asinh=None, normalize=True, upscale=False, get_header=True, verbose=False"
    )
    assert (
        ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in public)
        == documented
    )


def test_as_the_documentation_calls_it(
    archive: ArchiveServer, hosts: tuple[str, ...], sky: StarField
) -> None:
    wcs = wcs_at()
    image = get_hips_image(
        RED, wcs=wcs, width=120, height=100, get_header=False, normalize=False, _endpoints=hosts
    )
    assert image.shape == SHAPE
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, sky.image(wcs, SHAPE), rtol=1e-3)
    assert archive.requests[0].query["hips"] == RED
    assert archive.requests[0].query["format"] == "fits"


def test_every_way_to_give_the_grid_is_the_same(hosts: tuple[str, ...]) -> None:
    wcs = wcs_at(0.0)
    header = wcs.to_header()
    header["NAXIS1"], header["NAXIS2"] = 120, 100
    bare = wcs_at(0.0)
    bare.pixel_shape = None
    fov = 120 / 3600
    images = [
        get_hips_image(RED, get_header=False, _endpoints=hosts, **grid)
        for grid in (
            {"wcs": bare, "width": 120, "height": 100},
            {"wcs": bare, "shape": SHAPE},
            {"wcs": wcs},
            {"header": header},
            {"ra": RA, "dec": DEC, "fov": fov, "width": 120, "height": 100},
            {"ra": RA, "dec": DEC, "fov": fov, "shape": SHAPE},
            {"ra": 10.0, "dec": 10.0, "fov": 1.0, "wcs": bare, "shape": SHAPE},
        )
    ]
    for image in images[1:]:
        np.testing.assert_allclose(image, images[0], rtol=1e-3)


def test_the_header_describes_the_image(hosts: tuple[str, ...]) -> None:
    image, header = get_hips_image(RED, ra=RA, dec=DEC, fov=0.03, shape=SHAPE, _endpoints=hosts)
    assert (header["NAXIS1"], header["NAXIS2"]) == (120, 100)
    ra, dec = WCS(header).all_pix2world(59.5, 49.5, 0)
    assert (ra, dec) == pytest.approx((RA, DEC), abs=1e-9)
    again = fits.PrimaryHDU(image, header)
    assert again.header["SURVEY"] == RED


def test_normalized_background(hosts: tuple[str, ...], sky: StarField) -> None:
    noise = np.random.default_rng(1).normal(0, 37.0, SHAPE).astype(np.float32)
    plain = sky.image(wcs_at(), SHAPE) + noise
    image = _normalized(plain)
    dark = sky.image(wcs_at(), SHAPE) < 501
    assert image[dark].mean() == pytest.approx(100, abs=1.0)
    assert image[dark].std() == pytest.approx(10, rel=0.05)
    # Only a scale and an offset: fluxes keep their ratios.
    np.testing.assert_allclose(
        image - image[0, 0], (plain - plain[0, 0]) * (np.ptp(image) / np.ptp(plain)), atol=0.1
    )
    flat = get_hips_image(RED, wcs=wcs_at(), get_header=False, _endpoints=hosts)
    assert np.median(flat) == pytest.approx(100, abs=5)
    assert np.isfinite(_normalized(np.full((5, 5), 7.0, np.float32))).all()


@pytest.mark.parametrize("upscale", [False, True, 3])
def test_panstarrs_is_made_linear(
    archive: ArchiveServer, hosts: tuple[str, ...], sky: StarField, upscale: bool | int
) -> None:
    arguments = {"wcs": wcs_at(), "get_header": False, "normalize": False, "_endpoints": hosts}
    image = get_hips_image(PANSTARRS, upscale=upscale, **arguments)
    times = {False: 1, True: 2, 3: 3}[upscale]
    asked = json.loads(archive.requests[0].query["wcs"])
    assert (asked["NAXIS1"], asked["NAXIS2"]) == (120 * times, 100 * times)
    truth = sky.image(wcs_at(), SHAPE)
    assert np.median(image) == pytest.approx(500, rel=1e-4)
    # The mean over a pixel is not the value in its middle, but the sum is the same.
    assert (image - 500).sum() == pytest.approx((truth - 500).sum(), rel=2e-3)
    if times == 1:
        np.testing.assert_allclose(image, truth, rtol=1e-3)
    stored = get_hips_image(PANSTARRS, asinh=False, **arguments)
    np.testing.assert_allclose(stored, STORED.stored(truth), rtol=1e-3)
    endpoint = Hips2FitsService({"dim": replace(sky, flux=0 * sky.flux, level=2.0)}).at(
        archive, "/d"
    )
    forced = get_hips_image("dim", asinh=True, **(arguments | {"_endpoints": (endpoint,)}))
    np.testing.assert_allclose(forced, STORED.linear(2.0), rtol=1e-5)


def test_panstarrs_that_is_linear_by_now_stays_so(archive: ArchiveServer, sky: StarField) -> None:
    endpoint = Hips2FitsService({PANSTARRS: sky}).at(archive, "/linear")
    image = get_hips_image(
        PANSTARRS, wcs=wcs_at(), get_header=False, normalize=False, _endpoints=(endpoint,)
    )  # fmt: skip
    np.testing.assert_allclose(image, sky.image(wcs_at(), SHAPE), rtol=1e-4)


@pytest.mark.parametrize("kind", ["sip", "tpv"])
def test_a_distorted_wcs(hosts: tuple[str, ...], sky: StarField, kind: str) -> None:
    header = wcs_at(10.0).to_header()
    header["NAXIS1"], header["NAXIS2"] = 120, 100
    if kind == "sip":
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
        header.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 5e-4, "B_1_1": -4e-4})
    else:
        header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
        header.update({"PV1_1": 1.0, "PV2_1": 1.0, "PV1_4": 2.0, "PV2_6": -1.5})
    image = get_hips_image(RED, header=header, normalize=False, get_header=False, _endpoints=hosts)
    truth = sky.image(WCS(header), SHAPE)
    plain = sky.image(wcs_at(10.0), SHAPE)
    assert np.abs(truth - plain).max() > 0.1 * truth.max()  # the distortion matters
    np.testing.assert_allclose(image, truth, atol=0.02 * truth.max())


def test_holes_stay_holes(archive: ArchiveServer, sky: StarField) -> None:
    half = replace(sky, covers=lambda ra, dec: ra < RA)
    nothing = replace(sky, covers=lambda ra, dec: ra < 0)
    endpoint = Hips2FitsService({"half": half, "nothing": nothing}).at(archive, "/holes")
    image = get_hips_image("half", wcs=wcs_at(), get_header=False, _endpoints=(endpoint,))
    assert 0.4 < np.isnan(image).mean() < 0.6
    said: list[str] = []
    grid = {"wcs": wcs_at(), "_endpoints": (endpoint,)}
    assert get_hips_image("nothing", verbose=said.append, **grid) is None
    assert "no data there" in said[-1]


def test_failures_are_none_and_are_said(archive: ArchiveServer, hosts: tuple[str, ...]) -> None:
    said: list[str] = []
    assert get_hips_image("CDS/P/none", wcs=wcs_at(), _endpoints=hosts, verbose=said.append) is None
    assert "Unknown HiPS: CDS/P/none" in said[-1]
    archive.fault(delay=20)
    assert (
        get_hips_image(RED, wcs=wcs_at(), _endpoints=hosts, _seconds=0.5, verbose=said.append)
        is None
    )
    assert "no host answered" in said[-1]
    assert all("\n" not in line for line in said)


def test_the_second_host_is_asked(archive: ArchiveServer, hosts: tuple[str, ...]) -> None:
    archive.fault("/one", status=404)
    assert get_hips_image(RED, wcs=wcs_at(), _endpoints=hosts) is not None
    archive.mend()
    archive.fault("/one", html=True)
    assert get_hips_image(RED, wcs=wcs_at(), _endpoints=hosts) is not None


def test_numbers_that_can_only_mean_one_thing(hosts: tuple[str, ...]) -> None:
    options = {
        "get_header": False,
        "normalize": False,
        "_endpoints": hosts,
        "dec": 2.0,
        "fov": 0.02,
    }
    plain = get_hips_image(RED, ra=150.0, width=60, height=50, **options)
    same = get_hips_image(RED, ra=510.0, width=60.0, height=np.float64(50), upscale=1.0, **options)
    np.testing.assert_array_equal(same, plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "height is not known"),
        ({"width": 10, "height": 10}, "give wcs, header, or ra, dec and fov"),
        ({"width": 10, "height": 10, "ra": 10.0, "dec": 3.0}, "give wcs, header"),
        ({"shape": (10, 10), "ra": 10.0, "dec": 93.0, "fov": 1.0}, "dec = 93.0 is not an angle"),
        ({"shape": (10, 10), "ra": np.nan, "dec": 9.0, "fov": 1.0}, "ra = nan is not an angle"),
        ({"shape": (10, 10), "ra": 1.0, "dec": 9.0, "fov": 0.0}, "fov = 0.0 is not an angle"),
        ({"shape": (10, 10), "ra": "1h", "dec": 9.0, "fov": 1.0}, "ra = '1h' is not an angle"),
        ({"shape": (10, 10, 3), "wcs": wcs_at()}, "is not .height, width."),
        ({"shape": (0, 10), "ra": 1.0, "dec": 2.0, "fov": 1.0}, "height = 0 is not a number"),
        ({"width": 10.5, "height": 10, "wcs": wcs_at()}, "width = 10.5 is not a number"),
        ({"wcs": WCS(naxis=2), "shape": (10, 10)}, "no celestial axes"),
        ({"header": fits.Header({"NAXIS1": 5, "NAXIS2": 5})}, "no celestial WCS"),
        ({"wcs": wcs_at(), "upscale": -1}, "upscale = -1"),
        ({"wcs": wcs_at(), "upscale": "twice"}, "upscale = 'twice'"),
        ({"wcs": wcs_at(), "width": 10**6, "height": 10**6}, "are more than"),
        ({"wcs": wcs_at(), "hips": " "}, "is not the identifier"),
    ],
)
def test_bad_arguments_are_one_clear_error(
    archive: ArchiveServer, hosts: tuple[str, ...], arguments: dict, message: str
) -> None:
    arguments = {"hips": RED} | arguments
    with pytest.raises(WrongRequest, match=message) as caught:
        get_hips_image(**arguments, _endpoints=hosts)
    assert isinstance(caught.value, ValueError)
    assert archive.count() == 0
