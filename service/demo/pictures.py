"""Pictures of candidates: triplets as PNG, and a contact sheet of many."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.visualization import ZScaleInterval
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from service.demo.scoring import Outcome, Verdict
from service.demo.stream import Stamp

Grey = npt.NDArray[np.uint8]

COLOURS = {"transient": "#3ddc84", "variable": "#4cc2ff", "false": "#ff5d5d"}

_PAPER = "#14161a"
_INK = "#e6e6e6"
_FAINT_INK = "#9aa0a6"
_NO_DATA = 40  # grey level of pixels without data
_GAP = 2


def zscale(stamp: Stamp) -> Grey:
    """Return a stamp as grey levels between the limits of IRAF's zscale; no data is dark grey."""
    good = np.isfinite(stamp)
    if not good.any():
        return np.full(stamp.shape, _NO_DATA, dtype=np.uint8)
    low, high = ZScaleInterval(contrast=0.25).get_limits(stamp[good])
    # zscale looks at the sky alone; widened a little, a bright source differs from a faint one.
    middle = stamp[stamp.shape[0] // 2 - 3 :, stamp.shape[1] // 2 - 3 :][:7, :7]
    peak = float(np.nanmax(np.where(np.isfinite(middle), middle, low)))
    high = max(high, min(low + 0.7 * (peak - low), low + 4.0 * (high - low)))
    scaled = (np.where(good, stamp, low) - low) / max(high - low, 1e-6)
    grey = np.clip(255.0 * scaled, 0.0, 255.0).astype(np.uint8)
    grey[~good] = _NO_DATA
    return grey


def triplet(verdict: Verdict, zoom: int = 1) -> Grey:
    """Return science, template and difference side by side, north up, as grey levels."""
    # The first row of a FITS image is its lowest.
    stamps = [zscale(stamp)[::-1] for stamp in verdict.alert.stamps()]
    gap = np.full((stamps[0].shape[0], _GAP), 20, dtype=np.uint8)
    row = np.hstack([stamps[0], gap, stamps[1], gap, stamps[2]])
    return np.repeat(np.repeat(row, zoom, axis=0), zoom, axis=1)


def png(grey: Grey) -> bytes:
    """Return grey levels as an 8-bit greyscale PNG file (matplotlib would write four channels)."""
    height, width = grey.shape
    rows = np.hstack([np.zeros((height, 1), dtype=np.uint8), grey])  # filter type 0 for each row
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def title(verdict: Verdict) -> str:
    """Return what a verdict is called beside its picture."""
    if verdict.truth is None:
        return "false"
    if verdict.label == "variable":
        return "variable, brighter" if verdict.alert.sign > 0 else "variable, fainter"
    return "transient on galaxy" if verdict.truth["on_galaxy"] else "transient"


def choose(outcome: Outcome, n: int) -> list[Verdict]:
    """Return the candidates that tell most: all false ones, then each kind from bright to faint."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in sorted(outcome.verdicts, key=lambda v: -v.alert.snr):
        groups.setdefault(title(verdict), []).append(verdict)
    chosen = groups.pop("false", [])[: n // 3]
    shares = {"transient on galaxy": 0.35, "transient": 0.35}
    room = n - len(chosen)
    for name in sorted(groups):
        share = max(round(shares.get(name, 0.15) * room), 1)
        members = groups[name]
        steps = np.unique(np.linspace(0, len(members) - 1, min(share, len(members))).astype(int))
        chosen += [members[i] for i in steps]
    order = ("transient", "transient on galaxy", "variable, brighter", "variable, fainter", "false")
    chosen = chosen[:n]
    return sorted(chosen, key=lambda v: (order.index(title(v)), -v.alert.snr))


def contact_sheet(verdicts: Sequence[Verdict], path: Path, headline: str, columns: int = 4) -> None:
    """Write a sheet of labelled triplets.

    Parameters
    ----------
    verdicts : sequence of Verdict
        What to show, in order; may be empty.
    path : pathlib.Path
        PNG file to write.
    headline : str
        Text at the top.
    columns : int
        Triplets beside each other.
    """
    zoom = 2
    pictures = [triplet(verdict, zoom) for verdict in verdicts]
    height, width = pictures[0].shape if pictures else (126, 386)
    cell_width, cell_height, top, margin = width + 22, height + 52, 84, 22
    rows = max(-(-len(pictures) // columns), 1)
    total_width = columns * cell_width - 22 + 2 * margin
    total_height = top + rows * cell_height + margin
    dpi = 100
    figure = Figure(figsize=(total_width / dpi, total_height / dpi), dpi=dpi, facecolor=_PAPER)
    canvas = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: float, colour: str, align: str = "left") -> None:
        figure.text(
            x / total_width,
            1.0 - y / total_height,
            text,
            fontsize=size,
            color=colour,
            ha=align,
            va="baseline",
        )

    write(margin, 34, "skydelta", 16, _INK)
    write(margin, 58, headline, 9.5, _FAINT_INK)
    write(
        total_width - margin,
        34,
        "each: science · template · difference   (zscale, north up)",
        9.5,
        _FAINT_INK,
        "right",
    )
    if not pictures:
        write(margin, top + 40, "no candidates", 12, _INK)
    for index, (verdict, picture) in enumerate(zip(verdicts, pictures, strict=True)):
        left = margin + (index % columns) * cell_width
        upper = top + (index // columns) * cell_height
        figure.figimage(
            picture,
            xo=left,
            yo=total_height - upper - height,
            cmap="gray",
            vmin=0,
            vmax=255,
            origin="upper",
        )
        colour = COLOURS[verdict.label]
        figure.add_artist(_frame(left, upper, width, height, total_width, total_height, colour))
        write(left, upper + height + 16, title(verdict), 9.5, colour)
        measured = f"S/N {verdict.alert.snr:.1f}"
        if verdict.alert.mag is not None:
            measured += f"   {verdict.alert.mag:.2f} mag"
        write(left + width, upper + height + 16, measured, 9.5, _INK, "right")
        true = (
            ""
            if verdict.truth is None
            else f"injected S/N {verdict.truth['snr']:.1f}   {verdict.truth['mag']:.2f} mag"
        )
        write(left, upper + height + 32, verdict.alert.exposure_id, 7.5, _FAINT_INK)
        write(left + width, upper + height + 32, true, 7.5, _FAINT_INK, "right")
    canvas.print_png(str(path))


def _frame(
    left: float,
    upper: float,
    width: float,
    height: float,
    total_width: float,
    total_height: float,
    colour: str,
) -> Rectangle:
    return Rectangle(
        ((left - 1.5) / total_width, 1.0 - (upper + height + 1.5) / total_height),
        (width + 3.0) / total_width,
        (height + 3.0) / total_height,
        fill=False,
        edgecolor=colour,
        linewidth=1.0,
    )
