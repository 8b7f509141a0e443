"""The documented functions of survey images, against the archives played on loopback."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import sep
from astropy.io import fits
from astropy.wcs import WCS, Sip

from core.celestial import from_icrs, to_icrs
from core.errors import NoTemplate
from core.reading import read_wcs
from core.templates import (
    get_ls_image,
    get_ls_image_and_mask,
    get_ps1_image,
    get_ps1_image_and_mask,
    get_survey_image,
    get_survey_image_and_mask,
)
from core.templates.cells.bricks import brick_at
from core.templates.legacysurvey import LegacySurvey
from core.templates.panstarrs import PanStarrsSurvey
from core.templates.swarp import SWarpFailed
from core.templates.wrong_request import WrongRequest
from tests.archive.legacysurvey import LegacySurveyPlay
from tests.archive.panstarrs import (
    LIST,
    PanStarrsPlay,
    Projection,
    asinh_file,
    mask_file,
    path_of,
    stack_header,
)
from tests.archive.server import Answer, ArchiveServer
from tests.archive.star_sky import StarSky
from tests.shared_data import shared_data

CELL = Projection(1226, 40.0, 10.0)
SHAPE = (220, 260)
STAND_IN = "tests/swarp_stand_in.py"


@pytest.fixture
def server():
    with ArchiveServer() as running:
        yield running


@pytest.fixture
def ps1(server):
    """The small archive of Pan-STARRS, and how to ask it."""
    archive = PanStarrsPlay(StarSky.lattice(CELL.wcs, CELL.shape, 40), (CELL,))
    archive.serve(server)
    return archive, PanStarrsSurvey(endpoint=server.url, cell_size=400 * 0.25 / 3600)


def grid(ra=40.0, dec=10.0, scale=0.35, angle=33.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = ra, dec
    wcs.wcs.crpix = SHAPE[1] / 2 + 0.5, SHAPE[0] / 2 + 0.5
    turn = np.radians(angle)
    wcs.wcs.cd = scale / 3600 * np.array(
        [[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    )  # fmt: skip
    return wcs


def fluxes(image, sky, wcs, zero_point, scale, margin=15):
    x, y = sky.places(wcs)
    inside = (x > margin) & (x < SHAPE[1] - margin) & (y > margin) & (y < SHAPE[0] - margin)
    data = np.ascontiguousarray(image - np.nanmedian(image), dtype=np.float64)
    flux, _, flag = sep.sum_circle(
        np.nan_to_num(data), x[inside], y[inside], 3 * sky.fwhm / scale, mask=~np.isfinite(data)
    )
    return flux[flag == 0], sky.fluxes(zero_point)[inside][flag == 0]


@pytest.mark.parametrize("how", ["width and height", "shape", "header"])
def test_image_on_the_grid_that_is_asked_for(ps1, how):
    archive, survey = ps1
    wcs = grid()
    header = wcs.to_header()
    header["NAXIS1"], header["NAXIS2"] = SHAPE[1], SHAPE[0]
    where = {
        "width and height": {"wcs": wcs, "width": SHAPE[1], "height": SHAPE[0]},
        "shape": {"wcs": wcs, "shape": SHAPE},
        "header": {"header": header},
    }[how]
    image = get_ps1_image("r", _archive=survey, **where)
    assert image.shape == SHAPE
    assert image.dtype == np.float32
    found, expected = fluxes(image, archive.sky, wcs, 25.0, 0.35)
    assert found.size > 25
    assert found == pytest.approx(expected, rel=1.5e-3)
    assert np.median(found / expected) == pytest.approx(1, abs=3e-4)


def test_mask_has_the_survey_s_own_bits(ps1):
    archive, survey = ps1
    wcs = grid()
    x, y = (round(float(v[0])) for v in from_icrs(CELL.wcs, *to_icrs(wcs, [130], [110])))
    archive.flags += [(1226, y, x, 0x0020 | 0x1000), (1226, y + 30, x, 0x0200)]
    image, mask = get_ps1_image_and_mask("r", wcs=wcs, shape=SHAPE, _archive=survey)
    assert mask.dtype == np.int32
    assert mask.shape == SHAPE
    assert mask[110, 130] & 0x1020 == 0x1020
    assert (np.isfinite(image) | (mask != 0)).all()
    assert set(np.unique(mask)) == {0, 0x0200, 0x1020 | 0x0008}  # saturated pixels are NaN: BLANK
    assert 4 <= np.count_nonzero(mask & 0x20) <= 16
    assert not mask[100, 130]


def test_pixels_without_data(ps1):
    archive, survey = ps1
    archive.missing.add((1226, 3))
    image, mask = get_survey_image_and_mask("r", wcs=grid(), shape=SHAPE, _archive=survey)
    holes = np.isnan(image)
    assert 0.05 < holes.mean() < 0.5
    assert (mask[holes] == 8).all()
    assert (mask[~holes] == 0).mean() > 0.99


def test_both_are_downloaded_once(server, ps1):
    _, survey = ps1
    get_ps1_image_and_mask("r", wcs=grid(), shape=SHAPE, _archive=survey)
    assert server.count("unconv.fits") == 4
    assert server.count("unconv.mask.fits") == 4


def test_cells_are_kept_between_calls(server, ps1, tmp_path):
    _, survey = ps1
    kept = tmp_path / "kept"
    options = {"wcs": grid(), "shape": SHAPE, "_archive": survey, "_cachedir": kept}
    first = get_ps1_image("r", **options)
    server.forget()
    assert np.array_equal(get_ps1_image("r", **options), first, equal_nan=True)
    assert get_ps1_image("r", ext="mask", **options) is not None
    assert server.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_nothing_is_left_behind(ps1, tmp_path):
    _, survey = ps1
    get_ps1_image("r", wcs=grid(), shape=SHAPE, _archive=survey, _tmpdir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_downscaled_cells_are_smaller_and_keep_fluxes(server, ps1, tmp_path):
    archive, survey = ps1
    wcs = grid(scale=0.8)
    sizes = {}
    for times in (1, 2):
        kept = tmp_path / str(times)
        image = get_ps1_image(
            "r", wcs=wcs, shape=SHAPE, _archive=survey, _cachedir=kept, _cache_downscale=times
        )
        found, expected = fluxes(image, archive.sky, wcs, 25.0, 0.8)
        assert np.median(found / expected) == pytest.approx(1, abs=3e-3)
        sizes[times] = {
            (h[0].header["NAXIS1"], h[0].header["NAXIS2"])
            for path in kept.rglob("*.fits")
            for h in [fits.open(path)]
            if h[0].header["NAXIS"]
        }
    assert sizes == {1: set(), 2: {(239, 239)}}  # bins begin at the reference pixel
    server.forget()
    get_ps1_image(
        "r", wcs=wcs, shape=SHAPE, _archive=survey, _cachedir=tmp_path / "2", _cache_downscale=2
    )
    assert server.requests == []


def test_failures_are_none_and_are_told(server, ps1):
    _, survey = ps1
    said = []
    options = {"shape": SHAPE, "_archive": survey, "verbose": said.append}
    assert get_ps1_image("r", wcs=grid(dec=-50.0), **options) is None
    assert get_ps1_image("B", wcs=grid(), **options) is None
    assert server.requests == []
    server.fault(LIST, status=500)
    survey_in_haste = options | {"_seconds": 0.3}
    assert get_ps1_image("r", wcs=grid(), **survey_in_haste) is None
    assert get_ps1_image_and_mask("r", wcs=grid(), **survey_in_haste) == (None, None)
    text = "\n".join(said)
    assert "south of -31 deg" in text
    assert "bands g, r, i, z, y, not B" in text
    assert "HTTP 500" in text


@pytest.mark.parametrize("ext", ["image", "mask"])
def test_cells_that_cannot_be_put_together_are_none_and_told(ps1, monkeypatch, ext):
    def refuse(*arguments, **options):
        raise NoTemplate("none of 4 images lies on the exposure")

    monkeypatch.setattr("core.templates.survey_image.mosaic", refuse)
    said = []
    found = get_ps1_image(
        "r", ext=ext, wcs=grid(), shape=SHAPE, _archive=ps1[1], verbose=said.append
    )
    assert found is None
    assert f"no {ext}: none of 4 images" in said[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ext": "weight"}, "neither 'image' nor 'mask'"),
        ({"survey": "sdss"}, "neither 'ps1' nor 'ls'"),
        ({"reproject": "swap"}, "neither 'lanczos' nor 'swarp'"),
        ({"_cache_downscale": 0}, "whole number from 1"),
        ({"_cache_downscale": 1.5}, "whole number from 1"),
        ({"shape": None}, "height is not known"),
        ({"_cache_downscale": "2"}, "whole number from 1"),
        ({"wcs": None}, "pixel grid is not known"),
        ({"_tmpdir": "/nowhere/at/all"}, "_tmpdir = '/nowhere/at/all' is no folder"),
    ],
)
def test_arguments_that_make_no_sense(server, ps1, arguments, message):
    options = {"wcs": grid(), "shape": SHAPE, "_archive": ps1[1]} | arguments
    functions = [get_survey_image]
    if "ext" not in arguments:  # of which the other has both
        functions.append(get_survey_image_and_mask)
    for function in functions:
        with pytest.raises(WrongRequest, match=message) as caught:
            function("r", **options)
        assert isinstance(caught.value, ValueError)
    assert server.requests == []


@pytest.mark.parametrize("options", [{"thread": 2}, {"reproject": "swarp", "threads": 2}])
def test_an_unknown_keyword_is_told_before_anything_is_fetched(server, ps1, stand_in, options):
    if "reproject" in options:
        options = options | {"_exe": stand_in}
    for function in (get_ps1_image, get_ps1_image_and_mask):
        with pytest.raises(TypeError, match="unexpected arguments thread"):
            function("r", wcs=grid(), shape=SHAPE, _archive=ps1[1], **options)
    assert server.requests == []


def test_real_pixels_come_back(server):
    """A real piece of skycell 1226.009, scaled and compressed as the archive does it."""
    path = shared_data("panstarrs_cutouts") / "frb190608_panstarrs_rband.fits"
    pixels, header = fits.getdata(path, header=True)
    pixels = pixels.astype(np.float64)
    assert np.isfinite(pixels).all()
    wcs = read_wcs(header, path.name)
    seconds = float(header["EXPTIME"])
    cards = stack_header(wcs, seconds, "r", 1226, 9)
    for kind, body in (
        ("stack", asinh_file(pixels, cards)),
        ("stack.wt", asinh_file(np.full(pixels.shape, 900.0), cards)),
        ("stack.mask", mask_file(np.zeros(pixels.shape, np.uint16), cards)),
    ):
        server.file(path_of(1226, 9, "r", kind), body)
    rows = "\n".join(
        f"1226 9 0 0 r 0.0 {kind} {path_of(1226, 9, 'r', kind)} x 0"
        for kind in ("stack", "stack.wt", "stack.mask")
    )
    listing = f"projcell subcell ra dec filter mjd type filename shortname badflag\n{rows}\n"
    server.route(LIST, lambda request: Answer(listing.encode(), content_type="text/plain"))
    image = get_ps1_image(
        "r", wcs=wcs, shape=pixels.shape, _archive=PanStarrsSurvey(endpoint=server.url)
    )
    # Rounding of the stored magnitudes: a part in a few thousand of what is bright.
    np.testing.assert_allclose(image * seconds, pixels, rtol=1e-3, atol=0.3)


@pytest.fixture
def legacy(server):
    ra, dec = 112.5, 22.12
    wcs = grid(ra, dec, scale=3.0)
    sky = StarSky.lattice(wcs, SHAPE, 25, fwhm=8.0)
    y, x = np.mgrid[0 : SHAPE[0] : 20, 0 : SHAPE[1] : 20]
    bricks = {b.name: b for b in map(brick_at, *(v.tolist() for v in to_icrs(wcs, x, y)))}
    archive = LegacySurveyPlay(sky, {"dr10/south": list(bricks.values())})
    archive.serve(server)
    return archive, wcs, LegacySurvey(endpoint=server.url, pixel_scale=2.62)


def test_legacy_survey(legacy):
    archive, wcs, survey = legacy
    image = get_ls_image("r", wcs=wcs, shape=SHAPE, _archive=survey)
    found, expected = fluxes(image, archive.sky, wcs, 22.5, 3.0)
    assert found.size > 50
    assert found == pytest.approx(expected, rel=2e-3)


def test_legacy_survey_mask(legacy):
    """In the overlap of bricks NPRIMARY is gone: it is primary in one of them."""
    archive, wcs, survey = legacy
    lost = archive.bricks["dr10/south"].pop()
    image, mask = get_ls_image_and_mask("r", wcs=wcs, shape=SHAPE, _archive=survey)
    holes = np.isnan(image)
    assert holes.any(), lost
    allmask_r, nprimary = 1 << 6, 1
    assert (mask[holes] & allmask_r == allmask_r).all()
    assert (mask[~holes] & ~nprimary == 0).all()
    assert (mask[~holes] == 0).mean() > 0.9


def test_swarp_that_is_not_there_is_one_clear_error(server, ps1):
    _, survey = ps1
    with pytest.raises(SWarpFailed, match="SWarp is not installed: no program '/nowhere/swarp'"):
        get_ps1_image(
            "r", wcs=grid(), shape=SHAPE, _archive=survey, reproject="swarp", _exe="/nowhere/swarp"
        )
    assert server.requests == []


@pytest.fixture
def stand_in(tmp_path):
    """A program of one's own, that behaves as SWarp's documentation says."""
    program = tmp_path / "swarp"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {_repository() / STAND_IN} "$@"\n')
    program.chmod(0o755)
    return str(program)


def _repository():
    return Path(__file__).resolve().parents[2]


def test_swarp_is_run_as_it_documents(ps1, stand_in, tmp_path, monkeypatch):
    archive, survey = ps1
    archive.missing.add((1226, 3))
    report = tmp_path / "report.json"
    monkeypatch.setenv("STAND_IN_REPORT", str(report))
    options = {"wcs": grid(), "shape": SHAPE, "_archive": survey, "reproject": "swarp"}
    image = get_ps1_image(
        "r", _exe=stand_in, extra={"COMBINE_TYPE": "AVERAGE", "NTHREADS": 2},
        _workdir=tmp_path / "work", **options,
    )  # fmt: skip
    asked = json.loads(report.read_text())
    assert len(asked["names"]) == 3
    assert asked["parameters"]["COMBINE_TYPE"] == "AVERAGE"
    assert asked["parameters"]["NTHREADS"] == "2"
    assert asked["parameters"]["SUBTRACT_BACK"] == "N"
    assert (tmp_path / "work" / "coadd.fits").exists()
    again = get_ps1_image("r", _exe=stand_in, _workdir=tmp_path / "work", **options)
    assert np.array_equal(np.isnan(again), np.isnan(image))
    ours = get_ps1_image("r", wcs=grid(), shape=SHAPE, _archive=survey)
    both = np.isfinite(image) & np.isfinite(ours)
    assert np.mean(np.isnan(image) == np.isnan(ours)) > 0.99
    # The stand-in takes the nearest pixel and does not scale fluxes: the sky agrees, stars roughly.
    scale = (0.35 / 0.25) ** 2
    assert np.sum(image[both]) * scale == pytest.approx(np.sum(ours[both]), rel=0.05)


def test_swarp_does_not_take_sip(server, ps1, stand_in):
    _, survey = ps1
    wcs = grid()
    wcs.wcs.ctype = "RA---TAN-SIP", "DEC--TAN-SIP"
    wcs.sip = Sip(np.zeros((3, 3)), np.zeros((3, 3)), None, None, wcs.wcs.crpix)
    with pytest.raises(ValueError, match="SWarp knows no SIP"):
        get_ps1_image("r", wcs=wcs, shape=SHAPE, _archive=survey, reproject="swarp", _exe=stand_in)
    assert server.requests == []


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("fail", "status 1; its last words: .*not enough memory"),
        ("sleep", "was stopped after 1 s"),
        ("silent", "left no coadd.fits"),
        ("wrong-size", "made 260 x 219 pixels instead of 260 x 220"),
    ],
)
def test_swarp_that_fails_says_so(ps1, stand_in, monkeypatch, mode, message):
    _, survey = ps1
    monkeypatch.setenv("STAND_IN_MODE", mode)
    with pytest.raises(SWarpFailed, match=message):
        get_ps1_image(
            "r", wcs=grid(), shape=SHAPE, _archive=survey, reproject="swarp", _exe=stand_in,
            seconds=1 if mode == "sleep" else 60,
        )  # fmt: skip


@pytest.mark.skipif(
    shutil.which("swarp") is None and shutil.which("SWarp") is None, reason="SWarp is not installed"
)
def test_the_real_swarp_agrees(ps1):
    archive, survey = ps1
    wcs = grid()
    archive.flags.append((1226, 440, 440, 0x0020))
    options = {"wcs": wcs, "shape": SHAPE, "_archive": survey}
    image, mask = get_ps1_image_and_mask("r", reproject="swarp", **options)
    ours, our_mask = get_ps1_image_and_mask("r", **options)
    theirs, expected = fluxes(image, archive.sky, wcs, 25.0, 0.35)
    assert np.median(theirs / expected) == pytest.approx(1, abs=3e-3)
    found, _ = fluxes(ours, archive.sky, wcs, 25.0, 0.35)
    assert np.median(found / theirs) == pytest.approx(1, abs=3e-3)
    assert (mask & 0x20).any()
    assert (our_mask & 0x20).any()
