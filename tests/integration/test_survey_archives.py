"""The same field from Pan-STARRS and from the Legacy Surveys: on loopback, or with ``-m archives``
from the real archives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import sep
from astropy.wcs import WCS

from core.image import MaskBit
from core.resample import resample
from core.templates import get_survey_image_and_mask
from core.templates.cache import TemplateCache
from core.templates.cells.bricks import brick_at
from core.templates.cells.survey import SurveyTemplates
from core.templates.fetching.addresses import host_of
from core.templates.fetching.archive_files import ArchiveFiles
from core.templates.fetching.fetcher import Fetcher, FetchPolicy
from core.templates.legacysurvey import LegacySurvey
from core.templates.panstarrs import PanStarrsSurvey
from core.templates.template import TemplateRequest
from tests.archive.legacysurvey import LegacySurveyPlay
from tests.archive.panstarrs import PanStarrsPlay, Projection
from tests.archive.server import ArchiveServer
from tests.archive.star_sky import StarSky

RA, DEC = 150.125, 2.21  # in COSMOS, which both surveys know
SHAPE = (220, 240)
SCALE = 0.5


@dataclass(frozen=True)
class Archives:
    panstarrs: PanStarrsSurvey
    legacy: LegacySurvey
    agreement: float  # magnitudes to which stars agree: the bands r are not quite the same


@pytest.fixture(params=["loopback", pytest.param("real", marks=pytest.mark.archives)])
def archives(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archives]:
    if request.param == "real":
        yield Archives(PanStarrsSurvey(), LegacySurvey(), 0.1)
        return
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    wcs = exposure().wcs
    assert wcs is not None
    sky = StarSky.lattice(wcs, SHAPE, 40, mag=(16.0, 18.0), fwhm=3.0)
    brick = brick_at(RA, DEC)
    with ArchiveServer() as server:
        PanStarrsPlay(sky, (Projection(1260, RA, DEC, cell=300),), noisy=True).serve(server)
        LegacySurveyPlay(sky, {"dr10/south": [brick]}, pixels=950, scale=1.0, noisy=True).serve(
            server
        )
        yield Archives(
            PanStarrsSurvey(server.url, cell_size=300 * 0.25 / 3600),
            LegacySurvey(server.url, pixel_scale=1.0),
            0.01,
        )


def exposure() -> TemplateRequest:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = RA, DEC
    wcs.wcs.crpix = SHAPE[1] / 2, SHAPE[0] / 2
    turn = np.radians(17.0)
    wcs.wcs.cd = SCALE / 3600 * np.array(
        [[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    )  # fmt: skip
    return TemplateRequest(wcs, SHAPE, band="r", min_overlap=0.9)


def magnitudes(
    image: npt.NDArray[np.float32], zero_point: float, x: npt.ArrayLike, y: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    data = np.ascontiguousarray(image, dtype=np.float64)
    flux, _, _ = sep.sum_circle(data, x, y, 5 / SCALE, bkgann=(7 / SCALE, 10 / SCALE))
    return np.asarray(zero_point - 2.5 * np.log10(flux))


def test_both_surveys_show_the_same_stars(archives: Archives, tmp_path: object) -> None:
    """Places and magnitudes, by the providers and by the documented functions."""
    request = exposure()
    assert request.wcs is not None
    cache = TemplateCache(f"{tmp_path}/cache")
    images, zero_points = [], []
    for survey in (archives.panstarrs, archives.legacy):
        files = ArchiveFiles(Fetcher(FetchPolicy((host_of(survey.endpoint),))), cache)
        template = SurveyTemplates(survey, files).find(request)
        assert template.facts.overlap > 0.99
        on_grid = resample(template.image, request.wcs, SHAPE)
        assert np.mean(on_grid.mask == 0) > 0.9
        assert on_grid.variance is not None
        rms = np.sqrt(np.median(on_grid.variance))
        scatter = 1.4826 * np.median(np.abs(on_grid.data - np.median(on_grid.data)))
        assert scatter == pytest.approx(rms, rel=0.5)
        name = {"panstarrs": "ps1", "legacysurvey": "ls"}[survey.name]
        image, mask = get_survey_image_and_mask(
            "r", survey=name, wcs=request.wcs, shape=SHAPE, _archive=survey,
            _cachedir=f"{tmp_path}/cache",
        )  # fmt: skip
        assert image is not None
        assert mask is not None
        good = (on_grid.mask & MaskBit.NO_DATA == 0) & np.isfinite(image)
        assert np.corrcoef(image[good], on_grid.data[good])[0, 1] > 0.99
        images.append(on_grid.data)
        zero_points.append(survey.zero_point)
    found = sep.extract(
        np.ascontiguousarray(images[0] - np.median(images[0])), 10,
        err=float(1.4826 * np.median(np.abs(images[0] - np.median(images[0])))),
    )  # fmt: skip
    inside = (found["x"] > 25) & (found["x"] < SHAPE[1] - 25)
    inside &= (found["y"] > 25) & (found["y"] < SHAPE[0] - 25)
    stars = found[inside]
    assert len(stars) >= 3
    ours, theirs = (
        magnitudes(image, zero_point, stars["x"], stars["y"])
        for image, zero_point in zip(images, zero_points, strict=True)
    )
    assert np.nanmedian(ours - theirs) == pytest.approx(0, abs=archives.agreement)
