"""What ``skydelta process`` does with its arguments, and what it tells the person."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from astropy.utils.exceptions import AstropyWarning
from rich.console import Console
from rich.table import Table

from core.errors import ExposureError
from core.exposure import Exposure, ExposureResult
from core.pipeline import PipelineSettings
from service.cpus import available_cpus
from service.offline import (
    OfflineFiles,
    OfflineJob,
    TemplateFiles,
    process_offline,
    unreadable_input,
)

__all__ = ["run_offline"]

_DONE, _WRONG_INPUT, _REJECTED = 0, 2, 3
_SHOWN = 10
_SUFFIXES = re.compile(r"(\.(fits|fit|fts))?(\.(gz|fz|bz2))?$", re.IGNORECASE)


def run_offline(args: argparse.Namespace) -> int:
    """Process one exposure on disk; return the exit code of ``skydelta process``."""
    # Warnings of libraries about odd headers are for the log; stderr says one thing.
    warnings.simplefilter("ignore", AstropyWarning)
    logging.getLogger().addHandler(logging.NullHandler())
    console = Console(stderr=True)
    busy = console.status(f"processing {args.science}") if console.is_terminal else nullcontext()
    try:
        with busy:
            result, status, files = process_offline(_job(args))
    except (ValueError, ExposureError) as error:
        return _complain(str(error), _WRONG_INPUT)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else f"{args.out}: "
        return _complain(f"{where}{error.strerror or error}", _WRONG_INPUT)
    if args.json:
        sys.stdout.write(json.dumps(status, indent=2) + "\n")
    if result.outcome != "published":
        where = f" (see {files.status})"
        code = _WRONG_INPUT if unreadable_input(result) else _REJECTED
        return _complain(f"{result.outcome}: {result.reason}{where}", code)
    if not args.json:
        _report(result, status, files)
    return _DONE


def exposure_id_of(science: str) -> str:
    """Return the name of a file without the suffixes of FITS."""
    name = Path(science).name
    return _SUFFIXES.sub("", name) or name


def _job(args: argparse.Namespace) -> OfflineJob:
    return OfflineJob(
        exposure=Exposure(
            exposure_id=args.exposure_id or exposure_id_of(args.science),
            science=args.science,
            mask=args.mask,
            weight=args.weight,
            variance=args.variance,
            hdu=args.hdu,
            band=args.band,
            mjd_mid=args.mjd,
            exposure_time=args.exposure_time,
            gain=args.gain,
            read_noise=args.read_noise,
            saturation=args.saturation,
            zero_point=args.zero_point,
        ),
        template=TemplateFiles(
            image=args.template,
            mask=args.template_mask,
            weight=args.template_weight,
            variance=args.template_variance,
            hdu=args.template_hdu,
        ),
        directory=args.out,
        settings=PipelineSettings(
            engines=tuple(args.engine or ("sfft",)),
            threshold=args.threshold,
            aligned=args.aligned,
            keep_difference=args.planes,
            threads=args.threads or available_cpus(),
        ),
    )


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"skydelta process: {' '.join(message.split())}\n")
    return code


def _report(result: ExposureResult, status: dict[str, Any], files: OfflineFiles) -> None:
    console = Console()
    seconds = sum(result.seconds.values())
    console.print(
        f"{len(result.candidates)} candidates in {result.exposure.exposure_id} "
        f"({_facts(result, status)}; {seconds:.1f} s)",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    strongest = sorted(result.candidates, key=lambda c: -c.snr)[:_SHOWN]
    if strongest:
        console.print(_table(strongest))
    if len(result.candidates) > len(strongest):
        console.print(f"... and {len(result.candidates) - len(strongest)} fainter ones")
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)
    for path in _paths(files):
        console.print(path, soft_wrap=True, markup=False, highlight=False)


def _facts(result: ExposureResult, status: dict[str, Any]) -> str:
    facts = [f"{status['stars']} stars"]
    if status["fwhm"] is not None:
        facts.append(f"seeing {status['fwhm']:.2f} px")
    if status["limiting_mag"] is not None:
        facts.append(f"5σ limit {status['limiting_mag']:.2f} mag")
    if result.quality is not None:
        facts.append(f"{result.quality.engine}, star χ² {result.quality.star_chi2:.2f}")
    return ", ".join(facts)


def _table(candidates: list[Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("x", "y", "ra", "dec", "S/N", "flux [ADU]", "mag", "flags"):
        table.add_column(heading, justify="right")
    for c in candidates:
        table.add_row(
            f"{c.x:.2f}",
            f"{c.y:.2f}",
            "" if c.ra is None else f"{c.ra:.6f}",
            "" if c.dec is None else f"{c.dec:+.6f}",
            f"{c.snr:.1f}",
            f"{c.flux:.5g}",
            "" if c.mag is None else f"{c.mag:.2f}",
            str(int(c.flags)),
        )
    return table


def _paths(files: OfflineFiles) -> list[str]:
    paths = [str(p) for p in (files.status, files.candidates, files.difference) if p is not None]
    if files.alerts:
        paths.append(f"{files.alerts[0].parent} ({len(files.alerts)} packets)")
    return paths
