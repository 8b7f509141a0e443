"""The plots of the report, as coordinates of small SVG drawings."""

from __future__ import annotations

from typing import Any

import numpy as np

from service.demo.scoring import Outcome, Verdict

_REACH = 0.6  # magnitudes on either side of zero


def photometry(outcome: Outcome) -> dict[str, Any]:
    """Return the plot of measured minus injected magnitude against injected magnitude."""
    points = [
        (float(v.truth["mag"]), v.alert.mag - float(v.truth["mag"]), v.label)
        for v in outcome.verdicts
        if v.truth is not None and v.alert.mag is not None
    ]
    width, height = 560.0, 234.0
    if not points:
        return {"width": width, "height": height, "points": [], "ticks": [], "levels": []}
    low = np.floor(min(mag for mag, _, _ in points) - 0.2)
    high = max(np.ceil(max(mag for mag, _, _ in points)), low + 1)

    def x(mag: float) -> float:
        return float(52.0 + (width - 64.0) * (mag - low) / (high - low))

    def y(offset: float) -> float:
        return 100.0 - 88.0 * float(np.clip(offset, -_REACH, _REACH)) / _REACH

    return {
        "width": width,
        "height": height,
        "points": [(x(mag), y(offset), label) for mag, offset, label in points],
        "ticks": [(x(mag), f"{mag:.0f}") for mag in np.arange(low, high + 0.5)],
        "levels": [(y(level), f"{level:+.1f}" if level else "0") for level in (-0.5, 0.0, 0.5)],
    }


def light_curves(outcome: Outcome, n: int = 6) -> list[dict[str, Any]]:
    """Return light curves of the objects with most alerts: flux of the difference by night.

    Each has the injected fluxes as a line and the measured ones as points with error bars. The
    fluxes are brought to one zero point, that of the first exposure.
    """
    found: dict[int, dict[int, Verdict]] = {}
    for night, result in enumerate(outcome.scores):
        for verdict in result.verdicts:
            if verdict.truth is not None:
                found.setdefault(int(verdict.truth["source"]), {})[night] = verdict
    nights = len(outcome.tallies)
    if nights < 3:
        return []
    ranked = sorted(found, key=lambda s: (-len(found[s]), -_contrast(found[s]), s))
    # Some of each kind.
    kinds = {s: str(next(iter(found[s].values())).truth["kind"]) for s in ranked}  # type: ignore[index]
    chosen = [s for s in ranked if kinds[s] == "transient"][: n - n // 3]
    chosen += [s for s in ranked if kinds[s] == "variable"][: n - len(chosen)]
    return [_light_curve(outcome, source, found[source]) for source in chosen]


def _contrast(verdicts: dict[int, Verdict]) -> float:
    flux = [float(v.truth["flux"]) for v in verdicts.values() if v.truth is not None]
    return float(np.ptp(flux) / max(np.abs(flux)))


def _light_curve(outcome: Outcome, source: int, verdicts: dict[int, Verdict]) -> dict[str, Any]:
    width, height = 270.0, 120.0
    scales = [
        10.0 ** (-0.4 * (tally.exposure.zero_point - outcome.tallies[0].exposure.zero_point))
        for tally in outcome.tallies
    ]
    line: list[tuple[float, float]] = []
    for night, tally in enumerate(outcome.tallies):
        row = tally.exposure.truth[tally.exposure.truth["source"] == source]
        if len(row):
            line.append((night, float(row["flux"][0]) * scales[night]))
    measured = [
        (night, facts["flux"] * scales[night], facts["flux_err"] * scales[night])
        for night, verdict in sorted(verdicts.items())
        if (facts := verdict.alert.packet["skydelta"])["flux"] is not None
    ]
    values = [0.0, *(v for _, v in line), *(v + e for _, v, e in measured)]
    values += [v - e for _, v, e in measured]
    low, high = min(values), max(values)

    def x(night: float) -> float:
        return 14.0 + (width - 28.0) * night / max(len(outcome.tallies) - 1, 1)

    def y(flux: float) -> float:
        return 10.0 + (height - 20.0) * (high - flux) / max(high - low, 1e-9)

    first = next(iter(verdicts.values()))
    return {
        "width": width,
        "height": height,
        "label": first.label,
        "object_id": first.alert.packet["objectId"],
        "alerts": len(verdicts),
        "zero": y(0.0),
        "line": " ".join(f"{x(night):.1f},{y(flux):.1f}" for night, flux in line),
        "points": [(x(night), y(f), y(f - e), y(f + e)) for night, f, e in measured],
    }
