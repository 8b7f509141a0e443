"""``skydelta check-config``: say what is wrong with the settings, or what they come to."""

from __future__ import annotations

import argparse
import sys
from typing import Any

_DESCRIPTION = """\
Check the settings file and the environment: one line for each problem and exit code 2, or OK and
the settings that would be used, with secrets masked. Nothing is connected to.
"""

_EPILOG = """\
examples:
  skydelta check-config --config skydelta.toml
  skydelta check-config --table          every setting, its variable, default and meaning
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    from service.commands.options import add_config

    parser = subparsers.add_parser(
        "check-config",
        help="check the settings, and show what they come to",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
