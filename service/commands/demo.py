"""``skydelta demo``: a simulated survey through the real service, compared with the truth."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from service.demo.options import DemoFailed, DemoOptions, DemoPaths

if TYPE_CHECKING:
    from service.demo.scoring import Outcome

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Simulate a small survey, publish its exposures, follow the alerts that the service publishes, and
compare them with what was hidden in the images.
"""

_EPILOG = """\
examples:
  skydelta demo                                  six exposures of 1024 x 1024 pixels
  skydelta demo --exposures 2 --size 512         a quick one
  skydelta demo --broker localhost:9092          through your own Kafka, on topics of its own

exit codes: 0 passed; 1 too few recovered, too many false, or not carried through; 2 wrong use;
130 interrupted
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser of ``skydelta``."""
    default = DemoOptions(Path("demo-output"))
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="simulate a small survey and watch its alerts come out",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--exposures",
        type=_whole(1, 1000),
        default=default.exposures,
        metavar="N",
        help=f"how many exposures (default: {default.exposures})",
    )
    parser.add_argument(
        "--size",
        type=_whole(256, 8192),
        default=default.size,
        metavar="PIXELS",
        help=f"side of an exposure (default: {default.size})",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, 2**31),
        default=default.seed,
        metavar="N",
        help=f"another seed, another sky (default: {default.seed})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default.out,
        metavar="DIR",
        help=f"folder for everything it makes (default: {default.out})",
    )
    parser.add_argument(
        "--broker",
        metavar="HOST:PORT",
        help="a Kafka to use (default: one inside this process)",
    )
    parser.add_argument(
        "--cadence",
        type=_number(0.0, 3600.0),
        default=default.cadence,
        metavar="SECONDS",
        help=f"from one exposure to the next (default: {default.cadence:g})",
    )
    parser.add_argument(
        "--threshold",
        type=_number(1.0, 100.0),
        default=default.threshold,
        metavar="SIGMA",
        help=f"detection threshold of the service (default: {default.threshold:g})",
    )
    parser.add_argument(
        "--timeout",
        type=_number(1.0, 86400.0),
        default=default.timeout,
        metavar="SECONDS",
        help=f"give up after this (default: {default.timeout:g})",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the demonstration; see the exit codes in the help."""
    # Here, so that `skydelta --help` does not wait for the science to be imported.
    from service.demo.demonstration import run_demonstration

    options = DemoOptions(
        out=args.out,
        exposures=args.exposures,
        size=args.size,
        seed=args.seed,
        broker=args.broker,
        cadence=args.cadence,
        threshold=args.threshold,
        timeout=args.timeout,
    )
    console = Console()
    # A polite kill must stop the service too: it becomes an exception, and the way out is one.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        outcome = run_demonstration(options, console)
    except DemoFailed as error:
        sys.stderr.write(f"skydelta demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("skydelta demo: interrupted\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    _say(console, outcome, DemoPaths(options.out))
    return 0 if outcome.passed else 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(console: Console, outcome: Outcome, paths: DemoPaths) -> None:
    """Write the summary and where everything is."""
    bright = f"transients above {outcome.options.bright_snr:g} sigma"
    share = "" if outcome.completeness is None else f" ({100 * outcome.completeness:.1f} %)"
    facts = [
        (
            "recovered",
            f"{outcome.recovered_bright} of {outcome.injected_bright} {bright}{share}",
        ),
        ("missed", f"{outcome.injected_bright - outcome.recovered_bright}"),
        ("false", f"{outcome.count('false')} in {len(outcome.tallies)} exposures"),
        (
            "alerts",
            f"{len(outcome.verdicts)}: {outcome.count('transient')} of transients at any S/N, "
            f"{outcome.count('variable')} of variable stars",
        ),
    ]
    if outcome.on_defects:
        facts.insert(2, ("not counted", f"{outcome.on_defects} on bad columns or saturated pixels"))
    if outcome.latencies:
        each = " ".join(f"{seconds:.1f}" for seconds in outcome.latencies)
        facts.append(("latency", f"{each} s from an event to its last packet"))
    stages = sorted(outcome.stage_seconds().items(), key=lambda item: -item[1])
    if stages:
        each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages)
        facts.append(("time", f"{each} s an exposure"))
    console.print()
    for name, text in facts:
        console.print(f"[bold]{name:14}[/bold] {text}", soft_wrap=True, highlight=False)
    console.print()
    # Paths are printed unwrapped, so that they can be copied.
    for name, path in (
        ("contact sheet", paths.sheet),
        ("report", paths.report),
        ("packets", paths.alerts),
        ("figures", paths.summary),
        ("service log", paths.log),
    ):
        console.print(
            Text.assemble((f"{name:14}", "bold"), " ", str(path)), soft_wrap=True, highlight=False
        )
    console.print()
    for failure in outcome.failures:
        console.print(f"failed: {failure}", style="red", markup=False, highlight=False)
    if outcome.passed:
        console.print("passed", style="green")


def _whole(low: int, high: int) -> Any:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low} to {high}")
        return value

    return convert


def _number(low: float, high: float) -> Any:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {low:g} to {high:g}")
        return value

    return convert
