"""Seconds that a projection takes, beside reproject in the same run.

Run ``python -m tests.benchmarks.bench_resample [SIZE ...]``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from reproject import reproject_interp
from rich.console import Console
from rich.table import Table

from core.image import Image, MaskBit
from core.resample import resample

PIXEL = 2.8e-4  # degrees


def grid(size: int, rotation: float, scale: float) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [size / 2, size / 2]
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    wcs.wcs.cd = PIXEL * scale * np.array([[-c, s], [s, c]])
    return wcs


@dataclass(frozen=True)
class Seconds:
    """Median wall and processor time; the latter is right on a busy machine too."""

    wall: float
    processor: float


def timed(work: Callable[[], object], repeats: int) -> Seconds:
    wall, processor = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return Seconds(statistics.median(wall), statistics.median(processor))


def compare(size: int, threads: int) -> tuple[Seconds, Seconds]:
    """Return ours (data, variance and mask) and reproject's (the data alone, once: it is long)."""
    rng = np.random.default_rng(size)
    shape = (size, size)
    data = rng.normal(100, 5, shape).astype(np.float32)
    mask = np.where(rng.random(shape) < 1e-3, MaskBit.BAD, 0).astype(np.uint16)
    source, target = grid(size, 3.0, 1.02), grid(size, 0.0, 1.0)
    image = Image(data, mask, np.full(shape, 25, np.float32), source)

    def ours() -> None:
        resample(image, target, shape, threads=threads)

    def theirs() -> None:
        reproject_interp((data, source), target, shape_out=shape, order="bicubic")

    ours()  # compiles
    return timed(ours, 3), timed(theirs, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[1024, 2048, 4096])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    table = Table(
        "size",
        "skydelta, wall s",
        "processor s",
        "reproject_interp, wall s",
        "processor s",
        "ratio of wall",
        "of processor",
    )
    for size in options.sizes:
        ours, theirs = compare(size, options.threads)
        table.add_row(
            str(size),
            f"{ours.wall:.2f}",
            f"{ours.processor:.2f}",
            f"{theirs.wall:.2f}",
            f"{theirs.processor:.2f}",
            f"{theirs.wall / ours.wall:.0f}",
            f"{theirs.processor / ours.processor:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
