"""The real crowded series of MOA-2013-BLG-475: register, average the best, subtract the rest.

Run ``python -m tests.realdata.saao --data DIR --out DIR``. The frames have no WCS; each gets a TAN
WCS that follows from its registration (astroalign finds the first guess, `core.coadd.align` the
affine transformation), so that the whole pipeline runs as on any exposure.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import astroalign
import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from core import coadd
from core.errors import ExposureError
from core.exposure import Candidate, Exposure, ExposureResult
from core.pipeline import PipelineSettings, process
from core.reading import read_image
from core.templates.single import SingleTemplate
from tests.realdata import contact_sheet

CENTRE = (273.8708, -25.2850)  # degrees, of the frames' headers
PIXEL = 0.31 / 3600  # degrees
SATURATION = 60_000.0  # ADU; the header's 65300 is the end of the converter, not of linearity


@dataclass(frozen=True)
class Series:
    """The template and the frames that were registered to it.

    Attributes
    ----------
    template, template_mask, template_variance : path
    frames : tuple of path
        Science frames with a WCS, in order of time.
    in_template : tuple of str
        Names of the frames that the template is made of.
    failed : dict of str to str
        Why a frame could not be registered.
    """

    template: Path
    template_mask: Path
    template_variance: Path
    frames: tuple[Path, ...]
    in_template: tuple[str, ...]
    failed: dict[str, str]


def frame_list(folder: Path) -> list[tuple[str, float]]:
    """Return name and seeing of the frames, in order of time."""
    with (folder / "frames.csv").open() as rows:
        return [(row["file"], float(row["fwhm_px"])) for row in csv.DictReader(rows)]


def build(folder: Path, out: Path, *, n_template: int = 6, only: Sequence[str] = ()) -> Series:
    """Register the frames on the sharpest one, and write template and frames with WCS.

    Parameters
    ----------
    folder, out : path
        Of the data; to write to.
    n_template : int
        How many of the sharpest frames make up the template.
    only : sequence of str
        Science frames to take; all that are not in the template when empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    listed = frame_list(folder)
    sharpest = [name for name, _ in sorted(listed, key=lambda row: row[1])[:n_template]]
    wanted = [name for name, _ in listed if name in sharpest or not only or name in only]
    reference = _measured(folder / sharpest[0])
    grid = reference.image.shape
    aligned: dict[str, coadd.Alignment] = {}
    frames: dict[str, coadd.Frame] = {}
    failed: dict[str, str] = {}
    for name in wanted:
        try:
            frame = _measured(folder / name)
            start = first_guess(frame, reference)
            aligned[name] = coadd.align(frame, reference, start)
        except ExposureError as error:
            failed[name] = str(error)
            continue
        if name in sharpest:
            frames[name] = frame
    chosen = [name for name in sharpest if name in frames]
    average = coadd.coadd([frames[n] for n in chosen], [aligned[n] for n in chosen], grid)
    wcs = _reference_wcs(grid)
    paths = [out / f"template{part}.fits" for part in ("", ".mask", ".variance")]
    header = wcs.to_header()
    header["GAIN"] = average.facts.gain
    header["FILTER"] = "I"
    fits.writeto(paths[0], average.data, header, overwrite=True)
    fits.writeto(paths[1], average.mask.astype(np.int16), overwrite=True)
    fits.writeto(paths[2], average.variance, overwrite=True)
    science = []
    for name in wanted:
        if name in aligned and name not in chosen:
            science.append(_with_wcs(folder / name, out, wcs, aligned[name]))
    return Series(*paths, tuple(science), tuple(chosen), failed)


def _measured(path: Path) -> coadd.Frame:
    return coadd.measure_frame(
        read_image(path, max_pixels=10**7, need_wcs=False, saturation=SATURATION)
    )


def first_guess(frame: coadd.Frame, reference: coadd.Frame) -> npt.NDArray[np.float64]:
    """Let astroalign find the similarity between two frames, by its own detection."""
    transform, _ = astroalign.find_transform(reference.image.data, frame.image.data)
    return np.asarray(transform.params)[:2]


def _reference_wcs(shape: tuple[int, int]) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = CENTRE
    wcs.wcs.crpix = [0.5 * (shape[1] + 1), 0.5 * (shape[0] + 1)]
    wcs.wcs.cd = np.array([[-PIXEL, 0], [0, PIXEL]])
    return wcs


