"""A bar for what takes long, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Hand out ``bar(what)``, which gives a callable of (done, total); shown on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:

        def bar(what: str) -> Callable[[int, int], None]:
            task = shown.add_task(what, total=None)
            return lambda done, total: shown.update(task, completed=done, total=total)

        yield bar
