"""``skydelta view``: an alert packet as a table of facts and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Show an alert packet of the ZTF family (skydelta's, ZTF's, a broker's): its facts as a table, and
its science, template and difference cutouts as a PNG.
"""

_EPILOG = """\
examples:
  skydelta view alert.avro
  skydelta view alert.avro --png triplet.png
  skydelta view night.avro --index 7 --json
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "view",
        help="show an alert packet: its facts, its triplet as a PNG",
        description=_DESCRIPTION,
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


def run(args: argparse.Namespace) -> int:
    """Show a packet; return 0, or 2 after one line on stderr if it cannot be shown."""
    # Imported late: this command alone needs to draw.
    from service.alert_view import ViewRequest, show

    return show(
        ViewRequest(args.alert, args.index, args.png, picture=not args.no_png, as_json=args.json)
    )
