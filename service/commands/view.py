"""``skydelta view``: an alert packet as a table of facts and a picture."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

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

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  skydelta view demo-output/alerts/4975307251101184342.avro
  skydelta view alert.avro --png triplet.png
  skydelta view night.avro --index 7 --json
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser of ``skydelta``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "view",
        help="show an alert packet: its facts as a table, its triplet as a PNG",
        description="Show an alert packet of the ZTF family (skydelta's, ZTF's, a broker's): "
        "its facts as a table, and its science, template and difference cutouts as a PNG.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("alert", type=Path, metavar="ALERT.avro", help="the packet")
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="where to write the picture (default: beside it)"
    )
    parser.add_argument("--no-png", action="store_true", help="the facts alone; no picture")
    parser.add_argument(
        "--index", type=int, default=0, metavar="N", help="record of a file of several, from 0"
    )
    parser.add_argument("--json", action="store_true", help="the record, without cutouts, as JSON")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Show a packet; returns 0, or 2 after one line on stderr if it cannot be shown."""
    try:
        packet = read_alert(args.alert, args.index)
        stamps = {} if args.no_png else _stamps(packet, args.alert)
        picture = None if args.no_png else _picture(packet, stamps, args)
    except UnreadableAlert as error:
        sys.stderr.write(f"skydelta view: {_one_line(error)}\n")
        return 2
    if args.json:
        sys.stdout.write(_as_json(packet, picture) + "\n")
        return 0
    console = Console()
    console.print(_table(packet, args.alert))
    if picture is not None:
        # Paths are printed unwrapped, so that they can be copied.
        console.print(f"triplet: {picture}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _stamps(packet: AlertPacket, path: Path) -> dict[str, Stamp]:
    try:
        return {kind: read_stamp(packet, name) for name, kind in CUTOUTS.items()}
    except UnreadableAlert as error:
        raise UnreadableAlert(f"{path}: {error} (--no-png shows its facts)") from error


def _picture(packet: AlertPacket, stamps: dict[str, Stamp], args: argparse.Namespace) -> Path:
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
    for path in _places(packet, args):
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


def _places(packet: AlertPacket, args: argparse.Namespace) -> list[Path]:
    """Where the picture may go: where the user said, else beside the packet, else here."""
    if args.png is not None:
        return [args.png]
    name = args.alert.stem if packet.count == 1 else f"{args.alert.stem}-{packet.index}"
    beside = args.alert.parent / f"{name}.png"
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
