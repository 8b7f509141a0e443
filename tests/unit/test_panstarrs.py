"""Templates from the Pan-STARRS archive, as it is played on loopback."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import sep
from astropy.io import fits
from astropy.wcs import WCS

from core.celestial import from_icrs, to_icrs
from core.deadline import Deadline
from core.errors import (
    ArchiveUnavailable,
    ForbiddenAddress,
    NoTemplate,
    RequestRefused,
    UnexpectedAnswer,
)
from core.image import MaskBit
from core.reading import read_wcs
from core.templates.cache import NoCache, TemplateCache
from core.templates.cells.cell import cell_wcs
from core.templates.cells.survey import SurveyTemplates
from core.templates.cells.survey_bits import PANSTARRS
from core.templates.chain import ChainTemplates, Link
from core.templates.fetching.archive_files import ArchiveFiles
from core.templates.fetching.fetcher import Fetcher, FetchPolicy
from core.templates.panstarrs import PanStarrsSurvey
from core.templates.projected import key_of
from core.templates.template import Identifying, TemplateRequest
from tests.archive.panstarrs import LIST, PanStarrsPlay, Projection
from tests.archive.server import ArchiveServer
from tests.archive.star_sky import StarSky

EQUATOR = Projection(1226, 40.0, 10.0)
CELL_SIZE = 400 * 0.25 / 3600  # of the small cells, degrees
APERTURE = 3 * 1.2 / 0.25


@pytest.fixture
def server():
    with ArchiveServer() as running:
        yield running


def play(server, *projections, step=40, **what):
    """Let the server play an archive with stars on all its cells."""
    projections = projections or (EQUATOR,)
    skies = [StarSky.lattice(p.wcs, p.shape, step) for p in projections]
    sky = StarSky(
        *(np.concatenate([getattr(s, name) for s in skies]) for name in ("ra", "dec", "mag"))
    )
    archive = PanStarrsPlay(sky, tuple(projections), **what)
    archive.serve(server)
    return archive


def provider(server, cache=None, **options):
    fetcher = Fetcher(FetchPolicy((server.host,), attempts=2, backoff_seconds=0.01))
    survey = PanStarrsSurvey(endpoint=server.url, cell_size=CELL_SIZE)
    return SurveyTemplates(survey, ArchiveFiles(fetcher, cache or NoCache()), **options)


def exposure(ra=40.0, dec=10.0, shape=(300, 320), scale=0.3, angle=20.0, mirrored=False):
    """An exposure that is rotated and of another scale; the centre is in its midst."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = ra, dec
    wcs.wcs.crpix = shape[1] / 2 + 0.5, shape[0] / 2 + 0.5
    turn = np.radians(angle)
    sign = 1 if mirrored else -1
    wcs.wcs.cd = scale / 3600 * np.array(
        [[sign * np.cos(turn), np.sin(turn)], [-sign * np.sin(turn), np.cos(turn)]]
    )  # fmt: skip
    return TemplateRequest(wcs, shape, band="r", min_overlap=0.5)


def carried(x, y, here, there):
    """The pixel of one grid that lies where a pixel of another does."""
    column, row = from_icrs(there, *to_icrs(here, [x], [y]))
    return float(column[0]), float(row[0])


def photometry(template, archive, margin=20, fwhm=1.2):
    """Fluxes of the stars inside the template, and what they ought to be."""
    image = template.image
    x, y = archive.sky.places(image.wcs)
    ny, nx = image.shape
    inside = (x > margin) & (x < nx - margin) & (y > margin) & (y < ny - margin)
    data = image.data - np.median(image.data)
    flux, _, flag = sep.sum_circle(
        data, x[inside], y[inside], APERTURE, mask=(image.mask & MaskBit.NO_DATA) != 0
    )
    good = flag == 0
    return flux[good], archive.sky.fluxes(image.facts.zero_point)[inside][good]


