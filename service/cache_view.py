"""The template cache for people: what is in it, whether it is sound, and making it smaller."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from core.errors import UnusableInput
from core.templates.cache import CacheEntry, TemplateCache
from service.byte_sizes import shown_age, shown_bytes

_SHORT = 12  # characters of a digest
_DAMAGED = 3


def list_entries(cache: TemplateCache, *, kind: str | None, limit: int, as_json: bool) -> int:
    """Print the sums by kind and the entries, the most recently used first; return 0."""
    entries = [e for e in cache.entries() if kind is None or e.stored.kind == kind]
    entries.reverse()
    if as_json:
        return _print_json(entries[:limit] if limit else entries)
    console = Console()
    if not entries:
        console.print(f"nothing is kept in {cache.folder}", soft_wrap=True, markup=False)
        return 0
    console.print(_by_kind(entries))
    console.print(
        f"{shown_bytes(sum(e.stored.size for e in entries))} of {shown_bytes(cache.max_bytes)} "
        f"in {cache.folder}\n",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    shown = entries[:limit] if limit else entries
    table = Table("id", "kind", "size", "age", "used", "what", box=None, padding=(0, 2, 0, 0))
    for entry in shown:
        made = entry.sidecar.age if entry.sidecar else 0.0
        table.add_row(
            entry.stored.digest[:_SHORT], entry.stored.kind, shown_bytes(entry.stored.size),
            shown_age(made), f"{shown_age(time.time() - entry.stored.used)} ago", _what(entry),
        )  # fmt: skip
    console.print(table)
    if len(shown) < len(entries):
        console.print(f"... and {len(entries) - len(shown)} more; --limit 0 shows all")
    return 0


def show_entry(cache: TemplateCache, name: str, *, as_json: bool) -> int:
    """Print all that is known of one entry; return 0.

    Raises
    ------
    core.errors.UnusableInput
        If no entry, or more than one, begins with that id.
    """
    found = [entry for entry in cache.entries() if entry.stored.digest.startswith(name.lower())]
    if len(found) != 1:
        number = "no entry" if not found else f"{len(found)} entries"
        raise UnusableInput(
            f"{number} of {cache.folder} begin with {name!r}; skydelta templates list names them"
        )
    if as_json:
        return _print_json(found)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in _facts(found[0]).items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value))
    Console().print(table)
    return 0


def verify(cache: TemplateCache, *, as_json: bool) -> int:
    """Read everything, remove what is damaged and name it; return 3 if there was any."""
    statistics = cache.statistics()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(
            f"reading {statistics.entries} entries, {shown_bytes(statistics.size)}", total=None
        )
        damaged = list(cache.verify())
    if as_json:
        _print_json(damaged)
        return _DAMAGED if damaged else 0
    for entry in damaged:
        sys.stdout.write(
            f"removed {entry.stored.kind} {entry.stored.digest[:_SHORT]}: {entry.damage}\n"
        )
    sound = statistics.entries - len(damaged)
    sys.stdout.write(f"{sound} of {statistics.entries} entries are sound\n")
    return _DAMAGED if damaged else 0


def prune(cache: TemplateCache, max_bytes: int | None, *, as_json: bool) -> int:
    """Make the cache smaller, or clear it up; return 0."""
    went = cache.prune(max_bytes)
    left = cache.statistics()
    if as_json:
        facts = {"removed": went.entries, "removed_bytes": went.size, "bytes": left.size}
        sys.stdout.write(json.dumps(facts) + "\n")
        return 0
    sys.stdout.write(
        f"removed {went.entries} entries, {shown_bytes(went.size)}; {left.entries} are left, "
        f"{shown_bytes(left.size)}\n"
    )
    return 0


def _by_kind(entries: list[CacheEntry]) -> Table:
    table = Table("kind", "entries", "holes", "size", box=None, padding=(0, 2, 0, 0))
    for kind in sorted({entry.stored.kind for entry in entries}):
        own = [entry for entry in entries if entry.stored.kind == kind]
        holes = sum(entry.sidecar is not None and entry.sidecar.hole is not None for entry in own)
        size = sum(entry.stored.size for entry in own)
        table.add_row(kind, str(len(own)), str(holes), shown_bytes(size))
    return table


def _what(entry: CacheEntry) -> str:
    if entry.sidecar is None:
        return f"damaged: {entry.damage}"
    if entry.sidecar.hole is not None:
        return f"hole: {entry.sidecar.hole}"
    return " ".join(part for part in entry.sidecar.identity if part)[:100]


def _facts(entry: CacheEntry) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": entry.stored.digest,
        "kind": entry.stored.kind,
        "file": None if entry.stored.data is None else str(entry.stored.data),
        "bytes": entry.stored.size,
        "used": _time(entry.stored.used),
    }
    if entry.sidecar is not None:
        facts |= {
            "made": _time(entry.sidecar.made),
            "identity": list(entry.sidecar.identity),
            "checksum": entry.sidecar.checksum or None,
            "hole": entry.sidecar.hole,
            "source": dict(entry.sidecar.source),
        }
    if entry.damage:
        facts["damage"] = entry.damage
    return facts


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _print_json(entries: Iterable[CacheEntry]) -> int:
    sys.stdout.write(json.dumps([_facts(entry) for entry in entries], indent=2) + "\n")
    return 0
