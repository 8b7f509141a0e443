"""Cleanliness, completeness, flux and speed of the subtraction, ours beside the peers.

Run ``python -m tests.benchmarks.bench_subtraction [--sizes ...] [--seeds ...]``. HOTPANTS is
measured where ``hotpants`` is on the PATH, or ``SKYDELTA_HOTPANTS`` names the program.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from core.errors import SubtractionFailed
from core.simulate import PairSettings, SimulatedPair, simulate_pair
from core.subtraction import run_hotpants, run_sfft
from core.subtraction.mask_growth import grow
from tests.benchmarks.subtraction_scores import (
    Planes,
    Scores,
    correlation_of,
    score,
    true_noise,
)

TEMPLATE_GAIN = 10


@dataclass(frozen=True)
class Case:
    """One simulated pair."""

    name: str
    settings: PairSettings


@dataclass(frozen=True)
class Timing:
    """Median seconds of a run."""

    wall: float
    processor: float


def cases(sizes: list[int], seeds: list[int]) -> Iterator[Case]:
    """Sizes by seeds at the standard setting; densities and seeing ratios at the first size."""
    for size in sizes:
        for seed in seeds:
            yield Case(f"{size}² seed {seed}", PairSettings(shape=(size, size), seed=seed))
    size = sizes[0]
    for density in (300.0, 5000.0):
        yield Case(
            f"{size}² density {density:g}",
            PairSettings(shape=(size, size), seed=seeds[0], star_density=density),
        )
    for science, template in ((3.0, 2.8), (5.0, 2.6), (2.6, 3.6)):
        yield Case(
            f"{size}² seeing {science}/{template}",
            PairSettings(
                shape=(size, size), seed=seeds[0], science_fwhm=science, template_fwhm=template
            ),
        )
    yield Case(f"{size}x{size // 2}", PairSettings(shape=(size // 2, size), seed=seeds[0]))


def timed(work: Callable[[], object], repeats: int) -> tuple[Timing, object]:
    """Return the median of several runs, and what the last returned."""
    wall, processor, result = [], [], None
    for _ in range(repeats):
        started, used = time.perf_counter(), time.process_time()
        result = work()
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return Timing(statistics.median(wall), statistics.median(processor)), result


def sfft_planes(
    truth: SimulatedPair, repeats: int, threads: int
) -> tuple[Timing, Planes, np.ndarray]:
    """Run ours; also return the true noise through its kernel."""
    settings = truth.settings
    small = settings.science_fwhm < settings.template_fwhm
    shape = None if small or settings.science_fwhm > 4 else (13, 13)

    def work() -> object:
        return run_sfft(
            truth.science, truth.template, truth.science_mask != 0, truth.template_mask != 0,
            err=True, template_err=True, image_gain=settings.gain,
            template_gain=settings.gain * settings.template_depth, kernel_shape=shape,
            get_convolved=True, get_noise=True, get_scaled=True, get_kernel=True, threads=threads,
        )  # fmt: skip

    spent, result = timed(work, repeats)
    difference, _, noise, _, kernel = result  # type: ignore[misc]
    half = kernel.kernel.shape[-1] // 2
    bad = np.zeros(difference.shape, dtype=bool)
    bad |= grow(truth.template_mask != 0, half, half)
    if kernel.convolved == "science":
        bad |= grow(truth.science_mask != 0, half, half)
    for edge in (np.s_[:half], np.s_[-half:], np.s_[:, :half], np.s_[:, -half:]):
        bad[edge] = True
    planes = Planes(difference, noise, bad, correlation_of(truth, kernel))
    return spent, planes, true_noise(truth, kernel)


def hotpants_planes(truth: SimulatedPair, repeats: int, program: str) -> tuple[Timing, Planes]:
    """Run HOTPANTS through our wrapper, with true noise maps, a 13x13 kernel and 15x15 stamps."""
    settings = truth.settings
    bad = truth.science_mask != 0
    template_bad = truth.template_mask != 0

    def work() -> object:
        return run_hotpants(
            truth.science, truth.template, bad, template_bad,
            err=np.sqrt(truth.science_variance), template_err=np.sqrt(truth.template_variance),
            image_fwhm=settings.science_fwhm, template_fwhm=settings.template_fwhm,
            image_gain=settings.gain, template_gain=settings.gain * settings.template_depth,
            get_noise=True, extra={"r": 6, "rss": 15},
            _exe=program,
        )  # fmt: skip

    spent, result = timed(work, repeats)
    difference, noise = result  # type: ignore[misc]
    unusable = ~np.isfinite(difference) | ~np.isfinite(noise) | (noise <= 0)
    return spent, Planes(difference, noise, unusable | grow(template_bad, 6, 6) | bad)


def row(table: Table, engine: str, case: str, spent: Timing, scores: Scores) -> None:
    """Add a line."""
    table.add_row(
        engine, case, f"{spent.wall:.2f}", f"{spent.processor:.2f}", f"{scores.star_chi2:.3f}",
        f"{scores.sky_chi2:.3f}", str(scores.false),
        f"{scores.completeness:.3f} ({scores.expected:.3f})",
        f"{scores.on_galaxies:.3f} ({scores.expected_on_galaxies:.3f})",
        f"{scores.flux_ratio:.4f}", f"{scores.pull_mean:+.2f} ± {scores.pull_width:.2f}",
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1024, 2048])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    table = Table(
        "engine", "pair", "wall s", "CPU s", "star chi²", "sky chi²", "false",
        "complete (expected)", "on galaxies", "flux ratio", "pull",
    )  # fmt: skip
    program = os.environ.get("SKYDELTA_HOTPANTS") or shutil.which("hotpants")
    warm = simulate_pair(PairSettings(shape=(256, 256), seed=1))
    sfft_planes(warm, 1, options.threads)
    for case in cases(options.sizes, options.seeds):
        truth = simulate_pair(case.settings)
        spent, planes, noise = sfft_planes(truth, options.repeats, options.threads)
        row(table, "run_sfft", case.name, spent, score(truth, planes, noise))
        if program is not None:
            try:
                spent, planes = hotpants_planes(truth, options.repeats, program)
                row(table, "HOTPANTS", case.name, spent, score(truth, planes, noise))
            except SubtractionFailed as error:
                table.add_row("HOTPANTS", case.name, *["-"] * 8, str(error)[:40])
        Console(stderr=True).print(f"done {case.name}")
    Console(width=160).print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    Console().print(f"peak memory of the whole run {peak:.2f} GB")
    if program is None:
        Console().print("HOTPANTS: not installed, not measured")


if __name__ == "__main__":
    main()
