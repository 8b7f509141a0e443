"""The same field by every way to a HiPS, on loopback and, with ``-m archives``, from CDS itself.

The tree's address is that of the survey's own ``properties`` (``moc_access_url``), the service's
that of https://alasky.cds.unistra.fr/hips-image-services/hips2fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from core.resample import resample
from core.tangent import TangentGrid
from core.templates import get_hips_image
from core.templates.fetching.fetcher import Fetcher, FetchPolicy
from core.templates.hips.hips2fits import HIPS2FITS_ENDPOINTS, default_fetcher
from core.templates.hips.provider import HipsTemplates
from core.templates.hips.survey import HipsSurvey
from core.templates.template import TemplateRequest
from tests.archive.hips import Hips2FitsService, StarField, write_hips
from tests.archive.server import ArchiveServer

RA, DEC, SHAPE = 132.85, 11.81, (300, 320)  # M67


@dataclass(frozen=True)
class Source:
    hips: str
    tree: str
    endpoints: tuple[str, ...]
    fetcher: Fetcher


@pytest.fixture(params=["loopback", pytest.param("real", marks=pytest.mark.archives)])
def source(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Source]:
    if request.param == "real":
        tree = "https://alasky.cds.unistra.fr/DSS/DSS2Merged"
        fetcher = default_fetcher((tree, *HIPS2FITS_ENDPOINTS))
        yield Source("CDS/P/DSS2/red", tree, HIPS2FITS_ENDPOINTS, fetcher)
        return
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sky = StarField.random(RA, DEC, 0.08, 60, sigma=2.0, pixel=1.0, level=4000.0)
    write_hips(tmp_path, sky, exposure().wcs, SHAPE, order=10, width=128)
    with ArchiveServer() as server:
        service = Hips2FitsService({"CDS/P/DSS2/red": sky})
        endpoints = service.at(server, "/one"), service.at(server, "/two")
        server.tree("/tree", tmp_path)
        fetcher = Fetcher(FetchPolicy((server.host,)))
        yield Source("CDS/P/DSS2/red", f"{server.url}/tree", endpoints, fetcher)


def exposure() -> TemplateRequest:
    grid = TangentGrid(RA, DEC, 1.2 / 3600, 15.0, SHAPE, (159.5, 149.5))
    return TemplateRequest(grid.wcs, SHAPE, "r")


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    good = np.isfinite(one) & np.isfinite(other)
    assert good.mean() > 0.9
    return float(np.corrcoef(one[good], other[good])[0, 1])


def test_all_ways_show_the_same_sky(source: Source) -> None:
    request = exposure()
    images = []
    for survey in (HipsSurvey(tree=source.tree), HipsSurvey(hips=source.hips)):
        provider = HipsTemplates([survey], fetcher=source.fetcher, endpoints=source.endpoints)
        template = provider.find(request)
        assert template.facts.overlap > 0.99
        images.append(resample(template.image, request.wcs, SHAPE).data)
    for endpoint in source.endpoints:
        image = get_hips_image(
            source.hips, wcs=request.wcs, shape=SHAPE, get_header=False, _endpoints=(endpoint,)
        )
        assert image is not None
        images.append(image)
    for other in images[1:]:
        assert likeness(images[0], other) > 0.97
    mirrored = images[1][:, ::-1]
    assert likeness(images[0], mirrored) < 0.5
