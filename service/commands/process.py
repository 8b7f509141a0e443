"""``skydelta process``: one exposure and one template on disk, without Kafka."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_DONE, _WRONG_INPUT, _REJECTED = 0, 2, 3

_DESCRIPTION = """\
Subtract a template from a science image, and write what changed.

DIR receives status.json (what became of the exposure, and why), candidates.ecsv (one row a
candidate; pixels count from 0), alerts/<candid>.avro (one packet a candidate) and, with --planes,
difference.fits (DIFF, NOISE, SCALED, CONVOLVED, MASK). Files of an earlier run in DIR are replaced.
"""

_EPILOG = """\
What is not given is taken from the FITS header, or estimated from the pixels; status.json says
what was estimated.

exit codes:
  0  done
  2  wrong use, or input that cannot be read
  3  processed, but rejected: status.json says why

examples:
  skydelta process science.fits --template deep.fits --out night1
  skydelta process sci.fits.fz --hdu SCI --mask sci_mask.fits --template ref.fits --band r \\
      --mjd 60000.25 --zero-point 26.3 --planes --out night1
  skydelta process b.fits --template a.fits --aligned --out pair
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "process",
        help="process one exposure on disk, without Kafka",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("science", metavar="SCIENCE.fits", help="the science image")
    parser.add_argument("--template", required=True, metavar="FILE", help="the template image")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the results go here"
    )
    files = parser.add_argument_group("files that belong to the images")
    files.add_argument("--mask", metavar="FILE", help="mask of the science image; 0 is good")
    weights = files.add_mutually_exclusive_group()
    weights.add_argument("--weight", metavar="FILE", help="its weight, 1 / variance; 0 is bad")
    weights.add_argument("--variance", metavar="FILE", help="its variance, ADU squared")
    files.add_argument("--hdu", type=_hdu, metavar="N", help="its extension, number or name")
    files.add_argument("--template-mask", metavar="FILE", help="mask of the template")
    template_weights = files.add_mutually_exclusive_group()
    template_weights.add_argument("--template-weight", metavar="FILE", help="its weight")
    template_weights.add_argument("--template-variance", metavar="FILE", help="its variance")
    files.add_argument("--template-hdu", type=_hdu, metavar="N", help="extension of the template")
    facts = parser.add_argument_group("facts that win over the header")
    facts.add_argument("--exposure-id", metavar="ID", help="default: the name of the file")
    facts.add_argument("--band", help="photometric band")
    facts.add_argument("--mjd", type=_finite, help="mid-exposure, MJD (UTC)")
    facts.add_argument("--exposure-time", type=_positive, metavar="S", help="seconds")
    facts.add_argument("--gain", type=_positive, metavar="G", help="electrons per ADU")
    facts.add_argument("--read-noise", type=_not_negative, metavar="E", help="electrons")
    facts.add_argument("--saturation", type=_positive, metavar="ADU", help="saturation level")
    facts.add_argument("--zero-point", type=_finite, metavar="MAG", help="AB magnitude of 1 ADU")
    how = parser.add_argument_group("processing")
    how.add_argument(
        "--aligned",
        action="store_true",
        help="both images lie on one pixel grid; no WCS is needed, and no packets are written",
    )
    how.add_argument(
        "--engine",
        action="append",
        metavar="NAME",
        help="sfft (default), zogy, or hotpants, your own program of that name; given again: tried "
        "when the one before cannot be trusted",
    )
    how.add_argument(
        "--threshold",
        type=_positive,
        default=5.0,
        metavar="SIGMA",
        help="of detection (default: 5)",
    )
    how.add_argument(
        "--threads", type=_whole, metavar="N", help="threads that compute (default: all CPUs)"
    )
    parser.add_argument("--planes", action="store_true", help="write difference.fits")
    parser.add_argument("--json", action="store_true", help="print the status record as JSON")


def run(args: argparse.Namespace) -> int:
    """Process one exposure; return the exit code."""
    # Imported late: the science takes seconds to import, and --help should not.
    from service.offline_command import run_offline

    return run_offline(args)


def _hdu(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value


def _not_negative(text: str) -> float:
    value = _finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