def _with_wcs(path: Path, out: Path, grid: WCS, alignment: coadd.Alignment) -> Path:
    """Copy a frame with the WCS that follows from its registration."""
    data, header = fits.getdata(path), fits.getheader(path)
    forward = np.vstack([alignment.matrix, [0, 0, 1]])  # reference to frame, 0-based
    back = np.linalg.inv(forward)
    for keyword in ("BZERO", "BSCALE", "EPOCH", "RA", "DEC"):
        header.remove(keyword, ignore_missing=True)
    pixel = forward @ [grid.wcs.crpix[0] - 1, grid.wcs.crpix[1] - 1, 1]
    cd = grid.wcs.cd @ back[:2, :2]
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
        "CRVAL1": CENTRE[0], "CRVAL2": CENTRE[1],
        "CRPIX1": pixel[0] + 1, "CRPIX2": pixel[1] + 1,
        "CD1_1": cd[0, 0], "CD1_2": cd[0, 1], "CD2_1": cd[1, 0], "CD2_2": cd[1, 1],
        "SATURATE": SATURATION, "FILTER": "I",
    }  # fmt: skip
    header.update(cards)
    target = out / path.name.replace(".fits.gz", ".fits")
    fits.writeto(target, data, header, overwrite=True)
    return target


def run(
    series: Series, frame: Path, *, threads: int = 1, planes: bool = False, engine: str = "sfft"
) -> ExposureResult:
    """Subtract the template from one frame."""
    provider = SingleTemplate(
        series.template, mask=series.template_mask, variance=series.template_variance
    )
    settings = PipelineSettings(engines=(engine,), threads=threads, keep_difference=planes)
    return process(Exposure(frame.stem, str(frame)), provider, settings)


def groups_of(results: Sequence[ExposureResult], wcs: WCS) -> list[list[tuple[int, Candidate]]]:
    """Group the candidates of all frames by place on the sky, within a pixel and a half."""
    rows = [(i, c) for i, result in enumerate(results) for c in result.candidates]
    if not rows:
        return []
    x, y = wcs.all_world2pix([c.ra for _, c in rows], [c.dec for _, c in rows], 0)
    tree = cKDTree(np.column_stack([x, y]))
    free = np.ones(len(rows), dtype=bool)
    density = np.array([len(near) for near in tree.query_ball_point(tree.data, 1.5)])
    groups = []
    for i in np.argsort(-density):
        if free[i]:
            members = [j for j in tree.query_ball_point(tree.data[i], 1.5) if free[j]]
            free[members] = False
            groups.append([rows[j] for j in members])
    return sorted(groups, key=len, reverse=True)


def main() -> int:
    """Run the series and say what repeats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--template-frames", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    write = sys.stdout.write
    series = build(args.data, args.out, n_template=args.template_frames)
    write(f"template of {series.in_template}\nnot registered: {series.failed}\n")
    results = []
    for frame in series.frames:
        result = run(series, frame, threads=args.threads)
        results.append(result)
        q = result.quality
        numbers = (
            f"star {q.star_chi2:5.2f} sky {q.sky_chi2:4.2f} err {100 * q.model_error:3.1f}% "
            f"shift_rms {q.shift_rms:.3f} {q.convolved:8} stamps {q.stars_used}-{q.stars_clipped} "
            if q else ""
        )  # fmt: skip
        write(
            f"{frame.stem} {result.outcome:9} fwhm {result.facts.fwhm or 0:.2f} {numbers}"
            f"{dict(result.counts)} {sum(result.seconds.values()):.1f} s {result.reason}\n"
        )
        sys.stdout.flush()
    wcs = WCS(fits.getheader(series.template))
    groups = groups_of(results, wcs)
    once = [g[0] for g in groups if len(g) == 1]
    write(f"{len(groups)} places: {sum(len(g) > 1 for g in groups)} repeat, {len(once)} once\n")
    for group in groups:
        if len(group) > 1:
            c = group[0][1]
            x, y = wcs.all_world2pix(c.ra, c.dec, 0)
            flux = ", ".join(
                f"{results[i].exposure.exposure_id[-4:]}:{c.sign * c.snr:+.0f}"
                for i, c in sorted(group, key=lambda row: row[0])
            )
            write(f"({x:.1f}, {y:.1f}) {len(group)} times: {flux}\n")
    contact_sheet.draw([c for _, c in once], args.out / "once.png", columns=6, limit=90)
    contact_sheet.draw([g[0][1] for g in groups if len(g) > 1], args.out / "repeat.png", columns=6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
