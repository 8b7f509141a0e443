"""After warming there is nothing left to compile for a template."""

from __future__ import annotations

from core.templates import hips_projection
from core.templates.warming import warm_hips


def test_hips_kernels_are_compiled_for_the_types_of_real_tiles() -> None:
    warm_hips()
    for kernel in (hips_projection._keys_at, hips_projection._sample):
        assert len(kernel.signatures) == 1
