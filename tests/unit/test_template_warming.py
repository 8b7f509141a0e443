"""After warming there is nothing left to compile for a template."""

from __future__ import annotations

from pathlib import Path

from core.pointing import tangential_grid
from core.templates import TemplateRequest
from core.templates.hips import HipsSurvey, HipsTemplates, projection, warm_hips
from tests.archive.hips import StarField, write_hips

SHAPE = (60, 60)


def test_hips_kernels_are_compiled_for_the_types_of_real_tiles(tmp_path: Path) -> None:
    kernels = (projection._keys_at, projection._sample)
    warm_hips()
    before = [list(kernel.signatures) for kernel in kernels]
    grid = tangential_grid((150.0, 2.0), SHAPE, 12.0)
    sky = StarField.random(150.0, 2.0, 0.1, 5, sigma=20.0, pixel=12.0)
    write_hips(tmp_path, sky, grid, SHAPE, order=6, width=64)
    HipsTemplates([HipsSurvey(tree=str(tmp_path))]).find(TemplateRequest(grid, SHAPE))
    assert [list(kernel.signatures) for kernel in kernels] == before
