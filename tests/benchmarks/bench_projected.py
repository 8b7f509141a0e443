"""Seconds that a template takes the first time on a grid, and when it was projected before.

Run ``python -m tests.benchmarks.bench_projected [SIZE ...]``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.io import fits
from rich.console import Console
from rich.table import Table

from core.image import ExposureFacts, Image
from core.noise import measure_sky, with_noise
from core.stars import SourceList, find_sources
from core.templates import TemplateRequest
from core.templates.cache import TemplateCache
from core.templates.directory import DirectoryTemplates
from core.templates.projected import template_on_grid
from tests.benchmarks.bench_resample import Seconds, grid, timed

STARS_PER_MEGAPIXEL = 600


@dataclass(frozen=True)
class Case:
    """An exposure with its sources, and a folder that holds its template."""

    science: Image
    sources: SourceList
    folder: Path


def star_frame(size: int, scale: float, seed: int) -> np.ndarray:
    """Return Gaussian stars on a flat sky; the same stars at any pixel scale."""
    rng = np.random.default_rng(1)
    number = STARS_PER_MEGAPIXEL * size * size // 1_000_000
    offsets = rng.uniform(-0.5, 0.5, (number, 2)) * size
    fluxes = 10 ** rng.uniform(3.2, 5.2, number)
    data = np.random.default_rng(seed).normal(300, 4, (size, size)).astype(np.float32)
    y, x = np.mgrid[-8:9, -8:9]
    for (dx, dy), flux in zip(offsets / scale, fluxes, strict=True):
        cx, cy = size / 2 - 1 + dx, size / 2 - 1 + dy
        ix, iy = round(cx), round(cy)
        if 8 <= ix < size - 8 and 8 <= iy < size - 8:
            light = np.exp(-0.5 * ((x - (cx - ix)) ** 2 + (y - (cy - iy)) ** 2) / 1.4**2)
            data[iy - 8 : iy + 9, ix - 8 : ix + 9] += (flux / light.sum() * light).astype("f4")
    return data


def make_case(size: int, folder: Path) -> Case:
    fits.writeto(
        folder / "template.fits", star_frame(size, 1.02, 3), grid(size, 0, 1.02).to_header()
    )
    mask = np.zeros((size, size), np.uint16)
    image = Image(star_frame(size, 1.0, 2), mask, wcs=grid(size, 0, 1), facts=ExposureFacts())
    sky = measure_sky(image)
    image = replace(with_noise(image, sky), facts=replace(image.facts, fwhm=3.3))
    return Case(image, find_sources(image.data - sky.level, sky.rms, mask), folder)


def measure(size: int, threads: int) -> tuple[Seconds, Seconds, Seconds, int]:
    """Return no cache, cold and warm, and the bytes that are kept."""
    with tempfile.TemporaryDirectory() as name:
        case = make_case(size, Path(name))
        cache = TemplateCache(case.folder / ".cache")
        provider = DirectoryTemplates(case.folder)
        request = TemplateRequest(case.science.wcs, case.science.shape)

        def run(kept: bool, with_cache: bool = True) -> None:
            found = template_on_grid(
                provider, request, case.science, case.sources,
                cache=cache if with_cache else None, threads=threads,
            )  # fmt: skip
            assert found.kept == kept

        run(False, with_cache=False)  # compiles
        without = timed(lambda: run(False, with_cache=False), 1)
        cold = timed(lambda: run(False), 1)
        return without, cold, timed(lambda: run(True), 5), cache.statistics().size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[1024, 2048, 4096])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    table = Table(
        "size", "no cache, CPU s", "first time, CPU s", "kept, CPU s", "kept, wall s", "MB kept",
        title="a template, from its file to the grid of the exposure",
    )  # fmt: skip
    for size in options.sizes:
        without, cold, warm, kept = measure(size, options.threads)
        table.add_row(
            f"{size}", f"{without.processor:.2f}", f"{cold.processor:.2f}",
            f"{warm.processor:.3f}", f"{warm.wall:.3f}", f"{kept / 1e6:.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
