"""The report of a demonstration: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from service.demo.display import exposure_cells
from service.demo.options import DemoPaths
from service.demo.pictures import COLOURS, png, title, triplet
from service.demo.plots import light_curves, photometry
from service.demo.scoring import Outcome, Verdict


def write_report(outcome: Outcome, paths: DemoPaths, elapsed: float) -> None:
    """Write the report; it needs no other file and no network.

    Parameters
    ----------
    outcome : Outcome
        What came of the demonstration.
    paths : DemoPaths
        Where it goes, and where the other files are.
    elapsed : float
        Seconds that the demonstration took until now.
    """
    environment = Environment(
        loader=PackageLoader("service.demo", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html").render(
        outcome=outcome,
        options=outcome.options,
        summary=summary(outcome, elapsed),
        exposures=[_exposure(tally, outcome) for tally in outcome.tallies],
        stages=_stages(outcome),
        bins=[bin_ for bin_ in outcome.completeness_by_snr() if bin_["injected"]],
        photometry=photometry(outcome),
        light_curves=light_curves(outcome),
        candidates=[_candidate(verdict) for verdict in _in_order(outcome)],
        missed=[
            (tally.exposure_id, row)
            for tally, result in zip(outcome.tallies, outcome.scores, strict=True)
            for row in result.missed
        ],
        colours=COLOURS,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    paths.report.write_text(html, encoding="utf-8")


def write_summary(outcome: Outcome, path: Path, elapsed: float) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps(summary(outcome, elapsed), indent=2) + "\n")


def summary(outcome: Outcome, elapsed: float) -> dict[str, Any]:
    """Return the figures of a demonstration.

    Magnitude pulls are (measured - injected) / error of the matched transients.
    """
    latencies = outcome.latencies
    return {
        "passed": outcome.passed,
        "failures": list(outcome.failures),
        "exposures": len(outcome.tallies),
        "exposures_published": sum(
            t.status is not None and t.status.record["outcome"] == "published"
            for t in outcome.tallies
        ),
        "alerts": len(outcome.verdicts),
        "bright_snr": outcome.options.bright_snr,
        "injected_bright": outcome.injected_bright,
        "recovered_bright": outcome.recovered_bright,
        "missed_bright": outcome.injected_bright - outcome.recovered_bright,
        "on_defects": outcome.on_defects,
        "completeness": outcome.completeness,
        "recovered_transients": outcome.count("transient"),
        "recovered_variables": outcome.count("variable"),
        "false": outcome.count("false"),
        "median_separation_arcsec": _median(
            [v.separation for v in outcome.verdicts if v.separation is not None]
        ),
        "median_mag_offset": _median(
            [
                v.alert.mag - v.truth["mag"]
                for v in outcome.verdicts
                if v.truth is not None and v.alert.mag is not None
            ]
        ),
        "latency_seconds": {
            "median": _median(latencies),
            "longest": max(latencies, default=None),
        },
        "stage_seconds": {k: round(v, 4) for k, v in outcome.stage_seconds().items()},
        "completeness_by_snr": outcome.completeness_by_snr(),
        "matching_radius_arcsec": outcome.options.radius,
        "seed": outcome.options.seed,
        "elapsed_seconds": round(elapsed, 1),
    }


def _median(values: Any) -> float | None:
    return float(np.median(values)) if len(values) else None


def _in_order(outcome: Outcome) -> list[Verdict]:
    rank = {"false": 0, "transient": 1, "variable": 2}
    return sorted(outcome.verdicts, key=lambda v: (rank[v.label], -v.alert.snr))


def _exposure(tally: Any, outcome: Outcome) -> dict[str, Any]:
    record = tally.status.record if tally.status is not None else None
    return exposure_cells(tally, outcome.options) | {
        "zero_point": tally.exposure.zero_point,
        "measured_zero_point": record["zero_point"] if record else None,
        "sky": tally.exposure.sky,
        "reason": record["reason"] if record else "no status arrived",
        "limiting_mag": record["limiting_mag"] if record else None,
        "engine": record["quality"]["engine"] if record and record["quality"] else None,
    }


def _stages(outcome: Outcome) -> list[dict[str, Any]]:
    seconds = outcome.stage_seconds()
    total = sum(seconds.values()) or 1.0
    return [{"name": n, "seconds": s, "percent": 100.0 * s / total} for n, s in seconds.items()]


def _candidate(verdict: Verdict) -> dict[str, Any]:
    alert, truth = verdict.alert, verdict.truth
    return {
        "label": verdict.label,
        "title": title(verdict),
        "picture": "data:image/png;base64," + base64.b64encode(png(triplet(verdict))).decode(),
        "candid": alert.candid,
        "object_id": alert.packet["objectId"],
        "exposure": alert.exposure_id,
        "ra": alert.ra,
        "dec": alert.dec,
        "snr": alert.snr,
        "mag": alert.mag,
        "mag_err": alert.packet["candidate"]["sigmapsf"],
        "true_snr": None if truth is None else float(truth["snr"]),
        "true_mag": None if truth is None else float(truth["mag"]),
        "separation": verdict.separation,
    }
