"""What templates cost in a survey of overlapping pointings: seconds, bytes and requests.

Run ``python -m tests.benchmarks.bench_templates [--pointings 5x4] [--size 2048] [--markdown]``.

Every provider has an archive of full-sized files on loopback, in a process of its own; seconds of
CPU are those of the client alone, seconds of wall include the archive's. An exposure costs what
passes between its sources being known and the template lying on its grid: found, read, measured,
registered, projected. *Cold* is the first visit of every pointing, so that what neighbours share is
in the cache already; *warm* the second, some arcseconds away, which nothing projected can serve;
*kept* a third one that repeats the second exactly, with ``keep_projected``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from astropy.wcs import WCS
from rich.console import Console
from rich.table import Table

from core.errors import ExposureError
from core.image import ExposureFacts, Image
from core.noise import measure_sky, with_noise
from core.pointing import tangential_grid
from core.stars import SourceList, find_sources
from core.templates import TemplateRequest
from core.templates.cache import TemplateCache
from core.templates.projected import template_on_grid
from service.template_settings import TemplateSettings
from service.template_tally import TemplateTally
from service.templates import TemplateSource, make_templates
from tests.archive.star_sky import StarSky
from tests.benchmarks import bench_projected, bench_resample
from tests.benchmarks.archive_process import ArchiveProcess, archive_process
from tests.benchmarks.made_surveys import (
    BAND,
    BrickSurvey,
    CellSurvey,
    CutoutSurvey,
    FolderSurvey,
    MadeSurvey,
    Region,
    TileSurvey,
)
from tests.benchmarks.printing import show

SCALE = 1.0  # arcsec
OVERLAP = 0.15
CENTRE = 150.0, 2.2
ZERO_POINT, SKY, GAIN, FWHM = 26.5, 300.0, 2.0, 3.3
PROVIDERS = ("hips", "hips2fits", "panstarrs", "legacysurvey", "directory")
KEPT = 4  # pointings of the third visit


@dataclass(frozen=True)
class Plan:
    """The pointings of a survey, centres in degrees, and the pixels of its detector."""

    columns: int
    rows: int
    size: int

    @property
    def centres(self) -> list[tuple[float, float]]:
        """Right ascension and declination of every pointing, row by row."""
        step = self.size * SCALE * (1 - OVERLAP) / 3600
        return [
            (
                CENTRE[0]
                + (column - (self.columns - 1) / 2) * step / np.cos(np.radians(CENTRE[1])),
                CENTRE[1] + (row - (self.rows - 1) / 2) * step,
            )
            for row in range(self.rows)
            for column in range(self.columns)
        ]

    @property
    def region(self) -> Region:
        """What an archive must have, with a margin for templates that are larger."""
        step, margin = self.size * SCALE * (1 - OVERLAP) / 3600, 0.1
        width = self.size * SCALE / 3600
        return Region(
            *CENTRE,
            ((self.columns - 1) * step + width) / 2 + margin,
            ((self.rows - 1) * step + width) / 2 + margin,
        )

    def survey(self, provider: str, folder: Path) -> MadeSurvey:
        """Return the archive of a provider."""
        if provider == "directory":
            return FolderSurvey(self.region, self.centres, self.size, folder / "coadds")
        made = {
            "hips": TileSurvey,
            "hips2fits": CutoutSurvey,
            "panstarrs": CellSurvey,
            "legacysurvey": BrickSurvey,
        }
        return made[provider](self.region)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Frame:
    """An exposure as the pipeline has it when it asks for a template."""

    image: Image
    sources: SourceList


@dataclass
class Spent:
    """What one visit of all pointings cost."""

    exposures: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    slowest: float = 0.0
    finding: float = 0.0
    megabytes: float = 0.0
    requests: int = 0
    hits: int = 0
    misses: int = 0
    kept: int = 0

    def row(self) -> list[str]:
        """Return the columns of the table, per exposure."""
        n = max(self.exposures, 1)
        return [
            str(self.exposures), f"{self.wall / n:.2f}", f"{self.cpu / n:.2f}",
            f"{self.slowest:.2f}", f"{self.finding / n:.2f}", f"{self.megabytes / n:.1f}",
            f"{self.requests / n:.1f}", f"{self.hits / n:.1f}", f"{self.misses / n:.1f}",
        ]  # fmt: skip


COLUMNS = (
    "provider", "visit", "exposures", "wall s", "CPU s", "slowest, wall s", "of it found, wall s",
    "MB fetched", "requests", "cache hits", "misses",
)  # fmt: skip


def expose(stars: StarSky, wcs: WCS, size: int, seed: int) -> Frame:
    """Draw an exposure, and measure what the pipeline measures before it asks."""
    shape = size, size
    light = StarSky(stars.ra, stars.dec, stars.mag, FWHM * SCALE).drawn(wcs, shape, ZERO_POINT)
    light += SKY
    rng = np.random.default_rng(seed)
    data = (light + rng.normal(0, 1, shape) * np.sqrt(light / GAIN)).astype(np.float32)
    mask = np.zeros(shape, np.uint16)
    image = Image(data, mask, wcs=wcs, facts=ExposureFacts(gain=GAIN))
    sky = measure_sky(image)
    image = replace(with_noise(image, sky), facts=replace(image.facts, fwhm=FWHM))
    return Frame(image, find_sources(data - sky.level, sky.rms, mask))


@dataclass
class Client:
    """Asks a provider as a worker of the service does."""

    source: TemplateSource
    tally: TemplateTally
    archive: ArchiveProcess
    threads: int

    def visit(self, frames: Iterator[Frame], *, keep: TemplateCache | None = None) -> Spent:
        """Ask for the templates of exposures, one after another."""
        spent = Spent()
        for frame in frames:
            self.tally.take()
            self.archive.requests()
            self._ask(frame, spent, keep)
            counts = self.tally.take()
            spent.requests += self.archive.requests()
            spent.megabytes += sum(counts.fetched_bytes.values()) / 1e6
            for (_, event), number in counts.cache_events.items():
                spent.hits += number if event in ("hit", "negative_hit") else 0
                spent.misses += number if event == "miss" else 0
        return spent

    def _ask(self, frame: Frame, spent: Spent, keep: TemplateCache | None) -> None:
        image = frame.image
        request = TemplateRequest(image.wcs, image.shape, band=BAND)
        found_at: list[float] = []
        began, used = time.perf_counter(), time.process_time()
        found = template_on_grid(
            self.source.templates, request, image, frame.sources, cache=keep,
            threads=self.threads,
            on_found=lambda facts, notes: found_at.append(time.perf_counter()),
        )  # fmt: skip
        wall = time.perf_counter() - began
        spent.cpu += time.process_time() - used
        assert np.hypot(*found.gridded.shift) < 0.2  # pixels: it is the same sky
        spent.wall += wall
        spent.slowest = max(spent.slowest, wall)
        spent.finding += found_at[0] - began if found_at else 0.0
        spent.exposures += 1
        spent.kept += found.kept


def measure(plan: Plan, provider: str, folder: Path, threads: int) -> list[tuple[str, Spent]]:
    """Return what the visits cost."""
    survey = plan.survey(provider, folder)
    stars = survey.stars
    with archive_process(survey) as archive:
        tally = TemplateTally()
        settings = TemplateSettings.model_validate(
            survey.settings(archive.url) | {"cache": str(folder / "cache"), "deadline_seconds": 600}
        )
        source = make_templates(settings, max_pixels=10**9, threads=threads, observer=tally)
        client = Client(source, tally, archive, threads)
        keep = TemplateCache(folder / "projected", observer=tally)

        def frames(centres: Sequence[tuple[float, float]], visit: int) -> Iterator[Frame]:
            rng = np.random.default_rng(visit)
            for number, (ra, dec) in enumerate(centres):
                off = rng.normal(0, 5, 2) / 3600
                wcs = tangential_grid((ra + off[0], dec + off[1]), (plan.size, plan.size), SCALE)
                yield expose(stars, wcs, plan.size, 1000 * visit + number)

        few = plan.centres[:KEPT]
        visits = [
            ("cold", client.visit(frames(plan.centres, 1))),
            ("warm", client.visit(frames(plan.centres, 2))),
        ]
        client.visit(frames(few, 2), keep=keep)
        visits.append(("kept", client.visit(frames(few, 2), keep=keep)))
    return visits


def compile_first(threads: int) -> None:
    """Compile what is compiled, on frames that are not counted."""
    with tempfile.TemporaryDirectory() as name:
        plan = Plan(1, 1, 512)
        for provider in ("directory", "hips"):
            measure(plan, provider, Path(name) / provider, threads)


def surveys(plan: Plan, providers: Sequence[str], threads: int, progress: Console) -> Table:
    """Measure all providers."""
    table = Table(
        *COLUMNS,
        title=f"{plan.columns} x {plan.rows} pointings of {plan.size}² at {SCALE:g} arcsec, "
        f"overlapping by {100 * OVERLAP:.0f} %; means per exposure",
    )
    for provider in providers:
        with tempfile.TemporaryDirectory(prefix="skydelta-bench-") as name:
            try:
                visits = measure(plan, provider, Path(name), threads)
            except ExposureError as error:
                progress.print(f"{provider}: {error}")
                table.add_row(provider, "-", str(error)[:60])
                continue
            for visit, spent in visits:
                if visit == "kept" and spent.kept < spent.exposures:
                    progress.print(f"{provider}: only {spent.kept} projected templates were kept")
                table.add_row(provider, visit, *spent.row())
                progress.print(provider, visit, *spent.row())
    return table


def bars(size: int, threads: int) -> Table:
    """The warm pointing and the projection, at the size of a whole detector."""
    table = Table("at " + f"{size}²", "wall s", "CPU s", "bar")
    without, cold, warm, kept = bench_projected.measure(size, threads)
    name = "template from a file to the grid"
    table.add_row(f"{name}, no cache", f"{without.wall:.2f}", f"{without.processor:.2f}", "")
    table.add_row(f"{name}, first time, kept then ({kept / 1e6:.0f} MB)", f"{cold.wall:.2f}",
                  f"{cold.processor:.2f}", "")  # fmt: skip
    table.add_row(f"{name}, kept", f"{warm.wall:.3f}", f"{warm.processor:.3f}", "below 0.3 s")
    ours, theirs = bench_resample.compare(size, threads)
    table.add_row(
        "projection of data, variance and mask", f"{ours.wall:.2f}", f"{ours.processor:.2f}",
        "at most 0.8 s",
    )  # fmt: skip
    table.add_row(
        "reproject_interp, data alone", f"{theirs.wall:.2f}", f"{theirs.processor:.2f}", ""
    )
    table.add_row(
        "ratio", f"{theirs.wall / ours.wall:.0f}", f"{theirs.processor / ours.processor:.0f}",
        "at least 30",
    )  # fmt: skip
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pointings", default="5x4", help="columns x rows")
    parser.add_argument("--size", type=int, default=2048, help="pixels of the detector")
    parser.add_argument("--providers", nargs="*", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument(
        "--bars", type=int, default=4096, help="pixels of a whole detector; 0: none"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    columns, _, rows = options.pointings.partition("x")
    progress = Console(stderr=True, width=160)
    if options.providers:
        compile_first(options.threads)
        plan = Plan(int(columns), int(rows), options.size)
        show(surveys(plan, options.providers, options.threads, progress), markdown=options.markdown)
    if options.bars:
        show(bars(options.bars, options.threads), markdown=options.markdown)


if __name__ == "__main__":
    main()
