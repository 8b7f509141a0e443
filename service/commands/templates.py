"""``skydelta templates``: look after the template cache, and warm it before the night."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Look after the cache of templates that the settings name: what was fetched from archives, and what
was projected onto the grids of repeated pointings.
"""

_EPILOG = """\
exit codes: 0 done; 2 wrong use or settings; 3 something was damaged, or could not be fetched

examples:
  skydelta templates prefetch tonight.csv --band r --size 4096x4096 --pixel-scale 1.01
  skydelta templates list --kind hips-tile
  skydelta templates show 3fa9c1
  skydelta templates verify
  skydelta templates prune --max-bytes 20G
"""

_FIELDS = """\
FIELDS.csv has a header line with ra and dec (degrees) and, where the options do not say, band,
width, height and pixel_scale (arcseconds); optionally name, position_angle (degrees, of the y axis,
from north through east) and mirrored. Lines that begin with # are left alone.
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "templates",
        help="list, check, prune or warm the template cache",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=raw,
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = _action(actions, "list", "what is in the cache")
    listing.add_argument("--kind", help="entries of one kind alone")
    listing.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="the last N used (20); 0 shows all"
    )
    show = _action(actions, "show", "all that is known of one entry")
    show.add_argument("id", metavar="ID", help="the beginning of its id is enough")
    _action(actions, "verify", "read everything, remove what is damaged")
    prune = _action(actions, "prune", "remove the least recently used, and what was left behind")
    prune.add_argument(
        "--max-bytes", metavar="SIZE", help="down to this, such as 20G (default: cache_bytes)"
    )
    prefetch = actions.add_parser(
        "prefetch", help="fetch the templates of a list of fields", description=_FIELDS,
        formatter_class=raw,
    )  # fmt: skip
    _common(prefetch)
    prefetch.add_argument("fields", type=Path, metavar="FIELDS.csv", help="where to look")
    prefetch.add_argument("--band", help="band of fields whose row names none")
    prefetch.add_argument("--size", type=_size, metavar="WxH", help="pixels of the detector")
    prefetch.add_argument("--pixel-scale", type=float, metavar="ARCSEC", help="of the detector")
    prefetch.add_argument("--jobs", type=_positive, default=4, metavar="N", help="at a time (4)")
    prefetch.add_argument(
        "--deadline", type=_seconds, metavar="SECONDS",
        help="the most time that a provider may take for a field (default: prefetch_seconds)",
    )  # fmt: skip


def _action(actions: Any, name: str, what: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=what, description=what)
    _common(parser)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    from service.commands.options import add_config

    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    try:
        return int(width), int(height or width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 4096x4096") from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 up")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds")
    return seconds


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Do one of the actions; return its exit code."""
    from service import cache_view
    from service.commands.options import settings_or_exit
    from service.templates import make_cache

    settings = settings_or_exit(args.config)
    if args.action == "prefetch":
        return _prefetch(args, settings)
    cache = make_cache(settings.templates)
    if args.action == "list":
        return cache_view.list_entries(cache, kind=args.kind, limit=args.limit, as_json=args.json)
    if args.action == "show":
        return cache_view.show_entry(cache, args.id, as_json=args.json)
    if args.action == "verify":
        return cache_view.verify(cache, as_json=args.json)
    return cache_view.prune(cache, _bytes(args.max_bytes), as_json=args.json)


def _bytes(text: str | None) -> int | None:
    from core.errors import UnusableInput
    from service.byte_sizes import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UnusableInput(f"--max-bytes: {error}") from None


def _prefetch(args: argparse.Namespace, settings: Any) -> int:
    from service import logs
    from service.field_list import DetectorDefaults, read_fields
    from service.template_prefetch import PrefetchOptions, prefetch
    from service.template_tally import TemplateTally
    from service.templates import make_templates

    # Whoever sits before a progress bar reads lines, whatever the service's log is collected by.
    logs.configure("WARNING", "human" if sys.stderr.isatty() else settings.log.format)
    width, height = args.size or (None, None)
    fields = read_fields(args.fields, DetectorDefaults(args.band, width, height, args.pixel_scale))
    tally = TemplateTally()
    chosen = settings.templates.ahead(args.deadline)
    source = make_templates(chosen, max_pixels=settings.pipeline.max_pixels, observer=tally)
    options = PrefetchOptions(
        jobs=args.jobs,
        min_overlap=settings.pipeline.min_overlap,
        deadline_seconds=chosen.most_seconds,
        as_json=args.json,
    )
    return prefetch(fields, source.templates, tally, options)
