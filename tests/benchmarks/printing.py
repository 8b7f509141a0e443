"""Tables on the screen, or as Markdown for ``RESULTS.md``."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table


def show(table: Table, *, markdown: bool, width: int = 220) -> None:
    """Print a table; Markdown rows are never wrapped."""
    if markdown:
        table.box = box.MARKDOWN
        for column in table.columns:
            column.no_wrap = True
        width = 500
    Console(width=width).print(table)
