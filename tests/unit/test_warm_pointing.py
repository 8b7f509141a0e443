"""A pointing that was worked on before needs no archive any more, nor the files that came of it."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import InputUnavailable
from core.image import ExposureFacts, Image
from core.noise import measure_sky, with_noise
from core.stars import find_sources
from core.templates.cache import TemplateCache
from core.templates.chain import ChainTemplates, Link
from core.templates.directory import DirectoryTemplates
from core.templates.projected import template_on_grid
from tests.archive.server import ArchiveServer
from tests.unit.test_panstarrs import exposure, play, provider


@pytest.fixture
def server():
    with ArchiveServer() as running:
        yield running


def chain(server, cache, folder):
    """A folder that has nothing, and then the archive."""
    folder.mkdir(exist_ok=True)
    return ChainTemplates([Link(DirectoryTemplates(folder)), Link(provider(server, cache), 60.0)])


def science(sky, request, seed):
    light = sky.drawn(request.wcs, request.shape, 25.0)
    noise = np.random.default_rng(seed).normal(300, 4, request.shape)
    image = Image(
        (light + noise).astype(np.float32), np.zeros(request.shape, np.uint16), wcs=request.wcs,
        facts=ExposureFacts(fwhm=4.0, band="r"),
    )  # fmt: skip
    level = measure_sky(image)
    return with_noise(image, level), find_sources(image.data - level.level, level.rms, image.mask)


def test_a_warm_pointing_needs_no_archive(server, tmp_path):
    archive = play(server)
    request = exposure()
    cache = TemplateCache(tmp_path / "cache")
    templates = chain(server, cache, tmp_path / "folder")
    first = template_on_grid(templates, request, *science(archive.sky, request, 1), cache=cache)
    assert first.facts.provider == "panstarrs"
    assert not first.kept
    assert server.requests

    server.forget()
    for entry in list(cache.entries()):
        if entry.stored.kind != "projected":
            cache.ledger.remove(entry.stored, None)
    again = template_on_grid(
        chain(server, cache, tmp_path / "folder"), request, *science(archive.sky, request, 2),
        cache=cache,
    )  # fmt: skip
    assert again.kept
    assert again.facts == first.facts
    assert server.requests == []
    np.testing.assert_array_equal(again.gridded.image.data, first.gridded.image.data)
    assert np.hypot(*again.gridded.shift) < 0.1

    # A field beside it is asked for, and the archive is gone meanwhile.
    other = replace(exposure(ra=40.001), band="i")
    server.fault(status=503)
    with pytest.raises(InputUnavailable, match=r"directory: no template.*; panstarrs: "):
        template_on_grid(templates, other, *science(archive.sky, other, 3), cache=cache)
