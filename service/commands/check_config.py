"""``skydelta check-config``: say what is wrong with the settings, or what they come to."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    from service.commands.options import add_config

    parser = subparsers.add_parser(
        "check-config",
        help="check the settings; show what they come to, secrets masked",
        description="Check the settings file and the environment: one line for each problem and "
        "exit code 2, or OK and the settings that would be used, with secrets masked.",
    )
    add_config(parser)
    parser.add_argument(
        "--table", action="store_true", help="print all settings as a Markdown table instead"
    )


def run(args: argparse.Namespace) -> int:
    """Check; return 0 when all is well, 2 otherwise."""
    from service import settings_report
    from service.commands.options import WRONG_USE, settings_or_exit

    if args.table:
        sys.stdout.write(settings_report.markdown_table())
        return 0
    settings = settings_or_exit(args.config)
    problems = settings_report.beyond_validation(settings)
    for problem in problems:
        sys.stderr.write(f"skydelta: {problem}\n")
    if problems:
        return WRONG_USE
    sys.stdout.write("OK\n\n")
    sys.stdout.write(settings_report.as_toml(settings))
    return 0
