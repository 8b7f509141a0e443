"""Candidates against the truth: completeness by S/N, false candidates, flux ratios and pulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.stats import norm

from core.exposure import Candidate

Column = npt.NDArray[np.float64]
EDGES = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 20.0, 30.0, 60.0)


@dataclass(frozen=True)
class Truth:
    """What was injected; columns of shape (n,), pixels of the science image.

    Attributes
    ----------
    x, y : ndarray of float64
    flux : ndarray of float64
        Science ADU.
    snr : ndarray of float64
        Of the matched filter with the true PSF and the true noise, the source's own left out.
    on_host : ndarray of bool
        On a galaxy or in the outskirts of a star.
    """

    x: Column
    y: Column
    flux: Column
    snr: Column
    on_host: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Score:
    """What came out of what went in.

    Attributes
    ----------
    found : ndarray of int64, shape (n,)
        Index of the candidate of every injected source; -1 where it was missed.
    false : tuple of int
        Indices of the candidates that match nothing.
    flux_ratio : ndarray of float64, shape (n,)
        Measured over true flux; NaN where missed.
    pull : ndarray of float64, shape (n,)
        (measured - true) / error; NaN where missed.
    """

    truth: Truth
    found: npt.NDArray[np.int64]
    false: tuple[int, ...]
    flux_ratio: Column
    pull: Column

    def completeness(self, low: float, high: float = np.inf) -> float:
        """Return the fraction of the sources with S/N in [low, high) that were found."""
        within = (self.truth.snr >= low) & (self.truth.snr < high)
        return float((self.found[within] >= 0).mean()) if within.any() else float("nan")

    def expected(self, low: float, high: float, threshold: float) -> float:
        """Return the fraction that noise alone lets through: the mean of Phi(S/N - threshold)."""
        within = (self.truth.snr >= low) & (self.truth.snr < high)
        return float(norm.cdf(self.truth.snr[within] - threshold).mean()) if within.any() else 0.0

    def report(self, threshold: float = 5.0) -> str:
        """Return the table for a person."""
        lines = [f"{'S/N':>9}  {'n':>4} {'found':>5} {'compl.':>7} {'expected':>8}  flux  pull"]
        snr = self.truth.snr
        for low, high in pairwise(EDGES):
            within = (snr >= low) & (snr < high)
            if not within.any():
                continue
            hit = within & (self.found >= 0)
            ratio = np.median(self.flux_ratio[hit]) if hit.any() else np.nan
            pulls = self.pull[hit]
            spread = 1.4826 * np.median(np.abs(pulls - np.median(pulls))) if hit.any() else np.nan
            lines.append(
                f"{low:4g}-{high:<4g}  {within.sum():4d} {hit.sum():5d} "
                f"{self.completeness(low, high):7.3f} {self.expected(low, high, threshold):8.3f} "
                f"{ratio:6.3f} {spread:5.2f}"
            )
        hit = self.found >= 0
        for name, which in (("blank sky", ~self.truth.on_host), ("on hosts", self.truth.on_host)):
            bright = which & (snr > 8)
            if bright.any():
                lines.append(
                    f"{name}: {100 * hit[bright].mean():.1f} % of {bright.sum()} above S/N 8"
                )
        good = np.isfinite(self.pull)
        lines.append(
            f"false candidates: {len(self.false)}; pull mean {np.mean(self.pull[good]):+.3f}, "
            f"std {np.std(self.pull[good]):.3f}, median flux ratio "
            f"{np.median(self.flux_ratio[good & (snr > 10)]):.4f} above S/N 10"
        )
        return "\n".join(lines)


def score(truth: Truth, candidates: Sequence[Candidate], radius: float) -> Score:
    """Match candidates to the nearest injected source of the same sign, one to one.

    Parameters
    ----------
    truth : Truth
        What was injected.
    candidates : sequence of Candidate
        What came out, most significant first.
    radius : float
        The largest distance of a match, pixels.
    """
    found = np.full(len(truth), -1, dtype=np.int64)
    ratio = np.full(len(truth), np.nan)
    pull = np.full(len(truth), np.nan)
    false = []
    tree = cKDTree(np.column_stack([truth.x, truth.y]))
    for i, candidate in enumerate(candidates):
        distance, index = tree.query([candidate.x, candidate.y])
        if distance > radius or found[index] >= 0 or candidate.sign * truth.flux[index] < 0:
            false.append(i)
            continue
        found[index] = i
        ratio[index] = candidate.flux / truth.flux[index]
        pull[index] = (candidate.flux - truth.flux[index]) / candidate.flux_err
    return Score(truth, found, tuple(false), ratio, pull)
