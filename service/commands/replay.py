"""``skydelta replay``: have exposures worked on once more."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.replaying import ReplayPlan

_DESCRIPTION = """\
Send the events of a time span to topics.exposures again, in transactions, so that the service works
on their exposures once more: the same bytes, key and headers, and two headers more: skydelta-replay
says when, skydelta-replay-of names the record that is repeated. Of several events of one exposure
the last one is sent, once. Every exposure gets one more status; its packets keep their ids.
"""

_EPILOG = """\
exit codes: 0 done; 1 the brokers do not answer or refuse; 2 wrong use or settings; 3 an exposure
that was named is not there

examples:
  skydelta replay --since 2026-11-22T18:00Z --until 2026-11-23T06:00Z --dry-run
  skydelta replay --since 2d --exposure-id cam1-20261122-000123
  skydelta replay --since 30d --topic exposures-archive
"""

_NOT_THERE = 3
_NAMED = 10


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    from service.commands.options import add_config, moment

    parser = subparsers.add_parser(
        "replay",
        help="have the exposures of a time span worked on once more",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument(
        "--since", type=moment, required=True, metavar="TIME",
        help="events from then on: 2026-11-22T18:00Z, 12h, 2d",
    )  # fmt: skip
    parser.add_argument("--until", type=moment, metavar="TIME", help="before then (now)")
    parser.add_argument(
        "--topic", metavar="TOPIC", help="where the events are read (topics.exposures)"
    )
    parser.add_argument(
        "--exposure-id", action="append", default=[], metavar="ID", help="this one (repeatable)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, only")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Replay; return the exit code."""
    from service.commands.options import brokers_or_exit, settings_or_exit

    settings = settings_or_exit(args.config)
    return brokers_or_exit(settings, lambda: _replay(args, settings))


def _replay(args: argparse.Namespace, settings: Any) -> int:
    from datetime import UTC, datetime

    from service.client_messages import ClientMessages
    from service.progress import progress_bar
    from service.replaying import ReplayRequest, plan_replay
    from service.republishing import Republisher
    from service.schema_registry import SchemaRegistry
    from service.topic_reading import topic_reader

    topics, messages = settings.topics, ClientMessages()
    request = ReplayRequest(
        source=args.topic or topics.exposures,
        target=topics.exposures,
        since=args.since,
        until=args.until or datetime.now(UTC),
        exposure_ids=args.exposure_id,
    )
    lookup = SchemaRegistry(settings.registry).schema if settings.registry.url else None
    with topic_reader(settings.kafka, messages) as reader, progress_bar() as bar:
        plan = plan_replay(reader, request, lookup, bar(f"reading {request.source}"))
        if plan.events and not args.dry_run:
            sender = Republisher(settings.kafka, messages, request.target)
            sender.send([resent for _, _, resent in plan.events], bar("sending"))
    found = [event.exposure_id for _, event, _ in plan.events]
    missing = sorted(set(args.exposure_id) - set(found))
    _tell(plan, found, missing, args)
    return _NOT_THERE if missing else 0


def _tell(plan: ReplayPlan, found: list[str], missing: list[str], args: argparse.Namespace) -> None:
    write = sys.stdout.write
    if args.json:
        facts = {
            "dry_run": args.dry_run,
            "replayed": found,
            "missing": missing,
            "superseded": plan.superseded,
            "unreadable": [record.origin for record in plan.unreadable],
            "expired": plan.expired,
        }
        write(f"{json.dumps(facts)}\n")
        return
    write(f"{len(found)} {'would be' if args.dry_run else 'were'} sent again\n")
    if args.dry_run:
        for name in found[:_NAMED]:
            write(f"  {name}\n")
        if len(found) > _NAMED:
            write(f"  ... and {len(found) - _NAMED} more\n")
    if plan.superseded:
        write(f"{plan.superseded} left out: there is a later event of the same exposure\n")
    if plan.unreadable:
        write(f"{len(plan.unreadable)} left out: they cannot be read (see skydelta dlq list)\n")
    if plan.expired:
        write(f"{len(plan.expired)} will end as expired: their expires_at has passed\n")
    for name in missing:
        write(f"{name}: there is no event of it in this time\n")
