"""Options and endings that several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings

WRONG_USE = 2


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
