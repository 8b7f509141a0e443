"""Options and endings that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings

WRONG_USE = 2
BROKERS_AWAY = 1


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with the settings (default: what SKYDELTA_CONFIG names, if anything); "
        "SKYDELTA_<SECTION>__<KEY> in the environment wins over it",
    )


def settings_or_exit(config: Path | None) -> Settings:
    """Return the settings, or end the program with one line for each problem."""
    from service.settings_loading import SettingsError, load

    try:
        return load(config)
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"skydelta: {problem}\n")
        raise SystemExit(WRONG_USE) from None


def moment(text: str) -> datetime:
    """Read a time of the command line."""
    from service.moments import parse_moment

    try:
        return parse_moment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def brokers_or_exit(settings: Settings, work: Callable[[], int]) -> int:
    """Do some work with the brokers; say in one line why they will not, and return 1."""
    from confluent_kafka import KafkaException

    from service import logs
    from service.broker_advice import in_words

    logs.configure("WARNING", settings.log.format)
    try:
        return work()
    except KafkaException as exception:
        sys.stderr.write(f"skydelta: {in_words(exception.args[0])}\n")
        return BROKERS_AWAY
