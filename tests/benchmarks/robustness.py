"""Hard pairs: is each difference good, or honestly rejected, and never silently bad?

Run ``python -m tests.benchmarks.robustness [--seeds ...] [--cases TEXT ...] [--engines ...]``.
Every engine runs as the pipeline runs it, on the same prepared pair, and is scored by its own
noise, PSF, significance and mask against the injected truth. HOTPANTS is measured where
``hotpants`` is on the PATH, or ``SKYDELTA_HOTPANTS`` names the program.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from core.errors import ExposureError
from core.subtraction import hotpants, sfft, zogy
from core.subtraction.difference import Difference
from core.subtraction.hotpants import HotpantsSettings
from core.subtraction.pair import Pair
from core.subtraction.verdict import QualityLimits, judge
from tests.benchmarks import crowded
from tests.benchmarks.hard_cases import CASES, HardCase
from tests.benchmarks.prepared import prepare
from tests.benchmarks.printing import show
from tests.benchmarks.subtraction_scores import Scores, score_difference
from tests.benchmarks.true_noise import noise_of

Engine = Callable[[Pair], Difference]


@dataclass(frozen=True)
class Outcome:
    """What one engine made of one pair."""

    scores: Scores | None
    quality: str
    verdict: str  # why it was rejected; empty when it was not
    faults: tuple[str, ...]
    seconds: float

    @property
    def overall(self) -> str:
        """``good``, ``rejected`` (honestly), ``over-strict`` or ``SILENT BAD``."""
        if self.verdict:
            return "rejected" if self.faults or self.scores is None else "rejected though good"
        return "SILENT BAD" if self.faults else "good"


def engines(names: list[str]) -> Mapping[str, Engine]:
    """Return the engines of those names; HOTPANTS only where the program is."""
    program = os.environ.get("SKYDELTA_HOTPANTS") or shutil.which("hotpants")
    every: dict[str, Engine] = {
        "sfft": partial(sfft.subtract, threads=2),
        "zogy": partial(zogy.subtract, threads=2),
    }
    if program:
        settings = HotpantsSettings(executable=program)
        every["hotpants"] = partial(hotpants.subtract, settings=settings, threads=2)
    return {name: engine for name, engine in every.items() if name in names}


def faults_of(scores: Scores, pixels: int) -> tuple[str, ...]:
    """Say what makes a difference one that must not be published without a word."""
    faults = []
    if np.isnan(scores.completeness):
        faults.append("all masked")
    if abs(scores.flux_ratio - 1) > 0.03:
        faults.append(f"flux {100 * (scores.flux_ratio - 1):+.1f} %")
    if scores.star_chi2 > 1.3:
        faults.append(f"star chi² {scores.star_chi2:.2f}")
    if scores.false > max(5.0 * pixels / 1e6, 3.0):
        faults.append(f"{scores.false} false")
    if scores.completeness < scores.expected - 0.05:
        faults.append(f"complete {scores.completeness - scores.expected:+.3f}")
    if abs(scores.pull_mean) > 0.6 or not 0.7 < scores.pull_width < 1.3:
        faults.append(f"pulls {scores.pull_mean:+.2f} ± {scores.pull_width:.2f}")
    if not 0.9 < scores.sky_chi2 < 1.1:
        faults.append(f"sky chi² {scores.sky_chi2:.2f}")
    return tuple(faults)


def run(case: HardCase, shape: tuple[int, int], seed: int, names: list[str]) -> dict[str, Outcome]:
    """Run every engine on one pair."""
    truth = case.make(shape, seed)
    outcomes = {}
    try:
        pair, moved = prepare(truth)
    except ExposureError as error:
        return {name: Outcome(None, "", str(error), (), 0.0) for name in engines(names)}
    for name, engine in engines(names).items():
        started = time.process_time()
        try:
            difference = engine(pair)
            seconds = time.process_time() - started
            scores = score_difference(truth, difference, noise_of(truth, difference, moved))
        except ExposureError as error:
            outcomes[name] = Outcome(None, "", str(error), (), time.process_time() - started)
            continue
        q = difference.quality
        quality = f"{q.star_chi2:.2f} {q.sky_chi2:.2f} {100 * q.model_error:.1f}%"
        verdict = "; ".join(judge(q, QualityLimits()))
        faults = faults_of(scores, shape[0] * shape[1])
        outcomes[name] = Outcome(scores, quality, verdict, faults, seconds)
    return outcomes


def _row(table: Table, case: str, engine: str, outcomes: list[Outcome]) -> None:
    """Add the means over the seeds, and the highest number of false detections."""
    scored = [outcome.scores for outcome in outcomes if outcome.scores is not None]
    verdicts = [outcome.overall for outcome in outcomes]
    overall = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
    why = " | ".join(
        dict.fromkeys(
            ", ".join(outcome.faults) + (f" [{outcome.verdict}]" if outcome.verdict else "")
            for outcome in outcomes
            if outcome.faults or outcome.verdict
        )
    )
    if not scored:
        table.add_row(case, engine, *["-"] * 9, overall, why)
        return
    mean = {f.name: float(np.mean([getattr(s, f.name) for s in scored])) for f in fields(Scores)}
    table.add_row(
        case, engine, f"{mean['star_chi2']:.3f}", f"{mean['own_chi2']:.3f}",
        f"{mean['sky_chi2']:.3f}", " ".join(f"{s.false} ({s.false_wide})" for s in scored),
        f"{mean['completeness']:.3f} ({mean['expected']:.3f})",
        f"{mean['on_galaxies']:.3f} ({mean['expected_on_galaxies']:.3f})",
        f"{mean['flux_ratio']:.4f}", f"{mean['pull_mean']:+.2f} ± {mean['pull_width']:.2f}",
        " / ".join(outcome.quality for outcome in outcomes), overall, why,
    )  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--cases", nargs="*", default=[], help="parts of names; all when none")
    parser.add_argument("--engines", nargs="*", default=["sfft", "zogy", "hotpants"])
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    table = Table(
        "pair", "engine", "star chi²", "by own noise", "sky chi²", "false (wide)",
        "complete (expected)", "on galaxies", "flux ratio", "pull",
        "own numbers: star, sky, error", "overall", "why",
    )  # fmt: skip
    progress = Console(stderr=True, width=220)
    wanted = [c for c in CASES if not options.cases or any(t in c.name for t in options.cases)]
    shape = (options.size, options.size)
    for case in wanted:
        results = [run(case, shape, seed, options.engines) for seed in options.seeds]
        for engine in results[0]:
            outcomes = [result[engine] for result in results]
            _row(table, case.name, engine, outcomes)
            for seed, outcome in zip(options.seeds, outcomes, strict=True):
                progress.print(
                    f"{case.name}, seed {seed}, {engine}: {outcome.overall} "
                    f"{', '.join(outcome.faults)} {outcome.verdict} ({outcome.seconds:.1f} s CPU)"
                )
    show(table, markdown=options.markdown, width=250)
    if not options.cases or any(text in crowded.NAME for text in options.cases):
        field = crowded.measure(list(engines(options.engines)))
        if field is None:
            Console().print("crowded field: no ../shared/data/saao_crowded_series, not measured")
        else:
            show(field, markdown=options.markdown)


if __name__ == "__main__":
    main()
