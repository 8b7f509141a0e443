"""A PNG of science, template and difference stamps of candidates, to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.detection import CandidateFlag
from core.exposure import Candidate


def draw(candidates: Sequence[Candidate], path: Path, *, columns: int = 4, limit: int = 48) -> None:
    """Draw triplets with their numbers; the most significant first."""
    from matplotlib.figure import Figure

    shown = candidates[:limit]
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(columns * 4.2, rows * 1.75), dpi=75)
    axes = figure.subplots(rows, columns * 3, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for n, candidate in enumerate(shown):
        row, column = divmod(n, columns)
        stamps = candidate.cutouts
        noise = candidate.flux_err / 5
        for k, stamp in enumerate((stamps.science, stamps.template, stamps.difference)):
            axis = axes[row, 3 * column + k]
            middle = stamp.shape[0] // 2
            cut = stamp[middle - 20 : middle + 21, middle - 20 : middle + 21]
            if k < 2:
                level = np.nanmedian(stamp)
                spread = 1.48 * np.nanmedian(np.abs(stamp - level)) + 1e-9
                scaled = np.arcsinh((cut - level) / (2 * spread))
                axis.imshow(scaled, origin="lower", cmap="gray_r", vmin=-1.5, vmax=5)
            else:
                axis.imshow(cut, origin="lower", cmap="RdBu_r", vmin=-6 * noise, vmax=6 * noise)
        flags = ",".join(flag.name.lower()[:8] for flag in CandidateFlag(candidate.flags))
        axes[row, 3 * column].set_title(
            f"({candidate.x:.0f},{candidate.y:.0f}) {candidate.sign * candidate.snr:+.1f} "
            f"chi2 {candidate.chi2:.1f} {flags}",
            fontsize=7, loc="left",
        )  # fmt: skip
    figure.tight_layout(pad=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
