"""``skydelta dlq``: look at the dead letters, and send their events again."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

_DESCRIPTION = """\
Look at the events that could not be processed, and send them again once their cause is mended. The
topic is read up to its end, committed records only; nothing in it is changed.
"""

_EPILOG = """\
exit codes: 0 done; 1 the brokers do not answer or refuse; 2 wrong use or settings, no such letter;
3 something that was asked for was not sent again (it was before, or is lost)

examples:
  skydelta dlq list --since 12h
  skydelta dlq list --reason MemoryLimitExceeded --reason "no celestial WCS"
  skydelta dlq show cam1-20261122-000123
  skydelta dlq requeue --reason DeadlineExceeded --since 2026-11-22T18:00 --dry-run
  skydelta dlq requeue --exposure-id cam1-20261122-000123
"""

_REQUEUE = """\
Send the events of dead letters to topics.exposures again, in transactions: the same bytes, key and
headers, and two headers more: skydelta-requeued says how often, skydelta-requeued-from names the
letter. Of several letters of one exposure the last one counts. What was sent again before is left
out, unless --again is given. Packets of an exposure keep their ids.
"""

_LEFT_OUT = 3


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "dlq",
        help="list, show or requeue dead letters",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=raw,
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="one line a letter", description="One line a letter.")
    _select(listing)
    listing.add_argument(
        "--limit", type=int, default=50, metavar="N", help="the last N (50); 0 shows all"
    )
    show = actions.add_parser(
        "show", help="the last letter of an exposure", description="The last letter, in full."
    )
    show.add_argument("exposure_id", metavar="ID", help="exposure, or topic/partition/offset")
    _common(show)
    requeue = actions.add_parser(
        "requeue", help="send events again", description=_REQUEUE, formatter_class=raw
    )
    _select(requeue)
    requeue.add_argument("--all", action="store_true", help="all letters, without any selection")
    requeue.add_argument("--again", action="store_true", help="also what was sent again before")
    requeue.add_argument("--dry-run", action="store_true", help="say what would be sent, only")


def _select(parser: argparse.ArgumentParser) -> None:
    from service.commands.options import moment

    parser.add_argument(
        "--exposure-id", action="append", default=[], metavar="ID", help="this one (repeatable)"
    )
    parser.add_argument(
        "--reason",
        action="append",
        default=[],
        metavar="TEXT",
        help="outcome, error class, or part of the message (repeatable)",
    )
    parser.add_argument(
        "--since", type=moment, metavar="TIME", help="from then on: 2026-11-22T18:00Z, 12h, 2d"
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="before then")
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    from service.commands.options import add_config

    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")


def run(args: argparse.Namespace) -> int:
    """Do one of the actions; return its exit code."""
    from service.commands.options import brokers_or_exit, settings_or_exit

    settings = settings_or_exit(args.config)
    if args.action == "requeue" and _selection(args).is_everything and not args.all:
        _wrong_use("say which letters: --exposure-id, --reason, --since, --until, or --all")
    return brokers_or_exit(settings, lambda: _ACTIONS[args.action](args, settings))


def _wrong_use(what: str) -> NoReturn:
    from core.errors import UnusableInput

    raise UnusableInput(what)


def _selection(args: argparse.Namespace) -> Any:
    from service.dead_letters import Selection

    return Selection(args.exposure_id, args.reason, args.since, args.until)


def _list(args: argparse.Namespace, settings: Any) -> int:
    from service.client_messages import ClientMessages
    from service.dead_letter_view import list_letters
    from service.progress import progress_bar
    from service.requeueing import letters
    from service.topic_reading import topic_reader

    with topic_reader(settings.kafka, ClientMessages()) as reader, progress_bar() as bar:
        topic = settings.topics.dead_letters
        found = letters(reader, topic, _selection(args), bar(f"reading {topic}"))
    list_letters(found, limit=max(0, args.limit), as_json=args.json)
    return 0


def _show(args: argparse.Namespace, settings: Any) -> int:
    from service.client_messages import ClientMessages
    from service.dead_letter_view import show_letter
    from service.dead_letters import Selection
    from service.progress import progress_bar
    from service.requeueing import letters, sent_again
    from service.topic_reading import topic_reader

    topics = settings.topics
    with topic_reader(settings.kafka, ClientMessages()) as reader, progress_bar() as bar:
        selection = Selection([args.exposure_id])
        found = letters(
            reader, topics.dead_letters, selection, bar(f"reading {topics.dead_letters}")
        )
        if not found:
            _wrong_use(f"{topics.dead_letters} has no letter of {args.exposure_id!r}")
        chosen = found[-1]
        again = sent_again(reader, topics.exposures, [chosen], bar(f"reading {topics.exposures}"))
    show_letter(chosen, again.get(chosen.record.origin), as_json=args.json)
    if len(found) > 1 and not args.json:
        sys.stdout.write(f"{len(found) - 1} earlier letters; skydelta dlq list shows them\n")
    return 0


def _requeue(args: argparse.Namespace, settings: Any) -> int:
    from service.client_messages import ClientMessages
    from service.dead_letter_view import told
    from service.progress import progress_bar
    from service.republishing import Republisher
    from service.requeueing import letters, plan_requeue, sent_again
    from service.topic_reading import topic_reader

    topics, messages = settings.topics, ClientMessages()
    with topic_reader(settings.kafka, messages) as reader, progress_bar() as bar:
        chosen = letters(
            reader, topics.dead_letters, _selection(args), bar(f"reading {topics.dead_letters}")
        )
        before = sent_again(reader, topics.exposures, chosen, bar(f"reading {topics.exposures}"))
        plan = plan_requeue(reader, chosen, before, topics.exposures, again=args.again)
        if plan.events and not args.dry_run:
            sender = Republisher(settings.kafka, messages, topics.exposures)
            sender.send([event for _, event in plan.events], bar("sending"))
    told(plan, dry_run=args.dry_run, as_json=args.json)
    return _LEFT_OUT if plan.done_before or plan.lost else 0


_ACTIONS = {"list": _list, "show": _show, "requeue": _requeue}
