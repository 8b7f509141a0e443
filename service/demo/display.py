"""What the demonstration shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from service.demo.options import DemoOptions
from service.demo.scoring import Tally, score


class Display(AbstractContextManager["Display"], Protocol):
    """Something that shows how far the demonstration is."""

    def stage(self, text: str) -> None:
        """Say what is being done now."""
        ...

    def simulated(self, done: int, total: int) -> None:
        """Say how many images are there."""
        ...

    def tick(self) -> None:
        """Show that time passes."""
        ...

    def update(self, tallies: Sequence[Tally], finished: Tally | None = None) -> None:
        """Show what has arrived; ``finished`` has just been completed."""
        ...


def make_display(console: Console, options: DemoOptions) -> Display:
    """Return a live display on a terminal, one of plain lines anywhere else."""
    return LiveDisplay(console, options) if console.is_terminal else PlainDisplay(console, options)


class PlainDisplay:
    """One line for everything that happens."""

    def __init__(self, console: Console, options: DemoOptions) -> None:
        self._console = console
        self._options = options

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def stage(self, text: str) -> None:
        """Say what is being done now."""
        self._line(text)

    def simulated(self, done: int, total: int) -> None:
        """Say when all images are there."""
        if done == total:
            self._line(f"{total} images simulated")

    def tick(self) -> None:
        """Do nothing: lines do not move."""

    def update(self, tallies: Sequence[Tally], finished: Tally | None = None) -> None:
        """Write the line of an exposure that has just been finished."""
        if finished is None:
            return
        cells = exposure_cells(finished, self._options)
        self._line(
            f"{cells['exposure']}: {cells['outcome']}, {cells['candidates']} candidates, "
            f"recovered {cells['recovered']}, variables {cells['variables']}, "
            f"false {cells['false']}, {cells['seconds']} s"
        )

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """A progress bar and a table that fills itself."""

    def __init__(self, console: Console, options: DemoOptions) -> None:
        self._options = options
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._tallies: Sequence[Tally] = ()
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=8, transient=False
        )

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, value, traceback)

    def stage(self, text: str) -> None:
        """Put the text beside the bar."""
        self._progress.update(self._task, description=text)

    def simulated(self, done: int, total: int) -> None:
        """Move the bar with the simulated images."""
        self._progress.update(self._task, completed=done, total=total)

    def tick(self) -> None:
        """Do nothing: the live display refreshes itself."""

    def update(self, tallies: Sequence[Tally], finished: Tally | None = None) -> None:
        """Move the bar with the finished exposures."""
        self._tallies = tallies
        done = sum(tally.complete for tally in tallies)
        self._progress.update(self._task, completed=done, total=len(tallies))

    def _render(self) -> Group:
        if not any(tally.published is not None for tally in self._tallies):
            return Group(self._progress)
        return Group(self._progress, exposure_table(self._tallies, self._options))


_COLUMNS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("exposure", "exposure", lambda value: ""),
    ("outcome", "outcome", lambda value: "green" if value == "published" else "yellow"),
    ("seeing", "seeing", lambda value: "dim"),
    ("candidates", "candidates", lambda value: ""),
    ("recovered", "recovered", lambda value: "green"),
    ("missed", "missed", lambda value: "red" if value not in ("0", "") else "dim"),
    ("variables", "variables", lambda value: "cyan"),
    ("false", "false", lambda value: "red" if value not in ("0", "") else "dim"),
    ("star_chi2", "star χ²", lambda value: "dim"),
    ("seconds", "seconds", lambda value: "bold"),
)


def exposure_table(tallies: Sequence[Tally], options: DemoOptions) -> Table:
    """Return a table with a line for each exposure that has been published."""
    table = Table(header_style="bold", pad_edge=False, box=None)
    for key, title, _ in _COLUMNS:
        table.add_column(title, justify="left" if key in ("exposure", "outcome") else "right")
    for tally in tallies:
        if tally.published is not None:
            cells = exposure_cells(tally, options)
            table.add_row(
                *(Text(cells[key], style=style(cells[key])) for key, _, style in _COLUMNS)
            )
    return table


def exposure_cells(tally: Tally, options: DemoOptions) -> dict[str, str]:
    """Return what the table says about an exposure, as text."""
    cells = dict.fromkeys((key for key, _, _ in _COLUMNS), "")
    cells["exposure"] = tally.exposure_id
    cells["seeing"] = f"{tally.exposure.fwhm:.1f} px"
    cells["outcome"] = "processing" if tally.status is None else str(tally.status.record["outcome"])
    if tally.status is None and not tally.alerts:
        return cells
    result = score(tally, options)
    cells["candidates"] = str(len(tally.alerts))
    cells["recovered"] = f"{result.recovered_bright}/{result.injected_bright}"
    cells["variables"] = str(result.count("variable"))
    cells["false"] = str(result.count("false"))
    if tally.complete and tally.status is not None:
        cells["missed"] = str(len(result.missed))
        quality = tally.status.record["quality"]
        if quality is not None and quality["star_chi2"] is not None:
            cells["star_chi2"] = f"{quality['star_chi2']:.2f}"
        cells["seconds"] = f"{tally.seconds:.1f}"
    return cells
