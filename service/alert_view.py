"""Showing an alert packet to a person: a table of facts on stdout, and a picture."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.alert_facts import FactGroup, alert_facts
from service.alert_reading import (
    CUTOUTS,
    AlertPacket,
    Stamp,
    UnreadableAlert,
    read_alert,
    read_stamp,
)
from service.triplet_figure import draw_triplet

__all__ = ["ViewRequest", "show"]


@dataclass(frozen=True)
class ViewRequest:
    """What to show.

    Attributes
    ----------
    alert : Path
        The packet.
    index : int
        Which record of it.
    png : Path or None
        Where the picture goes; beside the packet by default.
    picture : bool
        Whether one is drawn.
    as_json : bool
        Print the record as JSON instead of a table.
    """

    alert: Path
    index: int = 0
    png: Path | None = None
    picture: bool = True
    as_json: bool = False


def show(request: ViewRequest) -> int:
    """Show a packet; return 0, or 2 after one line on stderr if it cannot be shown."""
    try:
        packet = read_alert(request.alert, request.index)
        stamps = _stamps(packet, request.alert) if request.picture else {}
        picture = _picture(packet, stamps, request) if request.picture else None
    except UnreadableAlert as error:
        sys.stderr.write(f"skydelta view: {_one_line(error)}\n")
        return 2
    if request.as_json:
        sys.stdout.write(_as_json(packet, picture) + "\n")
        return 0
    console = Console()
    console.print(_table(packet, request.alert))
    if picture is not None:
        # Paths are printed unwrapped, so that they can be copied.
        console.print(f"triplet: {picture}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _stamps(packet: AlertPacket, path: Path) -> dict[str, Stamp]:
    try:
        return {kind: read_stamp(packet, name) for name, kind in CUTOUTS.items()}
    except UnreadableAlert as error:
        raise UnreadableAlert(f"{path}: {error} (--no-png shows its facts)") from error


def _picture(packet: AlertPacket, stamps: dict[str, Stamp], request: ViewRequest) -> Path:
    positive = str(packet.record["candidate"].get("isdiffpos")).lower() in {"t", "1", "true"}
    facts = {name: value for group in alert_facts(packet.record) for name, value in group.facts}
    subtitle = "   ".join(
        part
        for part in (
            facts.get("start (UTC)"),
            facts.get("band"),
            f"mag {facts['magpsf']}" if "magpsf" in facts else None,
            f"S/N {facts['S/N']}" if "S/N" in facts else None,
            f"rb {facts['rb'].split(',')[0]}" if "rb" in facts else None,
            facts.get("ra, dec"),
        )
        if part
    )
    title = f"{facts.get('objectId', '?')}   {facts.get('candid', '')}"
    problem: OSError | None = None
    for path in _places(packet, request):
        try:
            draw_triplet(stamps, path, title=title, subtitle=subtitle, faded=not positive)
        except OSError as error:
            problem = error
            continue
        return path
    raise UnreadableAlert(
        f"the picture cannot be written ({problem.strerror if problem else '?'}); name a place "
        "with --png"
    ) from problem


def _places(packet: AlertPacket, request: ViewRequest) -> list[Path]:
    """Where the picture may go: where the user said, else beside the packet, else here."""
    if request.png is not None:
        return [request.png]
    name = request.alert.stem if packet.count == 1 else f"{request.alert.stem}-{packet.index}"
    beside = request.alert.parent / f"{name}.png"
    here = Path.cwd() / f"{name}.png"
    return [beside, here] if os.access(beside.parent, os.W_OK) else [here]


def _table(packet: AlertPacket, path: Path) -> Table:
    groups: list[FactGroup] = alert_facts(packet.record)
    title = path.name
    if packet.count > 1:
        title += f" (record {packet.index} of {packet.count}, from 0)"
    table = Table(
        title=escape(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("name", style="cyan", no_wrap=True)
    table.add_column("value", overflow="fold")
    for number, group in enumerate(groups):
        if number:
            table.add_row("", "")
        table.add_row(f"[bold]{group.title}[/bold]", "")
        for name, value in group.facts:
            table.add_row(f"  {escape(name)}", escape(value))
    return table


def _as_json(packet: AlertPacket, picture: Path | None) -> str:
    record = {name: value for name, value in packet.record.items() if name not in CUTOUTS}
    record["png"] = None if picture is None else str(picture)
    return json.dumps(record, indent=2, default=str)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
