"""The command line: ``skydelta <command>``, one module in `service.commands` each."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from core.errors import ExposureError
from service import commands

_HELPERS = {"options"}
_ORDER = ("demo", "run", "process", "view", "templates", "dlq", "replay", "check_config")
_INTERRUPTED = 130
_EPILOG = """\
examples:
  skydelta demo                       the quickest way to see what it does
  skydelta process science.fits --template template.fits --out results
  skydelta run --config skydelta.toml
  skydelta COMMAND --help             what a command takes
"""
_WRONG_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    names = _command_names()
    wanted = next((arg.replace("-", "_") for arg in argv if not arg.startswith("-")), None)
    modules = {name: _command(name) for name in ([wanted] if wanted in names else names)}
    parser = _parser(modules)
    if not argv:
        parser.print_help(sys.stderr)
        return _WRONG_INPUT
    args = parser.parse_args(argv)
    try:
        return int(modules[args.command.replace("-", "_")].run(args))
    except ExposureError as error:
        sys.stderr.write(f"skydelta: {error}\n")
        return _WRONG_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser(modules: dict[str, ModuleType]) -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="skydelta",
        description="Exposures in, alert packets for what changed in the sky out.",
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for module in modules.values():
        module.add_parser(subparsers)
    return parser


def _command_names() -> list[str]:
    found = {module.name for module in pkgutil.iter_modules(commands.__path__)} - _HELPERS
    return [name for name in _ORDER if name in found] + sorted(found - set(_ORDER))


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"service.commands.{name}")


class _OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(_WRONG_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Puts the longest command and what it does on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=20)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"skydelta {version('skydelta')}\n")
        parser.exit()


if __name__ == "__main__":
    raise SystemExit(main())
