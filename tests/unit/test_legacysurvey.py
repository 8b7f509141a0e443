"""Templates from the Legacy Surveys' archive, as it is played on loopback."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sep
from astropy.wcs import WCS

from core.celestial import from_icrs, to_icrs
from core.errors import NoTemplate
from core.image import MaskBit
from core.templates.cache import NoCache, TemplateCache
from core.templates.cells.bricks import brick_at
from core.templates.cells.survey import SurveyTemplates
from core.templates.cells.survey_bits import legacy_survey_bits
from core.templates.fetching.archive_files import ArchiveFiles
from core.templates.fetching.fetcher import Fetcher, FetchPolicy
from core.templates.legacysurvey import LegacySurvey
from core.templates.template import TemplateRequest
from tests.archive.legacysurvey import LegacySurveyPlay
from tests.archive.server import ArchiveServer
from tests.archive.star_sky import StarSky

SCALE = 2.62
FWHM = 8.0


@pytest.fixture
def server():
    with ArchiveServer() as running:
        yield running


def exposure(ra, dec, shape=(200, 220), scale=3.0, angle=25.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = ra, dec
    wcs.wcs.crpix = shape[1] / 2 + 0.5, shape[0] / 2 + 0.5
    turn = np.radians(angle)
    wcs.wcs.cd = scale / 3600 * np.array(
        [[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    )  # fmt: skip
    return TemplateRequest(wcs, shape, band="r", min_overlap=0.5)


def play(server, request, regions=("dr10/south",), leave_out=(), step=25, **what):
    """Let the server play an archive with all bricks around an exposure, and stars on them."""
    sky = StarSky.lattice(request.wcs, request.shape, step, fwhm=FWHM)
    ny, nx = request.shape
    y, x = np.mgrid[-40 : ny + 40 : 20, -40 : nx + 40 : 20]
    ra, dec = to_icrs(request.wcs, x, y)
    bricks = {b.name: b for b in map(brick_at, ra.tolist(), dec.tolist())}
    kept = [b for b in bricks.values() if b.name not in leave_out]
    archive = LegacySurveyPlay(sky, dict.fromkeys(regions, kept), scale=SCALE, **what)
    archive.serve(server)
    return archive


def provider(server, cache=None, **options):
    fetcher = Fetcher(FetchPolicy((server.host,), attempts=2, backoff_seconds=0.01))
    survey = LegacySurvey(endpoint=server.url, pixel_scale=SCALE)
    return SurveyTemplates(survey, ArchiveFiles(fetcher, cache or NoCache()), **options)


def photometry(template, archive, margin=12):
    image = template.image
    x, y = archive.sky.places(image.wcs)
    ny, nx = image.shape
    inside = (x > margin) & (x < nx - margin) & (y > margin) & (y < ny - margin)
    data = image.data - np.median(image.data)
    flux, _, flag = sep.sum_circle(
        data, x[inside], y[inside], 3 * FWHM / SCALE, mask=(image.mask & MaskBit.NO_DATA) != 0
    )
    good = flag == 0
    return flux[good], archive.sky.fluxes(22.5)[inside][good]


@pytest.mark.parametrize(("ra", "dec"), [(112.5, 22.12), (0.0, 0.1), (200.0, 60.1)])
def test_fluxes_across_bricks(server, ra, dec):
    """Several bricks, each of its own tangent plane, in nanomaggies."""
    request = exposure(ra, dec)
    archive = play(server, request)
    template = provider(server).find(request)
    assert template.facts.overlap == 1
    assert template.facts.zero_point == template.image.facts.zero_point == 22.5
    assert (template.facts.provider, template.image.facts.band) == ("legacysurvey", "r")
    assert len(template.sources) >= 2
    found, expected = photometry(template, archive)
    assert found.size > 40
    assert found == pytest.approx(expected, rel=2e-3)
    assert np.median(found / expected) == pytest.approx(1, abs=3e-4)


def test_variance_is_that_of_the_weights(server):
    request = exposure(112.67, 22.25, shape=(150, 150))
    archive = play(server, request)
    template = provider(server).find(request)
    assert len(template.sources) == 1
    assert np.abs(template.image.variance / archive.sigma**2 - 1).max() < 1e-3


def test_noise_of_the_mosaic_is_not_underestimated(server):
    """Neighbouring bricks show the same exposures, so that an overlap is no deeper."""
    request = exposure(112.5, 22.12)
    archive = play(server, request, noisy=True)
    image = provider(server).find(request).image
    assert np.median(image.variance) == pytest.approx(archive.sigma**2, rel=0.02)
    assert image.variance.min() > 0.9 * archive.sigma**2


def test_mask_bits_become_flags(server):
    """Of the band, and no others."""
    request = exposure(112.67, 22.25, shape=(150, 150))
    text = "BRIGHT SATUR_G SATUR_R SATUR_Z ALLMASK_G ALLMASK_R MEDIUM GALAXY SATUR_I"
    names = text.split()
    values = legacy_survey_bits("r").values
    flags = [("1126p222", 180, 150 + 4 * k, values[name]) for k, name in enumerate(names)]
    archive = play(server, request, flags=flags)
    image = provider(server).find(request).image
    brick = archive.wcs(brick_at(112.67, 22.25))
    x, y = from_icrs(image.wcs, *to_icrs(brick, [150], [180]))
    row, column = round(float(y[0])), round(float(x[0]))
    found = {name: int(image.mask[row, column + 4 * k]) for k, name in enumerate(names)}
    assert {name: flag for name, flag in found.items() if flag} == {
        "SATUR_R": MaskBit.SATURATED,
        "ALLMASK_R": MaskBit.BAD,
    }
    assert np.count_nonzero(image.mask) == 2  # NPRIMARY is no defect


def test_missing_weight_is_no_data(server):
    request = exposure(112.67, 22.25, shape=(150, 150))
    archive = play(server, request)
    archive.holes.append(("1126p222", 180, 150))
    image = provider(server).find(request).image
    brick = archive.wcs(brick_at(112.67, 22.25))
    x, y = from_icrs(image.wcs, *to_icrs(brick, [150], [180]))
    assert image.mask[round(float(y[0])), round(float(x[0]))] == MaskBit.NO_DATA


def test_north_is_looked_up_in_the_north_first(server):
    """Dec +60, north of the Galactic plane: DR9's north; the south is never asked."""
    request = exposure(200.0, 60.1, shape=(60, 60))
    play(server, request, regions=("dr9/north", "dr10/south"))
    provider(server).find(request)
    assert server.count("/dr9/north/") > 0
    assert server.count("/dr10/south/") == 0


