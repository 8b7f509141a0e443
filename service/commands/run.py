"""``skydelta run``: consume exposure events and publish alerts until told to stop."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from typing import Any

_DESCRIPTION = """\
Consume exposure events from Kafka, and publish alert packets and one status for every event, until
SIGTERM or Ctrl-C. `skydelta check-config` says beforehand what is wrong with the settings.
"""

_EPILOG = """\
exit codes: 0 stopped when asked to; 1 it cannot go on, the log says why; 2 wrong settings

examples:
  skydelta run --config skydelta.toml
  SKYDELTA_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 skydelta run --config skydelta.toml
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    from service.commands.options import add_config

    parser = subparsers.add_parser(
        "run",
        help="run the service: exposure events in, alert packets out",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Run the service; return 0 after a stop that was asked for, 1 when it cannot go on."""
    from confluent_kafka import KafkaException

    from service import app, logs
    from service.broker_advice import in_words
    from service.commands.options import settings_or_exit
    from service.prefetch_work import make_prefetch_work
    from service.publisher import ProducerFailed, error_of
    from service.settings_report import missing_files
    from service.work import WorkSettings, make_exposure_work
    from service.workers import WorkersCannotStart, WorkerSetup

    settings = settings_or_exit(args.config)
    logs.configure(settings.log.level, settings.log.format)
    for problem in missing_files(settings):  # a folder may yet be mounted, so only a warning
        logging.getLogger(__name__).warning("%s", problem)
    worker = WorkerSetup(
        make=make_exposure_work,
        argument=WorkSettings.of(settings),
        threads=settings.workers.threads_each,
        start_timeout_seconds=settings.workers.start_timeout_seconds,
        memory_bytes=settings.workers.memory_limit,
    )
    prefetch = None
    if settings.templates.prefetch and settings.templates.fetches:
        prefetch = replace(worker, make=make_prefetch_work, threads=1)
    try:
        app.run(settings, worker, prefetch)
    except KafkaException as exception:
        return _cannot_go_on(in_words(error_of(exception)))
    except (ProducerFailed, WorkersCannotStart, OSError) as error:
        return _cannot_go_on(str(error))
    return 0


def _cannot_go_on(why: str) -> int:
    logging.getLogger(__name__).critical("the service cannot go on: %s", why)
    sys.stderr.flush()
    return 1
