"""The real ZTF quadrant against a degraded copy of itself with injected sources.

Run ``python -m tests.realdata.ztf --out DIR`` for the whole quadrant; ``--crop 1024`` for less.
The original is the template, with its real mask and its TPV WCS. Sources are put into the
original *before* it is degraded, so that they go through the same blur as everything else; they
are real stars, scaled down (`tests.realdata.donors`).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sep
from astropy.io import fits
from scipy import signal

from core.exposure import Exposure, ExposureResult
from core.pipeline import PipelineSettings, process
from core.templates.single import SingleTemplate
from tests.realdata import contact_sheet, donors
from tests.realdata.degrade import SHARP, Degradation, Degraded, degrade
from tests.realdata.scoring import Score, Truth, score

STEM = "ztf_20200924431759_000655_zr_c13_o_q3_"
NAMES = ("exposures/science.fits", "templates/template.fits", "templates/template.mask.fits")
WCS_ERROR = (0.17, -0.12)  # pixels by which the copy's WCS is wrong
FORBIDDEN = 2  # no source within so many pixels of a masked one


@dataclass(frozen=True)
class Case:
    """The files of one run and what is hidden in them."""

    science: Path
    template: Path
    template_mask: Path
    truth: Truth
    hidden_share: float
    zero_point: float


def build(
    source: Path,
    out: Path,
    *,
    crop: int | None = None,
    n_sources: int = 300,
    seed: int = 7,
    snr: tuple[float, float] = (5.0, 50.0),
    how: Degradation | None = None,
) -> Case:
    """Write the degraded copy, the template and its mask into ``out``.

    Parameters
    ----------
    source : path
        Folder with the real quadrant.
    out : path
        Folder to write to.
    crop : int, optional
        Side of the central part to take; all of it when None.
    n_sources, seed, snr
        How many sources, of which noise, between which S/N (uniform in its logarithm).
    how : Degradation, optional
    """
    how = how or Degradation()
    rng = np.random.default_rng(seed)
    header, data, flags, flag_header = _read(source, crop)
    bad = (flags & ~np.int16(2 | 2048)) != 0  # all but "there is a source here"
    background = sep.Background(data, mask=bad, bw=128, bh=128, fw=3, fh=3)
    rms = float(np.median(background.rms()))
    sky_free = data - background.back(dtype=np.float32)
    sources = donors.find(sky_free, rms, bad)
    stars = donors.donors_of(sky_free, rms, bad, sources, highest_peak=30_000.0)
    if len(stars) < 5:
        raise RuntimeError(f"only {len(stars)} isolated bright stars to copy")
    noise_map = degrade(sky_free, rms, how, np.random.default_rng(seed)).variance
    injected, truth = _inject(sky_free, bad, sources, stars, noise_map, how, n_sources, snr, rng)
    copy = degrade(injected, rms, how, rng)
    return _write(out, header, flag_header, data, flags, copy, truth)


def _read(
    source: Path, crop: int | None
) -> tuple[fits.Header, npt.NDArray[np.float32], npt.NDArray[np.int16], fits.Header]:
    header = fits.getheader(source / f"{STEM}sciimg.fits.gz")
    data = fits.getdata(source / f"{STEM}sciimg.fits.gz").astype(np.float32)
    flag_header = fits.getheader(source / f"{STEM}mskimg.fits.gz")
    flags = fits.getdata(source / f"{STEM}mskimg.fits.gz").astype(np.int16)
    if crop is not None:
        ny, nx = data.shape
        y0, x0 = (ny - crop) // 2, (nx - crop) // 2
        data = np.ascontiguousarray(data[y0 : y0 + crop, x0 : x0 + crop])
        flags = np.ascontiguousarray(flags[y0 : y0 + crop, x0 : x0 + crop])
        for cards in (header, flag_header):
            if "CRPIX1" in cards:
                cards["CRPIX1"] -= x0
                cards["CRPIX2"] -= y0
    return header, data, flags, flag_header


def _inject(
    data: npt.NDArray[np.float32],
    bad: npt.NDArray[np.bool_],
    sources: donors.Sources,
    stars: list[donors.Donor],
    variance: npt.NDArray[np.float32],
    how: Degradation,
    n: int,
    snr_range: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], Truth]:
    """Add ``n`` scaled-down stars; half of them near a source."""
    ny, nx = data.shape
    result = data.copy()
    hosts = np.flatnonzero((sources.peak > 30) & (sources.peak < 8000))
    margin = donors.HALF + how.half + 3
    taken = np.zeros((0, 2))
    rows = []
    profiles: dict[int, npt.NDArray[np.float64]] = {}
    while len(rows) < n:
        on_host = bool(rng.random() < 0.5)
        if on_host:
            host = rng.choice(hosts)
            angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 6.0)
            x = round(sources.x[host] + distance * np.cos(angle))
            y = round(sources.y[host] + distance * np.sin(angle))
        else:
            x, y = int(rng.integers(margin, nx - margin)), int(rng.integers(margin, ny - margin))
        if not (margin <= x < nx - margin and margin <= y < ny - margin):
            continue
        near = np.s_[y - FORBIDDEN : y + FORBIDDEN + 1, x - FORBIDDEN : x + FORBIDDEN + 1]
        if bad[near].any() or (len(taken) and np.hypot(*(taken - (x, y)).T).min() < 30):
            continue
        k = int(rng.choice(np.argsort([np.hypot(s.x - x, s.y - y) for s in stars])[:12]))
        star = stars[k]
        kernel = how.kernel_at(x, y, (ny, nx))
        profile = signal.fftconvolve(star.stamp, kernel)
        profiles[k] = profile
        half = profile.shape[0] // 2
        local = variance[y - half : y + half + 1, x - half : x + half + 1]
        wanted = float(np.exp(rng.uniform(*np.log(snr_range))))
        flux = wanted / float(np.sqrt((profile**2 / local).sum()))
        box = np.s_[y - donors.HALF : y + donors.HALF + 1, x - donors.HALF : x + donors.HALF + 1]
        result[box] += (flux / how.flux_scale * star.stamp).astype(np.float32)
        dx, dy = how.displacement_at(x, y, (ny, nx))
        taken = np.vstack([taken, [x, y]])
        rows.append((x + star.dx + dx, y + star.dy + dy, flux, wanted, on_host))
    table = np.array(rows)
    return result, Truth(*table.T[:4], table[:, 4].astype(bool))


def _write(
    out: Path,
    header: fits.Header,
    flag_header: fits.Header,
    data: npt.NDArray[np.float32],
    flags: npt.NDArray[np.int16],
    copy: Degraded,
    truth: Truth,
) -> Case:
    for folder in ("exposures", "templates"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    how = copy.how
    science = header.copy()
    dx, dy = how.mean_displacement()
    science["CRPIX1"] += dx + WCS_ERROR[0]
    science["CRPIX2"] += dy + WCS_ERROR[1]
    saturation = how.flux_scale * (header["SATURATE"] - 157.0) + how.sky
    science["SATURATE"] = saturation
    science["GAIN"] = how.gain
    science["READNOI"] = how.read_noise
    for keyword in ("MAGZP", "MAGZPUNC", "MAGZPRMS", "SEEING"):
        science.remove(keyword, ignore_missing=True)
    science["OBSMJD"] = header["OBSMJD"] + 1.0
    paths = [out / name for name in NAMES]
    fits.writeto(paths[0], np.minimum(copy.data, saturation), science, overwrite=True)
    fits.writeto(paths[1], data, header, overwrite=True)
    fits.writeto(paths[2], flags, flag_header, overwrite=True)
    zero_point = header["MAGZP"] + 2.5 * np.log10(how.flux_scale)
    return Case(*paths, truth, copy.hidden_share, float(zero_point))


def run(case: Case, settings: PipelineSettings) -> tuple[ExposureResult, Score]:
    """Process the degraded copy and score what comes out."""
    exposure = Exposure("ztf-degraded", str(case.science), mjd_mid=59117.43)
    provider = SingleTemplate(case.template, mask=case.template_mask)
    result = process(exposure, provider, settings)
    radius = 0.7 * (result.facts.fwhm or 3.0)
    return result, score(case.truth, result.candidates, radius)


def main() -> int:
    """Run the whole quadrant and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real quadrant")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--sources", type=int, default=300)
    parser.add_argument("--sharp", action="store_true", help="hardly any blur")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    case = build(
        args.data, args.out, crop=args.crop, seed=args.seed, n_sources=args.sources,
        how=SHARP if args.sharp else None,
    )  # fmt: skip
    settings = PipelineSettings(threads=args.threads, keep_difference=True)
    result, scored = run(case, settings)
    write = sys.stdout.write
    write(f"hidden share of the noise: {case.hidden_share:.3f}\n")
    write(f"{result.outcome} {result.reason}\n{result.counts}\n{result.quality}\n")
    write(f"{result.facts}; true zero point {case.zero_point:.4f}\n")
    write(f"seconds: { {k: round(v, 2) for k, v in result.seconds.items()} }"
          f" = {sum(result.seconds.values()):.1f}\n")  # fmt: skip
    write(f"{scored.report()}\n")
    contact_sheet.draw([result.candidates[i] for i in scored.false], args.out / "false.png")
    missed = np.flatnonzero((scored.found < 0) & (case.truth.snr > 7))
    for i in missed:
        write(
            f"missed: ({case.truth.x[i]:.1f}, {case.truth.y[i]:.1f}) S/N {case.truth.snr[i]:.1f} "
            f"{'on host' if case.truth.on_host[i] else 'blank'} {_why(result, case.truth, i)}\n"
        )
    for i in scored.false:
        c = result.candidates[i]
        write(f"false: ({c.x:.1f}, {c.y:.1f}) {c.sign * c.snr:+.1f} chi2 {c.chi2:.2f} "
              f"flags {c.flags} nearest {c.nearest.distance if c.nearest else None}\n")  # fmt: skip
    return 0


def _why(result: ExposureResult, truth: Truth, i: int) -> str:
    """Return what the difference says at the place of a missed source."""
    difference = result.difference
    if difference is None:
        return ""
    x, y = round(truth.x[i]), round(truth.y[i])
    box = np.s_[y - 2 : y + 3, x - 2 : x + 3]
    return (
        f"mask {int(difference.mask[y, x])} peak {difference.scaled[box].max():.1f} "
        f"noise {difference.noise[y, x]:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