def test_fluxes_across_the_borders_of_cells_of_different_depth(server):
    """Four cells meet in the middle; each has its own exposure time, so its own zero point."""
    times = {(1226, 0): 300.0, (1226, 1): 900.0, (1226, 2): 1200.0, (1226, 3): 2000.0}
    archive = play(server, exposure_time=times)
    template = provider(server).find(exposure())
    assert not template.on_grid
    assert template.facts.overlap == 1
    assert template.facts.zero_point == template.image.facts.zero_point == 25.0
    assert (template.facts.provider, template.facts.band) == ("panstarrs", "r")
    assert template.facts.n_frames == 12
    assert len(template.sources) == 4
    found, expected = photometry(template, archive)
    assert found.size > 30
    assert found == pytest.approx(expected, rel=1e-3)


def test_one_projection_is_pasted_and_not_interpolated(server):
    """The template's pixels are those of the cells: its grid is theirs, moved by whole pixels."""
    archive = play(server)
    template = provider(server).find(exposure())
    image = template.image
    x, y = carried(0, 0, image.wcs, EQUATOR.wcs)
    truth = archive.sky.drawn(EQUATOR.wcs, EQUATOR.shape, 25.0)
    rows, columns = round(y), round(x)
    assert (y, x) == pytest.approx((rows, columns), abs=1e-4)
    expected = truth[rows : rows + image.shape[0], columns : columns + image.shape[1]]
    assert np.abs(image.data - expected).max() < 0.1 * archive.sigma


def test_variance_and_noise_agree(server):
    archive = play(server, noisy=True, step=80)
    template = provider(server).find(exposure())
    image = template.image
    bare = image.data - archive.sky.drawn(image.wcs, image.shape, 25.0)
    assert np.var(bare[image.mask == 0]) == pytest.approx(np.mean(image.variance), rel=0.05)
    assert np.mean(image.variance) == pytest.approx(archive.sigma**2, rel=0.02)


def test_mask_bits_become_flags(server):
    """Each bit by itself, at its pixel; those that are no defect leave none."""
    row, column = EQUATOR.shape[0] // 2, EQUATOR.shape[1] // 2
    flags = [(1226, row, column + 3 * k, 1 << k) for k in range(16)]
    play(server, flags=flags)
    template = provider(server).find(exposure())
    image = template.image
    x0, y0 = (round(place) for place in carried(column, row, EQUATOR.wcs, image.wcs))
    words = """DETECTOR FLAT DARK BLANK CTE SAT LOW SUSPECT CR SPIKE GHOST STREAK STARCORE
    CONV.BAD CONV.POOR MARK"""
    names = words.split()
    found = {name: int(image.mask[y0, x0 + 3 * k]) for k, name in enumerate(names)}
    bad = int(MaskBit.BAD)
    assert found == {
        "DETECTOR": bad, "FLAT": bad, "DARK": bad, "BLANK": MaskBit.NO_DATA, "CTE": bad,
        "SAT": MaskBit.SATURATED | MaskBit.NO_DATA, "LOW": bad, "SUSPECT": 0,
        "CR": MaskBit.COSMIC_RAY, "SPIKE": bad, "GHOST": bad, "STREAK": bad, "STARCORE": 0,
        "CONV.BAD": bad, "CONV.POOR": 0, "MARK": 0,
    }  # fmt: skip
    assert np.isfinite(image.data).all()


def test_the_survey_masks_what_its_own_pipeline_masks():
    """MASK.VALUE of the stacks' masks is 8575."""
    masked = PANSTARRS.value_of(*PANSTARRS.flags)
    assert masked & 8575 == 8575
    assert masked == 8575 | 0x200 | 0x400 | 0x800


def test_cells_of_two_projections(server):
    """The second one's tangent point lies elsewhere: interpolated, and the fluxes kept."""
    width = EQUATOR.shape[1] * 0.25 / 3600 / np.cos(np.radians(10.0))
    other = Projection(1227, 40.0 - 0.9 * width, 10.0)
    archive = play(server, EQUATOR, other)
    between = exposure(ra=40.0 - 0.45 * width, angle=-75.0)
    template = provider(server).find(between)
    assert template.facts.overlap == 1
    assert len({name.split(".")[1] for name in template.sources}) == 2
    found, expected = photometry(template, archive)
    # Stars that both lattices hold lie close to each other; only the lonely ones are compared.
    assert found.size > 20
    ratio = found / expected
    assert np.median(ratio) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 10.0), (0.01, 0.0), (150.0, 90.0), (80.0, 89.98)])
