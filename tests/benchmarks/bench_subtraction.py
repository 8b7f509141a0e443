"""Speed, memory, cleanliness, completeness and flux of the subtraction, ours beside the peers.

Run ``python -m tests.benchmarks.bench_subtraction [--sizes ...] [--seeds ...]``. Every engine runs
in a process of its own (`tests.benchmarks.engine_process`). HOTPANTS is measured where
``hotpants`` is on the PATH, or ``SKYDELTA_HOTPANTS`` names the program; STDPipe and SFFT where
``make bench`` could install them into ``.venv-bench``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import sep
from rich.console import Console
from rich.table import Table

from core.errors import QualityRejected
from core.simulate import PairSettings, SimulatedPair, simulate_pair
from core.subtraction.mask_growth import grow
from core.subtraction.sfft import SFFTResult
from tests.benchmarks.engine_process import ENGINES
from tests.benchmarks.engine_runs import OURS, Run, missing, run_engine, write_pair
from tests.benchmarks.other_sky import OtherSky, other_pair
from tests.benchmarks.printing import show
from tests.benchmarks.subtraction_scores import (
    Planes,
    correlation_of,
    false_of_noise,
    score,
    true_noise,
)
from tests.benchmarks.true_noise import proper_noise

HALF = 6  # pixels by which the template's mask is grown where the kernel is not known


@dataclass(frozen=True)
class Case:
    """One simulated pair, and who subtracts it."""

    name: str
    make: Callable[[], SimulatedPair]
    engines: tuple[str, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Limits:
    """Seconds, threads and repeats."""

    deadline: float
    threads: int
    repeats: int


def cases(sizes: Sequence[int], seeds: Sequence[int], repeats: int) -> Iterator[Case]:
    """All engines at every size with the first seed; ours and HOTPANTS on what else there is."""
    few = tuple(engine for engine in OURS if engine != "run_sfft err=True")
    some = tuple(engine for engine in OURS if engine != "run_sfft kernel=None")

    def standard(size: int, seed: int, **settings: float) -> Callable[[], SimulatedPair]:
        return partial(simulate_pair, PairSettings(shape=(size, size), seed=seed, **settings))  # type: ignore[arg-type]

    for size in sizes:
        for seed in seeds:
            everyone = tuple(ENGINES) if seed == seeds[0] else some
            name = f"{size}² seed {seed}"
            yield Case(name, standard(size, seed), everyone, repeats if seed == seeds[0] else 1)
    size, seed = sizes[0], seeds[0]
    for density in (300.0, 5000.0):
        make = standard(size, seed, star_density=density)
        yield Case(f"{size}² density {density:g}", make, few)
    for science, template in ((3.0, 2.8), (5.0, 2.6), (2.6, 3.6)):
        make = standard(size, seed, science_fwhm=science, template_fwhm=template)
        yield Case(f"{size}² seeing {science}/{template}", make, few)
    wide = PairSettings(shape=(size // 2, size), seed=seed)
    yield Case(f"{size}x{size // 2}", partial(simulate_pair, wide), few)
    for seed in seeds[:3]:
        sky = OtherSky(shape=(size, size), seed=seed)
        yield Case(f"{size}² other sky {seed}", partial(other_pair, sky), few)


def planes_of(truth: SimulatedPair, run: Run) -> tuple[Planes, SFFTResult | None]:
    """Say where the planes count, and restore the kernel solution of ours."""
    p = run.planes
    bad = truth.science_mask != 0
    template_bad = truth.template_mask != 0
    if "kernel_kernel" in p:
        fields = {name[7:]: p[name] for name in p if name.startswith("kernel_")}
        numbers = {k: v.item() if v.ndim == 0 else v for k, v in fields.items()}
        kernel = SFFTResult(**{**numbers, "shape": tuple(int(n) for n in numbers["shape"])})
        half = kernel.kernel.shape[-1] // 2
        if kernel.convolved == "science":
            bad = grow(bad, half, half)
        bad = bad | grow(template_bad, half, half) | _edge(bad.shape, half)
        return Planes(p["difference"], p["noise"], bad, correlation_of(truth, kernel)), kernel
    noise = p.get("noise")
    bad = bad | grow(template_bad, HALF, HALF) | ~np.isfinite(p["difference"])
    if noise is not None:
        bad |= ~np.isfinite(noise) | (noise <= 0)
    if "significance" in p:  # both images are filtered, as far as their PSFs reach
        reach = round(2.5 * max(truth.settings.science_fwhm, truth.settings.template_fwhm))
        bad = grow(bad, reach, reach) | _edge(bad.shape, reach)
    else:
        bad = bad | _edge(bad.shape, HALF)
    planes = Planes(
        p["difference"], noise, bad,
        significance=p.get("significance"), flux=p.get("flux"), flux_err=p.get("flux_err"),
    )  # fmt: skip
    return planes, None


def _edge(shape: tuple[int, int], width: int) -> np.ndarray:
    edge = np.ones(shape, dtype=bool)
    edge[width:-width, width:-width] = False
    return edge


def measure(table: Table, case: Case, limits: Limits, progress: Console) -> None:
    """Add a line for every engine."""
    truth = case.make()
    million = np.prod(truth.settings.shape) / 1e6
    with tempfile.TemporaryDirectory(prefix="skydelta-bench-") as folder:
        path = Path(folder) / "pair.npz"
        write_pair(truth, path, threads=limits.threads)
        known: np.ndarray | None = None
        ours: Run | None = None
        for engine in case.engines:
            run = run_engine(
                engine, path, repeats=case.repeats, deadline=limits.deadline,
                threads=limits.threads,
            )  # fmt: skip
            if isinstance(run, str):
                progress.print(f"{case.name}: {engine}: {run}")
                table.add_row(engine, case.name, "-", run[:40])
                continue
            progress.print(f"{case.name}: {engine}: {run.wall:.1f} s, {run.peak_gb:.2f} GB")
            planes, kernel = planes_of(truth, run)
            if kernel is not None:
                known = true_noise(truth, kernel)
            ours = ours or run
            speed = (
                engine, case.name, str(run.runs), f"{run.wall:.2f}", f"{run.cpu:.2f}",
                f"{run.wall / ours.wall:.1f}", f"{run.cpu / ours.cpu:.1f}",
                f"{run.wall / million:.2f}", f"{run.arrays_gb:.2f}", f"{run.peak_gb:.2f}",
            )  # fmt: skip
            noise = known if planes.significance is None else None
            try:
                s = score(truth, planes, proper_noise(truth) if noise is None else noise)
            except QualityRejected as error:
                table.add_row(*speed, str(error)[:40])
                continue
            of_noise = "-"
            if kernel is not None and known is not None:
                of_noise = "{} ({})".format(*false_of_noise(truth, planes, kernel, known))
            own_units = engine == "STDPipe run_zogy"  # its D is not in ADU
            table.add_row(
                *speed,
                "-" if own_units else f"{s.star_chi2:.3f}",
                "-" if own_units else f"{s.sky_chi2:.3f}", f"{s.false} ({s.false_wide})", of_noise,
                f"{s.completeness:.3f} ({s.expected:.3f})",
                f"{s.on_galaxies:.3f} ({s.expected_on_galaxies:.3f})",
                f"{s.flux_ratio:.4f}", f"{s.pull_mean:+.2f} ± {s.pull_width:.2f}",
            )  # fmt: skip


def linearity(sizes: Sequence[int], limits: Limits) -> Table:
    """Seconds per million pixels of one and the same sky, laid side by side."""
    table = Table("run_sfft", "wall s", "CPU s", "wall s / 10⁶ px", "CPU s / 10⁶ px", "peak GB")
    one = simulate_pair(PairSettings(shape=(1024, 1024), fwhm_variation=0, ellipticity=0))
    with tempfile.TemporaryDirectory(prefix="skydelta-bench-") as folder:
        path = Path(folder) / "pair.npz"
        write_pair(one, path, threads=limits.threads)
        with np.load(path) as file:
            small = {name: file[name] for name in file.files}
        for size in sizes:
            n = size // 1024
            big = {k: np.tile(v, (n, n)) if v.ndim == 2 else v for k, v in small.items()}
            np.savez(path, **big)
            del big
            run = run_engine(
                "run_sfft", path, repeats=limits.repeats, deadline=limits.deadline,
                threads=limits.threads,
            )  # fmt: skip
            if isinstance(run, str):
                table.add_row(f"{size}²", run)
                continue
            million = size * size / 1e6
            table.add_row(
                f"{size}²", f"{run.wall:.2f}", f"{run.cpu:.2f}", f"{run.wall / million:.3f}",
                f"{run.cpu / million:.3f}", f"{run.peak_gb:.2f}",
            )  # fmt: skip
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[1024, 2048, 4096])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--deadline", type=float, default=300, help="seconds for an engine")
    parser.add_argument("--linear", nargs="*", type=int, default=[1024, 2048, 4096, 8192])
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of pairs")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES))
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    limits = Limits(options.deadline, options.threads, options.repeats)
    table = Table(
        "engine", "pair", "runs", "wall s", "CPU s", "x wall", "x CPU", "s / 10⁶ px", "arrays GB",
        "peak GB", "star chi²", "sky chi²", "false (wide)", "of noise",
        "complete (expected)", "on galaxies", "flux ratio", "pull",
    )  # fmt: skip
    progress = Console(stderr=True, width=160)
    # a peer's difference may be above the threshold everywhere; it is to be counted all the same
    sep.set_extract_pixstack(20_000_000)
    sep.set_sub_object_limit(1_000_000)
    absent = {engine: missing(engine) for engine in options.engines}
    for case in cases(options.sizes, options.seeds, options.repeats):
        if options.only and not any(text in case.name for text in options.only):
            continue
        chosen = tuple(engine for engine in case.engines if absent.get(engine, "") is None)
        measure(table, Case(case.name, case.make, chosen, case.repeats), limits, progress)
    show(table, markdown=options.markdown)
    output = Console()
    for engine, why in absent.items():
        if why is not None:
            output.print(f"{engine}: not measured: {why}")
    if options.linear:
        show(linearity(options.linear, limits), markdown=options.markdown)


if __name__ == "__main__":
    main()
