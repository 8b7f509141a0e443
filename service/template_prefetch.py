"""Warming the template cache from a list of fields, several at a time."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from core.deadline import Deadline
from core.errors import ExposureError, NoTemplate
from core.templates import TemplateProvider
from service.byte_sizes import shown_bytes
from service.fetching_ahead import fetch_ahead
from service.pointings import Pointing
from service.template_tally import TemplateTally

_INCOMPLETE = 3


@dataclass(frozen=True)
class Warmed:
    """What came of one field: ``fetched``, ``none`` or ``failed``, and what is to be said of it."""

    name: str
    result: str
    message: str
    seconds: float


@dataclass(frozen=True)
class PrefetchOptions:
    """How fields are warmed.

    Attributes
    ----------
    jobs : int
        Fields at a time.
    min_overlap : float
        The least fraction of a field that a template must cover.
    deadline_seconds : float
        The most time for a field.
    as_json : bool
        Print one JSON object in place of lines.
    """

    jobs: int = 4
    min_overlap: float = 0.3
    deadline_seconds: float = 300.0
    as_json: bool = False


def prefetch(
    fields: Sequence[Pointing],
    templates: TemplateProvider,
    tally: TemplateTally,
    options: PrefetchOptions,
) -> int:
    """Ask for the template of every field; return 0, or 3 if one could not be asked for.

    Parameters
    ----------
    fields : sequence of Pointing
    templates : TemplateProvider
        Over the cache that is to be warmed; ``tally`` is its observer.
    tally : TemplateTally
    options : PrefetchOptions
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    done: list[Warmed] = []
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        bar = progress.add_task("fields", total=len(fields))
        try:
            jobs = [pool.submit(_warm, field, templates, options) for field in fields]
            for job in as_completed(jobs):
                warmed = job.result()
                done.append(warmed)
                progress.advance(bar)
                if warmed.result != "fetched" and not options.as_json:
                    console.print(
                        f"{warmed.name}: {warmed.message}", soft_wrap=True, markup=False,
                        highlight=False,
                    )  # fmt: skip
        finally:  # after a defect or Ctrl-C nothing more is begun
            pool.shutdown(cancel_futures=True)
    results = Counter(warmed.result for warmed in done)
    size = sum(tally.take().fetched_bytes.values())
    if options.as_json:
        facts = {
            "fields": [vars(warmed) for warmed in sorted(done, key=lambda w: w.name)],
            "fetched_bytes": size,
        }
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        sys.stdout.write(
            f"{results['fetched']} of {len(fields)} fields have a template, {results['none']} have "
            f"none, {results['failed']} failed; {shown_bytes(size)} were fetched\n"
        )
    return _INCOMPLETE if results["failed"] else 0


def _warm(field: Pointing, templates: TemplateProvider, options: PrefetchOptions) -> Warmed:
    started = time.monotonic()
    try:
        deadline = Deadline(options.deadline_seconds)
        message = fetch_ahead(templates, field.request(options.min_overlap, deadline))
        result = "fetched"
    except NoTemplate as error:
        result, message = "none", str(error)
    except ExposureError as error:
        result, message = "failed", str(error)
    return Warmed(field.pointing_id, result, message, round(time.monotonic() - started, 3))