def test_at_the_pole_and_across_zero_hours(server, ra, dec):
    archive = play(server, Projection(1, ra, dec))
    template = provider(server).find(exposure(ra, dec, mirrored=True))
    assert template.facts.overlap == 1
    found, expected = photometry(template, archive)
    assert found.size > 30
    assert found == pytest.approx(expected, rel=1e-3)


def test_outside_the_survey_nothing_is_asked(server):
    play(server)
    with pytest.raises(NoTemplate, match="south of -31 deg"):
        provider(server).find(exposure(dec=-45.0))
    assert server.requests == []


def test_a_band_that_it_has_not_is_not_asked_for(server):
    play(server)
    request = exposure()
    for band in ("B", None):
        with pytest.raises(NoTemplate, match=r"bands g, r, i, z, y|band is not known"):
            provider(server).find(TemplateRequest(request.wcs, request.shape, band=band))
    assert server.requests == []


def test_bands_are_mapped(server):
    play(server)
    request = exposure()
    wanted = TemplateRequest(request.wcs, request.shape, band="V", min_overlap=0.5)
    chain = ChainTemplates([Link(provider(server), bands={"V": "g"})])
    template = chain.find(wanted)
    assert template.facts.band == "g"
    assert server.count(".stk.g.") > 0
    assert server.count(".stk.r.") == 0


def test_too_wide_a_field_is_not_asked_for(server):
    play(server)
    with pytest.raises(NoTemplate, match="more than the limit of 4") as caught:
        provider(server, max_cells=4).find(exposure(shape=(4000, 4000)))
    assert f"fields of up to about {CELL_SIZE:.2g} deg on a side work" in str(caught.value)
    assert server.requests == []


def test_a_missing_cell_is_masked_and_told(server):
    play(server, missing={(1226, 3)})
    request = exposure()
    template = provider(server).find(request)
    assert 0.6 < template.facts.overlap < 0.9
    holes = (template.image.mask & MaskBit.NO_DATA) != 0
    assert 0.1 < holes.mean() < 0.4
    assert len(template.sources) == 3
    assert (template.origin[holes] == 255).all()
    strict = TemplateRequest(request.wcs, request.shape, band="r", min_overlap=0.95)
    with pytest.raises(NoTemplate, match=r"covers only \d\d % of the exposure.*1 cell missing"):
        provider(server).find(strict)


def test_where_there_is_no_cell_at_all(server):
    play(server)
    with pytest.raises(NoTemplate, match="no cell is there"):
        provider(server).find(exposure(ra=41.0))


def test_everything_is_fetched_once(server, tmp_path):
    """Lists, images, weights, masks; and the hole too."""
    play(server, missing={(1226, 3)})
    cache = TemplateCache(tmp_path / "cache")
    first = provider(server, cache).find(exposure())
    asked = len(server.requests)
    assert server.count(LIST) > 0
    again = provider(server, cache).find(exposure())
    assert len(server.requests) == asked
    assert np.array_equal(first.image.data, again.image.data)
    # A neighbour in time, a little off: its cells are there, and most of its questions too.
    server.forget()
    provider(server, cache).find(exposure(ra=40.002))
    assert server.count(".fits") == 0


def test_other_bands_share_the_lists(server, tmp_path):
    play(server)
    cache = TemplateCache(tmp_path / "cache")
    provider(server, cache).find(exposure())
    server.forget()
    request = exposure()
    wanted = TemplateRequest(request.wcs, request.shape, band="i", min_overlap=0.5)
    provider(server, cache).find(wanted)
    assert server.count(LIST) == 0
    assert server.count(".stk.i.") == 12


def test_only_cells_that_are_touched_are_fetched_whole(server):
    play(server)
    small = exposure(ra=40.0 + 60 / 3600, dec=10.0 - 60 / 3600, shape=(100, 100))
    provider(server).find(small)
    assert server.count("unconv.fits") == 1
    assert server.count("unconv.mask.fits") == 1


