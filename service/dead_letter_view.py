"""Dead letters for people: a table of them, one in full, and what came of sending them again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.errors import InvalidEvent
from service.dead_letters import DeadLetter
from service.event_wire import read_record
from service.requeueing import RequeuePlan
from service.topic_reading import StoredRecord

_WIDE = 240  # characters
_NAMED = 10  # exposures in a sentence about several


def list_letters(letters: Sequence[DeadLetter], *, limit: int, as_json: bool) -> None:
    """Print one line a letter, the newest last."""
    shown = letters[-limit:] if limit else letters
    if as_json:
        for letter in shown:
            _print_json(facts(letter))
        return
    console = Console()
    if not console.is_terminal:  # whoever reads it with a program has no narrow window
        console = Console(width=_WIDE)
    if not letters:
        console.print("no dead letters")
        return
    table = Table("time", box=None, padding=(0, 2, 0, 0))
    for name in ("exposure", "outcome", "error", "stage", "sent again", "message"):
        table.add_column(name, overflow="fold")
    for letter in shown:
        cells = [letter.fact(name) or "" for name in ("outcome", "error-class", "stage")]
        again = f"{letter.requeued}x" if letter.requeued else ""
        table.add_row(
            _second(letter.time), _plain(letter.exposure_id), *map(_plain, cells), again,
            _plain(letter.fact("message") or ""),
        )  # fmt: skip
    console.print(table)
    if len(shown) < len(letters):
        console.print(f"... and {len(letters) - len(shown)} before; --limit 0 shows all")


def show_letter(letter: DeadLetter, again: StoredRecord | None, *, as_json: bool) -> None:
    """Print all that is known of one letter, with the event as far as it can be read."""
    everything = facts(letter) | {
        "sent_again_as": None if again is None else again.origin,
        "event": _readable(letter),
    }
    if as_json:
        _print_json(everything)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in everything.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            table.add_row(name, _plain(text))
    Console().print(table)


def told(plan: RequeuePlan, *, dry_run: bool, as_json: bool) -> None:
    """Print what was sent again, or would be, and what not."""
    if as_json:
        _print_json(
            {
                "dry_run": dry_run,
                "requeued": [letter.exposure_id for letter, _ in plan.events],
                "requeued_before": {
                    letter.exposure_id: record.origin for letter, record in plan.done_before
                },
                "superseded": [letter.record.origin for letter in plan.superseded],
                "lost": [letter.exposure_id for letter in plan.lost],
            }
        )
        return
    number = len(plan.events)
    sys.stdout.write(f"{number} would be sent again\n" if dry_run else f"{number} sent again\n")
    if dry_run:
        _name([letter.exposure_id for letter, _ in plan.events])
    if plan.superseded:
        sys.stdout.write(f"{len(plan.superseded)} left out: there is a later letter of each\n")
    for letter, record in plan.done_before[:_NAMED]:
        sys.stdout.write(
            f"{letter.exposure_id}: left out, it was sent again already, at "
            f"{_second(record.time)} as {record.origin}; --again sends it nevertheless\n"
        )
    if len(plan.done_before) > _NAMED:
        more = len(plan.done_before) - _NAMED
        sys.stdout.write(f"... and {more} more that were sent again already\n")
    for letter in plan.lost:
        where = "/".join(map(str, letter.source or ("its source",)))
        sys.stdout.write(
            f"{letter.exposure_id}: cannot be sent again: the letter lacks its {letter.left_out}, "
            f"and {where} is no more\n"
        )


def facts(letter: DeadLetter) -> dict[str, Any]:
    """Return what the headers of a letter say."""
    return {
        "exposure_id": letter.exposure_id,
        "time": letter.time.isoformat(timespec="milliseconds"),
        "outcome": letter.fact("outcome"),
        "error_class": letter.fact("error-class"),
        "stage": letter.fact("stage"),
        "message": letter.fact("message"),
        "letter": letter.record.origin,
        "source": None if letter.source is None else "/".join(map(str, letter.source)),
        "requeued": letter.requeued,
        "left_out": letter.left_out,
        "bytes": len(letter.record.value or b""),
    }


def _readable(letter: DeadLetter) -> Any:
    """Return the fields of the event; what is none as text, its bytes escaped."""
    value = letter.record.value
    if value is None:
        return None
    try:
        return json.loads(json.dumps(read_record(value, None, "exposure"), default=str))
    except InvalidEvent:
        return value[:2000].decode("utf-8", "backslashreplace")


def _name(names: Sequence[str]) -> None:
    for name in names[:_NAMED]:
        sys.stdout.write(f"  {name}\n")
    if len(names) > _NAMED:
        sys.stdout.write(f"  ... and {len(names) - _NAMED} more\n")


def _second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _plain(text: str) -> str:
    """Return text of an event without what a terminal, or rich, would obey."""
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def _print_json(value: Mapping[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(value, ensure_ascii=True)}\n")
