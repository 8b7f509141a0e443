"""The demonstration, top to bottom: simulate, start, publish, follow, compare, report."""

from __future__ import annotations

import json
import logging
import time
from contextlib import ExitStack

from rich.console import Console

from core.simulate import SimulatedSurvey, SurveySettings, simulate_survey
from service.demo.broker import DemoBroker, embedded_broker, real_broker
from service.demo.display import Display, make_display
from service.demo.options import DemoFailed, DemoOptions, DemoPaths
from service.demo.pictures import choose, contact_sheet
from service.demo.report import write_report, write_summary
from service.demo.scoring import Outcome, Tally
from service.demo.service_process import ServiceProcess, running_service
from service.demo.stream import Alert, EventPublisher, Follower
from service.status import json_ready

logger = logging.getLogger(__name__)

_SHEET_TRIPLETS = 36


def run_demonstration(options: DemoOptions, console: Console) -> Outcome:
    """Carry a demonstration through and write everything that it produces.

    Parameters
    ----------
    options : DemoOptions
        What to do.
    console : rich.console.Console
        Where to show it.

    Returns
    -------
    Outcome
        What came of it; passed or not.

    Raises
    ------
    DemoFailed
        If it could not be carried through.
    """
    begun = time.monotonic()
    deadline = begun + options.timeout
    paths = DemoPaths(options.out.resolve())
    paths.prepare()
    with ExitStack() as stack:
        display = stack.enter_context(make_display(console, options))
        display.stage("simulating the survey")
        survey = simulate_survey(
            SurveySettings(
                n_exposures=options.exposures,
                shape=(options.size, options.size),
                seed=options.seed,
                n_transients=_per_area(36, options.size),
                n_variables=_per_area(8, options.size),
            ),
            paths.survey,
            display.simulated,
        )
        display.stage("starting the broker and the service (the first start compiles: a minute)")
        broker = stack.enter_context(
            embedded_broker() if options.broker is None else real_broker(options.broker)
        )
        follower = Follower(broker)
        stack.callback(follower.close)
        service = stack.enter_context(running_service(options, paths, broker))
        service.wait_until_ready(deadline, display.tick)
        tallies = _follow(options, paths, survey, broker, follower, service, display, deadline)
        display.stage("finished")
    outcome = Outcome.of(tallies, options)
    contact_sheet(choose(outcome, _SHEET_TRIPLETS), paths.sheet, _headline(outcome))
    elapsed = time.monotonic() - begun
    write_report(outcome, paths, elapsed)
    write_summary(outcome, paths.summary, elapsed)
    return outcome


def _follow(
    options: DemoOptions,
    paths: DemoPaths,
    survey: SimulatedSurvey,
    broker: DemoBroker,
    follower: Follower,
    service: ServiceProcess,
    display: Display,
    deadline: float,
) -> list[Tally]:
    """Publish the events at their cadence and take in what comes, until all is there."""
    tallies = [Tally(exposure) for exposure in survey.exposures]
    by_id = {tally.exposure_id: tally for tally in tallies}
    waiting = list(tallies)
    publisher = EventPublisher(broker)
    next_event = time.monotonic()
    display.stage("following the alerts")
    with paths.status.open("w", encoding="utf-8") as status_file:
        while not all(tally.complete for tally in tallies):
            if waiting and time.monotonic() >= next_event:
                tally = waiting.pop(0)
                tally.published = publisher.publish(tally.exposure.event)
                next_event += options.cadence
                display.update(tallies)
            for record in follower.poll(0.1):
                known = by_id.get(record.exposure_id)
                if known is None:
                    logger.warning("a record of an unknown exposure: %s", record.exposure_id)
                    continue
                tally = known
                was_complete = tally.complete
                if not tally.take(record):
                    continue
                if isinstance(record, Alert):
                    (paths.alerts / f"{record.candid}.avro").write_bytes(record.payload)
                else:
                    status_file.write(json.dumps(json_ready(record.record)) + "\n")
                finished = tally if tally.complete and not was_complete else None
                display.update(tallies, finished)
            service.check()
            if time.monotonic() > deadline:
                left = [tally.exposure_id for tally in tallies if not tally.complete]
                raise DemoFailed(
                    f"after {options.timeout:g} s nothing final was heard of "
                    f"{', '.join(left)}; see {paths.log}"
                )
    return tallies


def _per_area(number: int, size: int) -> int:
    """Scale a number for a frame of 1024 pixels a side to another size."""
    return max(round(number * (size / 1024.0) ** 2), 2)


def _headline(outcome: Outcome) -> str:
    return (
        f"{outcome.recovered_bright} of {outcome.injected_bright} transients above "
        f"{outcome.options.bright_snr:g} sigma recovered · "
        f"{outcome.count('transient')} transients, {outcome.count('variable')} variables and "
        f"{outcome.count('false')} false candidates in {len(outcome.tallies)} exposures"
    )