def test_coarse_exposures_get_binned_cells(server, tmp_path):
    """1 arcsec: two by two pixels become one; cells still fall onto each other."""
    archive = play(server, step=60, flags=[(1226, 440, 440, 0x20)])
    cache = TemplateCache(tmp_path / "cache")
    wide = exposure(shape=(90, 90), scale=1.0)
    template = provider(server, cache).find(wide)
    scale = np.sqrt(abs(np.linalg.det(template.image.wcs.pixel_scale_matrix))) * 3600
    assert scale == pytest.approx(0.5, rel=1e-3)
    image = template.image
    x, y = archive.sky.places(image.wcs)
    ny, nx = image.shape
    inside = (x > 15) & (x < nx - 15) & (y > 15) & (y < ny - 15)
    flux, _, _ = sep.sum_circle(
        image.data - np.median(image.data), x[inside], y[inside], APERTURE / 2
    )
    assert flux == pytest.approx(archive.sky.fluxes(25.0)[inside], rel=3e-3)
    assert np.median(image.variance) == pytest.approx(4 * archive.sigma**2, rel=0.02)
    x0, y0 = (round(place) for place in carried(440, 440, EQUATOR.wcs, image.wcs))
    flag = image.mask[y0, x0]
    assert flag & MaskBit.SATURATED
    kinds = {entry.stored.kind for entry in cache.entries()}
    assert kinds == {"panstarrs-list", "panstarrs-binned"}


@pytest.mark.parametrize(("scale", "expected"), [(0.2, 0.25), (0.55, 0.25), (0.6, 0.5), (1.6, 1.0)])
def test_templates_are_hardly_larger_than_the_exposure(server, scale, expected):
    play(server, step=200)
    size = int(60 / scale)
    image = provider(server).find(exposure(shape=(size, size), scale=scale)).image
    found = np.sqrt(abs(np.linalg.det(image.wcs.pixel_scale_matrix))) * 3600
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_try_that_broke_off_is_gone_on_with(server, tmp_path):
    """Planes that came are not fetched once more; nothing but the binned cells stays."""
    play(server)
    cache = TemplateCache(tmp_path / "cache")
    coarse = exposure(scale=1.2, shape=(75, 80))
    server.fault("unconv.wt", status=503)
    with pytest.raises(ArchiveUnavailable):
        provider(server, cache).find(coarse)
    images = {r.path for r in server.requests if r.path.endswith("unconv.fits")}
    assert images
    server.mend()
    server.forget()
    assert provider(server, cache).find(coarse).facts.overlap == 1
    assert not images & {r.path for r in server.requests}
    assert "panstarrs-part" not in {
        kind for kind, found in cache.statistics().kinds.items() if found.size
    }


def test_a_failing_archive_is_unavailable(server):
    play(server)
    server.fault("unconv.wt", status=503)
    with pytest.raises(ArchiveUnavailable, match="503"):
        provider(server).find(exposure())


def test_the_deadline_bounds_it(server):
    play(server)
    server.fault("unconv", delay=5.0)
    request = exposure()
    hasty = TemplateRequest(request.wcs, request.shape, band="r", deadline=Deadline(0.5))
    with pytest.raises(ArchiveUnavailable):
        provider(server).find(hasty)


@pytest.mark.parametrize(
    "path",
    [
        "http://elsewhere.example/x.fits",
        "//elsewhere.example/x.fits",
        "/../../etc/x.fits",
        "@elsewhere.example/x.fits",
        "/rings.v3.skycell/1226/000/x.fits?next=/y.fits",
        "relative.fits",
    ],
)
def test_paths_of_an_answer_lead_nowhere_else(server, path):
    rows = [f"1226 0 40.0 10.0 r 0.0 {kind} {path} x 0" for kind in ("stack", "stack.wt")]
    body = "projcell subcell ra dec filter mjd type filename shortname badflag\n" + "\n".join(rows)
    play(server)
    server.fault(LIST, body=body.encode())
    with pytest.raises(UnexpectedAnswer, match="no path of a file"):
        provider(server).find(exposure())
    assert {request.path for request in server.requests} == {LIST}


