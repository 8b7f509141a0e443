"""What a demonstration is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class DemoFailed(Exception):
    """The demonstration could not be carried through; the message says why, in one line."""


@dataclass(frozen=True)
class DemoOptions:
    """What a demonstration is asked to do.

    Attributes
    ----------
    out : pathlib.Path
        Folder for everything that it makes.
    exposures : int
        How many exposures to simulate.
    size : int
        Their side, pixels.
    seed : int
        Of the simulation.
    broker : str or None
        Address of a Kafka broker; None starts one inside this process.
    cadence : float
        Seconds from one exposure to the next.
    timeout : float
        Seconds for the whole demonstration.
    threshold : float
        Detection threshold of the service, sigma.
    required_completeness : float
        Least fraction of the transients above `bright_snr` that must be recovered.
    allowed_false : float
        Most false candidates an exposure, on average.
    bright_snr : float
        Signal-to-noise ratio above which a transient must be found.
    radius : float
        Largest distance of a candidate from its true place, arcseconds.
    """

    out: Path
    exposures: int = 6
    size: int = 1024
    seed: int = 1
    broker: str | None = None
    cadence: float = 2.0
    timeout: float = 600.0
    threshold: float = 5.0
    required_completeness: float = 0.9
    allowed_false: float = 2.0
    bright_snr: float = 10.0
    radius: float = 3.0


@dataclass(frozen=True)
class DemoPaths:
    """Where things lie below the output folder."""

    root: Path

    @property
    def survey(self) -> Path:
        """The simulated images, events and truth."""
        return self.root / "survey"

    @property
    def alerts(self) -> Path:
        """The packets, one file each."""
        return self.root / "alerts"

    @property
    def status(self) -> Path:
        """The status records, one line each."""
        return self.root / "exposure-status.jsonl"

    @property
    def config(self) -> Path:
        """The settings that the service ran with."""
        return self.root / "service.toml"

    @property
    def log(self) -> Path:
        """What the service said."""
        return self.root / "service.log"

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.root / "contact-sheet.png"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"

    @property
    def summary(self) -> Path:
        """The figures, for a script."""
        return self.root / "summary.json"

    def prepare(self) -> None:
        """Make the output folder, without the remains of an earlier demonstration.

        Raises
        ------
        DemoFailed
            If the folder holds something that no demonstration has put there.
        """
        marker = self.root / ".skydelta-demo"
        if self.root.exists() and not self.root.is_dir():
            raise DemoFailed(f"{self.root} is not a folder; choose another --out")
        if self.root.exists() and not marker.exists() and any(self.root.iterdir()):
            raise DemoFailed(
                f"{self.root} holds files that are not a demonstration's; choose another --out"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            marker.touch()
            for path in (
                self.status,
                self.config,
                self.log,
                self.sheet,
                self.report,
                self.summary,
                *self.alerts.glob("*.avro"),
                *self.survey.glob("*/sim_*"),
            ):
                path.unlink(missing_ok=True)
            self.alerts.mkdir(exist_ok=True)
        except OSError as error:
            raise DemoFailed(
                f"cannot write to {self.root}: {error.strerror}; choose another --out"
            ) from error
