"""Two real frames of ESO085-030, 74 s apart: whatever is detected between them is false.

Run ``python -m tests.realdata.eso085 --data DIR --out DIR``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core.detection import CandidateFlag
from core.exposure import Exposure, ExposureResult
from core.pipeline import PipelineSettings, process
from core.templates.single import SingleTemplate
from tests.realdata import contact_sheet

FRAMES = ("aligned_eso085-030-004.fit", "aligned_eso085-030-005.fit")


def run(folder: Path, *, swapped: bool = False, threads: int = 2) -> ExposureResult:
    """Subtract one frame from the other, or the other way round."""
    template, science = FRAMES[::-1] if swapped else FRAMES
    return process(
        Exposure(science, str(folder / science), band="Clear"),
        SingleTemplate(folder / template, aligned=True),
        PipelineSettings(aligned=True, threads=threads, keep_difference=True),
    )


def main() -> int:
    """Run both ways round and list everything that comes out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write = sys.stdout.write
    for swapped in (False, True):
        result = run(args.data, swapped=swapped)
        write(f"{result.outcome} {result.reason}\n{result.counts}\n{result.quality}\n")
        write(f"{result.facts}\n{sum(result.seconds.values()):.1f} s\n")
        for c in result.candidates:
            write(
                f"({c.x:.1f}, {c.y:.1f}) {c.sign * c.snr:+.1f} chi2 {c.chi2:.2f} "
                f"fwhm {c.fwhm:.1f} {CandidateFlag(c.flags)!r} "
                f"nearest {c.nearest.distance if c.nearest else None}\n"
            )
        name = "swapped.png" if swapped else "candidates.png"
        contact_sheet.draw(result.candidates, args.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