def test_the_host_must_be_allowed(server):
    survey = PanStarrsSurvey(endpoint="http://127.0.0.2:9")
    files = ArchiveFiles(Fetcher(FetchPolicy((server.host,))), NoCache())
    with pytest.raises(ForbiddenAddress):
        SurveyTemplates(survey, files).find(exposure())


@pytest.mark.parametrize("body", [b"ERROR: try later\nand again\n", b"projcell subcell\n1 2\n"])
def test_what_is_no_list_is_unexpected_and_not_kept(server, tmp_path, body):
    play(server)
    server.fault(LIST, times=None, body=body)
    cache = TemplateCache(tmp_path / "cache")
    with pytest.raises(UnexpectedAnswer, match="not a list of files"):
        provider(server, cache).find(exposure())
    server.mend()
    assert provider(server, cache).find(exposure()).facts.overlap == 1


@pytest.mark.parametrize("status", [404, 410])
def test_a_list_service_that_moved_is_no_hole(server, tmp_path, status):
    play(server)
    server.fault(LIST, times=None, status=status)
    cache = TemplateCache(tmp_path / "cache")
    with pytest.raises(RequestRefused, match=f"HTTP {status}.*check the address"):
        provider(server, cache).find(exposure())
    server.mend()
    assert provider(server, cache).find(exposure()).facts.overlap == 1


def test_old_wcs_keywords_are_understood():
    """PC001001 and its kin, as the full sky cells have them; without a warning."""
    header = fits.Header(
        {"NAXIS1": 100, "NAXIS2": 100, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
        | {"CRVAL1": 40.0, "CRVAL2": 10.0, "CRPIX1": 50.0, "CRPIX2": 50.0}
        | {"CDELT1": 0.25 / 3600, "CDELT2": 0.25 / 3600}
    )
    new, old = header.copy(), header.copy()
    for row, column, value in ((1, 1, -1.0), (1, 2, 0.1), (2, 1, 0.1), (2, 2, 1.0)):
        new[f"PC{row}_{column}"] = value
        old[f"PC00{row}00{column}"] = value
    layout = PanStarrsSurvey().format("r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        places = [cell_wcs(h, "x", layout).all_pix2world([[10, 80]], 0) for h in (new, old)]
    assert places[0] == pytest.approx(places[1], abs=1e-12)
    assert read_wcs(old, "x").all_pix2world([[10, 80]], 0) == pytest.approx(places[0], abs=1e-12)
    assert cell_wcs(old, "x", layout).wcs.radesys == "FK5"
    assert "PC001001" in old


def test_a_template_is_known_before_it_is_read(server):
    """The same grid and band: the same identity; nothing is asked for it."""
    play(server)
    templates = provider(server)
    assert isinstance(templates, Identifying)
    expected = templates.identify(exposure())
    assert server.requests == []
    assert templates.find(exposure()).identity == expected
    assert provider(server).identify(exposure()) == expected
    others = [
        exposure(), exposure(ra=40.0001), exposure(angle=21.0), replace(exposure(), band="i"),
        exposure(scale=1.2, shape=(75, 80)),
    ]  # fmt: skip
    keys = {key_of(templates.identify(other), other).digest for other in others}
    assert len(keys) == 5
    with pytest.raises(NoTemplate, match="south of"):
        templates.identify(exposure(dec=-60.0))


def test_a_template_with_missing_cells_is_another_one(server, tmp_path, monkeypatch):
    archive = play(server, missing={(1226, 3)})
    cache = TemplateCache(tmp_path / "cache", negative_seconds=0.0)
    templates = provider(server, cache)
    whole = templates.identify(exposure())
    partial = templates.find(exposure()).identity
    assert partial[: len(whole)] == whole
    assert partial[-1] == "skycell.1226.003"
    assert templates.identify(exposure()) == partial
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert templates.identify(exposure()) != partial
    archive.missing.clear()
    assert templates.find(exposure()).identity == whole == templates.identify(exposure())