def test_the_other_region_is_tried(server):
    """South of the border, but only the north has it."""
    request = exposure(200.0, 32.1, shape=(60, 60))
    play(server, request, regions=("dr9/north",))
    template = provider(server).find(request)
    assert template.facts.overlap == 1
    first = server.requests[0].path
    assert first.startswith("/dr10/south/")


def test_a_missing_brick_is_masked(server, tmp_path):
    request = exposure(112.5, 22.12)
    lost = brick_at(112.5, 22.12).name
    play(server, request, leave_out={lost})
    cache = TemplateCache(tmp_path / "cache")
    template = provider(server, cache).find(replace(request, min_overlap=0.1))
    holes = (template.image.mask & MaskBit.NO_DATA) != 0
    assert 0.1 < 1 - template.facts.overlap < 0.9
    assert holes.any()
    assert lost not in template.sources
    server.forget()
    provider(server, cache).find(replace(request, min_overlap=0.1))
    assert server.requests == []  # the hole is known too


def test_outside_nothing_is_asked(server):
    with pytest.raises(NoTemplate, match=r"outside of Dec -90 to \+85"):
        provider(server).find(exposure(30.0, 88.0))
    with pytest.raises(NoTemplate, match="bands g, r, i, z"):
        provider(server).find(replace(exposure(30.0, 8.0), band="y"))
    assert server.requests == []


def test_no_brick_at_all(server):
    request = exposure(30.0, 8.0, shape=(40, 40))
    play(server, request, regions=())
    with pytest.raises(NoTemplate, match="missing: "):
        provider(server).find(request)
