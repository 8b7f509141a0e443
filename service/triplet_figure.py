"""A picture of what an alert is about: science, template and difference side by side."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy import units as u
from astropy.visualization import ZScaleInterval
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from service.alert_reading import Stamp

__all__ = ["draw_triplet"]

_NO_DATA = "#d9b38c"  # between the greys and unlike them
_MARK = "#e8591c"
_MOST_WIDENING = 5.0  # of the stretch: beyond it the sky is black and the neighbours are gone
_COMPASS = "#1668a8"
_HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]


def draw_triplet(
    stamps: Mapping[str, Stamp], path: Path, *, title: str, subtitle: str, faded: bool
) -> None:
    """Write a PNG of the three stamps of a packet.

    Science and template are each stretched by zscale, widened towards the peak of the centre;
    the difference symmetrically around zero, so that grey is no change. Pixels without data are
    brown. Where the stamps have a WCS, each has arrows to the north and the east, and the science
    stamp a scale.

    Parameters
    ----------
    stamps : mapping
        ``science``, ``template`` and ``difference``.
    path : Path
        The PNG; replaced if it is there, complete or not at all.
    title, subtitle : str
        Above the picture.
    faded : bool
        The difference is template minus science.
    """
    figure = Figure(figsize=(9.6, 4.17), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    grey = colormaps["gray"].with_extremes(bad=_NO_DATA)
    figure.subplots_adjust(left=0.012, right=0.988, bottom=0.03, top=0.76, wspace=0.04)
    figure.text(0.012, 0.93, title, fontsize=13, weight="bold", parse_math=False)
    figure.text(0.012, 0.865, subtitle, fontsize=9.5, color="#444444", parse_math=False)
    names = {
        "science": "science",
        "template": "template",
        "difference": "template − science" if faded else "science − template",
    }
    for panel, (kind, label) in zip(axes, names.items(), strict=True):
        stamp = stamps[kind]
        pixels = _plausible(stamp.pixels)
        low, high = _around_zero(pixels) if kind == "difference" else _stretch(pixels)
        panel.imshow(
            np.ma.masked_invalid(pixels),
            origin="lower",
            cmap=grey,
            vmin=low,
            vmax=high,
            interpolation="nearest",
        )
        panel.set_title(label, fontsize=10.5, loc="left", pad=4)
        panel.set_title(f"{low:.4g} … {high:.4g}", fontsize=8, loc="right", pad=4, color="#666666")
        panel.set_xticks([])
        panel.set_yticks([])
        _mark_centre(panel, stamp.pixels.shape)
        wcs = _celestial(stamp)
        if wcs is not None:
            _draw_compass(panel, wcs, stamp.pixels.shape)
            if kind == "science":
                _draw_scale(panel, wcs, stamp.pixels.shape)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(partial, format="png", metadata={"Software": "skydelta"})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _plausible(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the pixels with NaN for fill values: some ZTF packets hold -3e38 where no data."""
    wide = pixels.astype(np.float64)
    wide[~(np.abs(wide) < 1e20)] = np.nan
    return wide


def _stretch(pixels: npt.NDArray[np.float64]) -> tuple[float, float]:
    good = pixels[np.isfinite(pixels)]
    if good.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in ZScaleInterval().get_limits(good))
    # zscale looks at the sky alone: without this a faint and a saturated star look the same.
    ny, nx = pixels.shape
    centre = pixels[ny // 2 - 3 : ny // 2 + 4, nx // 2 - 3 : nx // 2 + 4]
    if np.isfinite(centre).any():
        peak = float(np.nanmax(centre))
        high = max(high, low + min(0.6 * (peak - low), _MOST_WIDENING * (high - low)))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _around_zero(pixels: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = _stretch(pixels)
    good = pixels[np.isfinite(pixels)]
    reach = max(abs(low), abs(high))
    if good.size:
        reach = min(reach, max(abs(float(good.min())), abs(float(good.max()))) or 1.0)
    return -reach, reach


def _mark_centre(panel: Axes, shape: tuple[int, ...]) -> None:
    """Two strokes that point at the candidate and leave it free."""
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    near, far = 0.09 * shape[0], 0.19 * shape[0]
    panel.plot([x, x], [y + near, y + far], color=_MARK, linewidth=1.8)
    panel.plot([x + near, x + far], [y, y], color=_MARK, linewidth=1.8)


def _celestial(stamp: Stamp) -> WCS | None:
    if "CTYPE1" not in stamp.header:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        # Whatever wcslib finds wrong with a stranger's header, the picture does without a compass.
        try:
            wcs = WCS(stamp.header)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
    return wcs if wcs.has_celestial and wcs.naxis == 2 else None


def _draw_compass(panel: Axes, wcs: WCS, shape: tuple[int, ...]) -> None:
    ny, nx = shape
    length = 0.13 * ny
    middle = np.array([(nx - 1) / 2, (ny - 1) / 2])
    scale = proj_plane_pixel_scales(wcs).mean()  # degrees
    centre = wcs.pixel_to_world(*middle)
    arrows: dict[str, Any] = {}
    for name, angle in (("N", 0), ("E", 90)):
        sky = centre.directional_offset_by(angle * u.deg, scale * u.deg)
        step = np.array([float(v) for v in wcs.world_to_pixel(sky)]) - middle
        norm = float(np.hypot(*step))
        if not np.isfinite(norm) or norm == 0.0:
            return
        arrows[name] = step / norm * length
    # However it is turned, the compass with its letters stays in its corner of the panel.
    x0, y0 = np.array([0.84 * nx, 0.14 * ny]) - 0.7 * (arrows["N"] + arrows["E"])
    for name, (dx, dy) in arrows.items():
        panel.annotate(
            "",
            xy=(x0 + dx, y0 + dy),
            xytext=(x0, y0),
            arrowprops={
                "arrowstyle": "-|>", "color": _COMPASS, "linewidth": 1.4,
                "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8, "path_effects": _HALO,
            },
        )  # fmt: skip
        panel.text(
            x0 + 1.45 * dx, y0 + 1.45 * dy, name, color=_COMPASS, fontsize=9, weight="bold",
            ha="center", va="center", path_effects=_HALO,
        )  # fmt: skip


def _draw_scale(panel: Axes, wcs: WCS, shape: tuple[int, ...]) -> None:
    ny, nx = shape
    pixel = float(proj_plane_pixel_scales(wcs).mean()) * 3600.0
    if not np.isfinite(pixel) or pixel <= 0.0:
        return
    longest = 0.35 * nx * pixel
    nice = [m * 10.0**e for e in range(-3, 5) for m in (1.0, 2.0, 5.0)]
    arcsec = max((n for n in nice if n <= longest), default=nice[0])
    x0, y0 = 0.05 * nx, 0.06 * ny
    x1 = x0 + arcsec / pixel
    panel.plot([x0, x1], [y0, y0], color=_COMPASS, linewidth=2.5, path_effects=_HALO)
    panel.text(
        x0, y0 + 0.03 * ny, f"{arcsec:g}″", color=_COMPASS, fontsize=9, weight="bold",
        path_effects=_HALO,
    )  # fmt: skip
