"""Which alerts are what was hidden in the images, and what was missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from astropy.table import Row, Table

from core.simulate import SimulatedExposure
from service.demo.options import DemoOptions
from service.demo.stream import Alert, Status

Label = Literal["transient", "variable", "false"]

#: Truth that is fainter than this cannot explain a candidate.
FAINTEST_TRUTH = 2.5


@dataclass(frozen=True)
class Verdict:
    """An alert and what it really is.

    Attributes
    ----------
    alert : Alert
        As published.
    label : str
        ``transient`` or ``variable`` when it lies within the matching radius of one that changed
        in the same sense, else ``false``.
    truth : astropy.table.Row or None
        The true source.
    separation : float or None
        Distance from it, arcseconds.
    """

    alert: Alert
    label: Label
    truth: Row | None = None
    separation: float | None = None


@dataclass(frozen=True)
class Score:
    """How one exposure came out.

    Attributes
    ----------
    verdicts : tuple of Verdict
        One for each alert.
    missed : tuple of astropy.table.Row
        Transients above the bright limit, clear of defects, that no alert shows.
    injected_bright, recovered_bright : int
        Transients above the bright limit and clear of defects: all of them, and those recovered.
    on_defects : int
        Transients above the bright limit that lie on a defect and are not counted.
    """

    verdicts: tuple[Verdict, ...]
    missed: tuple[Row, ...]
    injected_bright: int
    recovered_bright: int
    on_defects: int

    def count(self, label: Label) -> int:
        """Return how many alerts are of a kind."""
        return sum(verdict.label == label for verdict in self.verdicts)


@dataclass
class Tally:
    """What has been seen of one exposure so far."""

    exposure: SimulatedExposure
    published: float | None = None  # time.monotonic
    status: Status | None = None
    alerts: dict[int, Alert] = field(default_factory=dict)
    last_arrival: float | None = None

    @property
    def exposure_id(self) -> str:
        """Its identifier."""
        return str(self.exposure.event["exposure_id"])

    @property
    def complete(self) -> bool:
        """Whether its status and all alerts that the status announces are here."""
        return self.status is not None and len(self.alerts) >= self.status.record["alerts"]

    @property
    def seconds(self) -> float | None:
        """From publishing the event to the last of its records."""
        if self.published is None or self.last_arrival is None:
            return None
        return self.last_arrival - self.published

    def take(self, record: Alert | Status) -> bool:
        """Note a record; return whether it is new."""
        if isinstance(record, Status):
            self.status, new = record, self.status is None
        else:
            new = record.candid not in self.alerts
            self.alerts[record.candid] = record
        self.last_arrival = max(self.last_arrival or record.received, record.received)
        return new


def score(tally: Tally, options: DemoOptions) -> Score:
    """Compare the alerts of an exposure with the truth.

    Each true source explains at most one alert: the nearest within the matching radius whose sign
    is right. A second alert of the same source counts as false.
    """
    truth = tally.exposure.truth
    alerts = sorted(tally.alerts.values(), key=lambda alert: -alert.snr)
    pairs = _pair(alerts, truth, options.radius)
    verdicts = tuple(
        Verdict(alert, str(truth["kind"][pairs[i][0]]), truth[pairs[i][0]], pairs[i][1])  # type: ignore[arg-type]
        if i in pairs
        else Verdict(alert, "false")
        for i, alert in enumerate(alerts)
    )
    found = {row for row, _ in pairs.values()}
    bright = (truth["kind"] == "transient") & (truth["snr"] > options.bright_snr)
    clear = np.flatnonzero(bright & ~truth["masked"])
    return Score(
        verdicts=verdicts,
        missed=tuple(truth[i] for i in clear if i not in found),
        injected_bright=len(clear),
        recovered_bright=sum(int(i) in found for i in clear),
        on_defects=int(np.sum(bright & truth["masked"])),
    )


def _pair(alerts: Sequence[Alert], truth: Table, radius: float) -> dict[int, tuple[int, float]]:
    """Return, by index of the alert, the index of its truth and the distance in arcseconds."""
    if not alerts or len(truth) == 0:
        return {}
    ra = np.array([alert.ra for alert in alerts])[:, None]
    dec = np.array([alert.dec for alert in alerts])[:, None]
    sign = np.array([alert.sign for alert in alerts])[:, None]
    dx = (ra - np.asarray(truth["ra"]) + 180.0) % 360.0 - 180.0
    distance = 3600.0 * np.hypot(
        dx * np.cos(np.radians(np.asarray(truth["dec"]))), dec - np.asarray(truth["dec"])
    )
    possible = (
        (distance <= radius)
        & (sign == np.sign(np.asarray(truth["flux"])))
        & (np.asarray(truth["snr"]) >= FAINTEST_TRUTH)
    )
    pairs: dict[int, tuple[int, float]] = {}
    taken: set[int] = set()
    order = np.argsort(np.where(possible, distance, np.inf), axis=None)
    for i, j in zip(*np.unravel_index(order, distance.shape), strict=True):
        if not possible[i, j]:
            break
        if int(i) not in pairs and int(j) not in taken:
            pairs[int(i)] = (int(j), float(distance[i, j]))
            taken.add(int(j))
    return pairs


@dataclass(frozen=True)
class Outcome:
    """How the whole demonstration came out.

    Attributes
    ----------
    tallies, scores : tuple
        One of each for each exposure.
    failures : tuple of str
        Why it did not pass; empty when it did.
    """

    options: DemoOptions
    tallies: tuple[Tally, ...]
    scores: tuple[Score, ...]
    failures: tuple[str, ...]

    @classmethod
    def of(cls, tallies: Sequence[Tally], options: DemoOptions) -> Outcome:
        """Score every exposure and hold the sums against what is required."""
        scores = tuple(score(tally, options) for tally in tallies)
        injected = sum(s.injected_bright for s in scores)
        recovered = sum(s.recovered_bright for s in scores)
        false = sum(s.count("false") for s in scores)
        failures = []
        if injected == 0:
            failures.append(
                f"no transient above {options.bright_snr:g} sigma was injected: nothing was tested"
            )
        elif recovered < options.required_completeness * injected:
            failures.append(
                f"only {recovered} of {injected} transients above {options.bright_snr:g} sigma "
                f"came out; at least {100 * options.required_completeness:g} % are required"
            )
        if false > options.allowed_false * len(scores):
            failures.append(
                f"{false} false candidates in {len(scores)} exposures; "
                f"at most {options.allowed_false:g} an exposure are allowed"
            )
        return cls(options, tuple(tallies), scores, tuple(failures))

    @property
    def passed(self) -> bool:
        """Whether all requirements are met."""
        return not self.failures

    @property
    def injected_bright(self) -> int:
        """Transients above the bright limit, clear of defects."""
        return sum(s.injected_bright for s in self.scores)

    @property
    def recovered_bright(self) -> int:
        """How many of them came out."""
        return sum(s.recovered_bright for s in self.scores)

    @property
    def on_defects(self) -> int:
        """Transients above the bright limit on defects, not counted."""
        return sum(s.on_defects for s in self.scores)

    @property
    def completeness(self) -> float | None:
        """Recovered over injected, None where nothing was injected."""
        return self.recovered_bright / self.injected_bright if self.injected_bright else None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All alerts of all exposures."""
        return tuple(verdict for s in self.scores for verdict in s.verdicts)

    def count(self, label: Label) -> int:
        """Return how many alerts are of a kind."""
        return sum(s.count(label) for s in self.scores)

    @property
    def latencies(self) -> tuple[float, ...]:
        """Seconds from event to last alert, of the exposures that were finished."""
        return tuple(t.seconds for t in self.tallies if t.seconds is not None)

    def stage_seconds(self) -> dict[str, float]:
        """Return the mean seconds an exposure spent in each stage, in order of the stages."""
        totals: dict[str, list[float]] = {}
        for tally in self.tallies:
            if tally.status is not None:
                for stage, seconds in tally.status.record["seconds"].items():
                    totals.setdefault(stage, []).append(seconds)
        return {stage: float(np.mean(seconds)) for stage, seconds in totals.items()}

    def completeness_by_snr(
        self, edges: Sequence[float] = (3, 5, 7, 10, 20, 50, 1000)
    ) -> list[dict[str, Any]]:
        """Return injected and recovered transients (clear of defects) in bins of true SNR."""
        recovered: dict[tuple[str, int], bool] = {}
        for tally, exposure_score in zip(self.tallies, self.scores, strict=True):
            for verdict in exposure_score.verdicts:
                if verdict.truth is not None:
                    recovered[tally.exposure_id, int(verdict.truth["source"])] = True
        bins: list[dict[str, Any]] = []
        for low, high in pairwise(edges):
            injected = found = 0
            for tally in self.tallies:
                truth = tally.exposure.truth
                chosen = (
                    (truth["kind"] == "transient")
                    & ~truth["masked"]
                    & (truth["snr"] >= low)
                    & (truth["snr"] < high)
                )
                for row in truth[chosen]:
                    injected += 1
                    found += (tally.exposure_id, int(row["source"])) in recovered
            bins.append({"low": low, "high": high, "injected": injected, "recovered": found})
        return bins
