"""A real crowded field without blank sky: frames of MOA-2013-BLG-475, with hidden sources."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from rich.table import Table
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import ndtr

from core.detection import detect, significance
from core.exposure import Exposure
from core.photometry import fit_point_source
from core.pipeline import PipelineSettings, process
from core.psf import PSFModel
from core.subtraction.difference import Difference
from core.templates.single import SingleTemplate

NAME = "crowded field"
FRAMES = ("AKB13475I0018.fits.gz", "AKB13475I0046.fits.gz", "AKB13475I0060.fits.gz")
HIDDEN = 30
GAIN, READ_NOISE = 1.9, 5.0
MATCH = 2.5  # pixels


def data_folder() -> Path | None:
    """Return where the series lies, None where it is not."""
    given = os.environ.get("SKYDELTA_SHARED_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = root / "saao_crowded_series"
    return folder if folder.is_dir() else None


def hide(frame: Path, psf: PSFModel, seed: int) -> np.ndarray:
    """Add point sources of S/N 8 to 50 to a frame in place; return x, y, flux, S/N by rows.

    Their PSF is the one that was measured on the frame: fluxes are right if matching is.
    """
    rng = np.random.default_rng(seed)
    with fits.open(frame) as hdus:
        data, header = hdus[0].data.astype(np.float64), hdus[0].header
    ny, nx = data.shape
    half = psf.size // 2
    variance = np.maximum(data, 0) / GAIN + (READ_NOISE / GAIN) ** 2
    hidden: list[tuple[float, float, float, float]] = []
    while len(hidden) < HIDDEN:
        x, y = rng.uniform(50, nx - 51), rng.uniform(50, ny - 51)
        cx, cy = round(x), round(y)
        box = np.s_[cy - half : cy + half + 1, cx - half : cx + half + 1]
        near = any(np.hypot(x - row[0], y - row[1]) < 25 for row in hidden)
        if near or data[box].max() > 20_000:
            continue
        profile = np.maximum(ndimage.shift(psf.at(x, y).astype(float), (y - cy, x - cx)), 0)
        snr, flux = rng.uniform(8, 50), 0.0
        for _ in range(5):
            own = variance[box] + flux * profile / GAIN
            flux = snr / np.sqrt((profile**2 / own).sum())
        data[box] += rng.poisson(flux * profile * GAIN) / GAIN
        hidden.append((x, y, flux, snr))
    for keyword in ("BZERO", "BSCALE"):
        header.remove(keyword, ignore_missing=True)
    fits.writeto(frame, data.astype(np.float32), header, overwrite=True)
    return np.array(hidden).T


def measure(engines: Sequence[str]) -> Table | None:
    """Subtract frames by each engine, and say what came out; None without the data."""
    folder = data_folder()
    if folder is None:
        return None
    from tests.realdata import saao  # needs the packages of the tests

    table = Table(
        "crowded field", "engine", "star chi²", "sky chi²", "error", "masked", "others found",
        "complete (expected)", "flux ratio", "pull", "outcome",
    )  # fmt: skip
    program = os.environ.get("SKYDELTA_HOTPANTS") or shutil.which("hotpants") or "hotpants"
    with tempfile.TemporaryDirectory(prefix="skydelta-crowded-") as out:
        series = saao.build(folder, Path(out), only=FRAMES)
        provider = SingleTemplate(
            series.template, mask=series.template_mask, variance=series.template_variance
        )
        for seed, frame in enumerate(series.frames):
            before = saao.run(series, frame, threads=2, planes=True).difference
            if before is None:
                table.add_row(frame.stem, "sfft", *["-"] * 8, "nothing to hide sources with")
                continue
            hidden = hide(frame, before.psf, seed)
            for engine in engines:
                settings = PipelineSettings(
                    engines=(engine,), threads=2, keep_difference=True, hotpants=program
                )
                result = process(Exposure(frame.stem, str(frame)), provider, settings)
                if result.difference is None:
                    table.add_row(frame.stem, engine, *["-"] * 8, result.reason)
                    continue
                q = result.difference.quality
                masked = 100 * np.mean(result.difference.mask != 0)
                outcome = result.outcome if result.outcome == "published" else result.reason
                table.add_row(
                    frame.stem, engine, f"{q.star_chi2:.2f}", f"{q.sky_chi2:.2f}",
                    f"{100 * q.model_error:.1f} %", f"{masked:.0f} %",
                    *_against(result.difference, hidden), outcome,
                )  # fmt: skip
    return table


def _against(difference: Difference, hidden: np.ndarray) -> tuple[str, str, str, str]:
    """Return detections of nothing that was hidden, completeness, flux ratio and pulls."""
    if (difference.mask != 0).all():
        return "all masked", "-", "-", "-"
    found = detect(significance(difference, threads=2).snr, difference.mask, 5.0)
    places = np.column_stack([found.x, found.y]) if len(found) else np.full((1, 2), -1e9)
    x, y, flux, snr = hidden
    clear = difference.mask[np.rint(y).astype(int), np.rint(x).astype(int)] == 0
    hit = cKDTree(places).query(np.column_stack([x, y]))[0] < MATCH
    others = cKDTree(np.column_stack([x, y])).query(places)[0] > MATCH
    others &= places[:, 0] > 0
    ratios, pulls = [], []
    for i in np.flatnonzero(clear & hit & (snr > 15)):
        fit = fit_point_source(difference, x[i], y[i], gain=difference.gain)
        if fit is not None:
            ratios.append(fit.flux / flux[i])
            pulls.append((fit.flux - flux[i]) / fit.flux_err)
    return (
        str(int(others.sum())),
        f"{hit[clear].mean():.3f} ({ndtr(snr[clear] - 5).mean():.3f})" if clear.any() else "-",
        f"{np.median(ratios):.3f}" if ratios else "-",
        f"{np.mean(pulls):+.2f} ± {np.std(pulls):.2f}" if pulls else "-",
    )
