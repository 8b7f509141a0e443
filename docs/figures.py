"""Draws the pictures of the README: ``make figures``.

``docs/flow.svg`` always; with ``--demo`` also ``docs/triplets.png``, which takes the time of a
demonstration.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent

_WIDTH, _HEIGHT = 1000, 400
_INK, _FAINT, _PAPER = "#1b2733", "#5b6b7b", "#ffffff"
_KAFKA, _KAFKA_EDGE = "#eaf1fb", "#4a78b5"
_OURS, _OURS_EDGE = "#f5f7f9", "#8a98a6"
_STEP, _STEP_EDGE = "#ffffff", "#8a98a6"
_FILES, _FILES_EDGE = "#fdf4e3", "#c2903a"
_STEPS = (
    ("read", "noise", "stars", "template", "register"),
    ("subtract", "detect", "measure", "cut out", "packets"),
)


def flow_svg() -> str:
    """Return the picture of the flow, from an exposure event to its alert packets."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="Helvetica, Arial, sans-serif">',
        "<title>An exposure event goes in; alert packets, its status and the input offset come "
        "out in one Kafka transaction</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
        'markerHeight="8" orient="auto">'
        f'<path d="M0 1 L9 5 L0 9 z" fill="{_INK}"/></marker></defs>',
        _box(0.5, 0.5, _WIDTH - 1, _HEIGHT - 1, _PAPER, "#d5dbe1", radius=10),
        # what goes in
        _box(24, 150, 150, 84, _KAFKA, _KAFKA_EDGE),
        _text(99, 178, "Kafka topic", 12, _FAINT),
        _text(99, 199, "exposures", 16, bold=True),
        _text(99, 221, "one event an exposure", 12, _FAINT),
        _arrow(174, 192, 238, 192),
        # the service
        _box(240, 92, 470, 224, _OURS, _OURS_EDGE, radius=8),
        _text(475, 118, "skydelta run", 16, bold=True),
        _text(475, 138, "polls without blocking; the work is done in worker processes", 12, _FAINT),
        # what it reads
        _box(256, 20, 200, 48, _FILES, _FILES_EDGE),
        _text(356, 40, "exposure, mask, weight", 13, bold=True),
        _text(356, 58, "FITS files on disk", 12, _FAINT),
        _arrow(356, 68, 356, 90),
        _box(494, 20, 200, 48, _FILES, _FILES_EDGE),
        _text(594, 40, "templates", 13, bold=True),
        _text(594, 58, "a folder of FITS files", 12, _FAINT),
        _arrow(594, 68, 594, 90),
        *_steps(),
        # what comes out
        _box(770, 92, 208, 224, "none", _KAFKA_EDGE, radius=8, dashed=True),
        _text(874, 110, "one transaction an exposure", 12, _KAFKA_EDGE),
        _topic(122, "alerts", "one packet a candidate"),
        _topic(170, "exposure-status", "one record an exposure"),
        _topic(218, "exposures-dead-letter", "only what cannot be used"),
        _topic(266, "input offset", "of the consumer group"),
        _arrow(710, 204, 768, 204),
        # how it is watched
        _arrow(475, 316, 475, 344),
        _text(475, 362, "HTTP, one port: /metrics  /healthz  /readyz", 13),
        _text(475, 380, "for Prometheus and for probes", 12, _FAINT),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _steps() -> list[str]:
    parts = []
    width, gap, left = 80, 10, 260
    for row, names in enumerate(_STEPS):
        y = 164 + 78 * row
        for column, name in enumerate(names):
            x = left + column * (width + gap)
            parts.append(_box(x, y, width, 40, _STEP, _STEP_EDGE))
            parts.append(_text(x + width / 2, y + 25, name, 14))
            if column:
                parts.append(_arrow(x - gap, y + 20, x - 1, y + 20, head=False))
    last, first = left + 4.5 * width + 4 * gap, left + 0.5 * width
    parts.append(
        f'<path d="M{last} 204 V223 H{first} V240" fill="none" stroke="{_INK}" '
        'stroke-width="1.4" marker-end="url(#tip)"/>'
    )
    return parts


def _topic(y: float, name: str, meaning: str) -> str:
    return "\n".join(
        (
            _box(782, y, 184, 40, _KAFKA, _KAFKA_EDGE),
            _text(874, y + 17, name, 13, bold=True),
            _text(874, y + 33, meaning, 11, _FAINT),
        )
    )


def _box(
    x: float,
    y: float,
    width: float,
    height: float,
    fill: str,
    edge: str,
    *,
    radius: float = 5,
    dashed: bool = False,
) -> str:
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" '
        f'stroke="{edge}"{dashes}/>'
    )


def _text(
    x: float, y: float, text: str, size: float, colour: str = _INK, *, bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="middle"{weight}>'
        f"{escape(text)}</text>"
    )


def _arrow(x0: float, y0: float, x1: float, y1: float, *, head: bool = True) -> str:
    tip = ' marker-end="url(#tip)"' if head else ""
    return f'<path d="M{x0} {y0} L{x1} {y1}" stroke="{_INK}" stroke-width="1.4"{tip}/>'


def triplets_png(path: Path, n: int = 12, columns: int = 3) -> None:
    """Run the demonstration with its defaults, and draw some of its candidates.

    Parameters
    ----------
    path : Path
        PNG file to write.
    n : int
        How many candidates.
    columns : int
        Of the sheet.
    """
    from PIL import Image
    from rich.console import Console

    from service.demo.demonstration import run_demonstration
    from service.demo.options import DemoOptions
    from service.demo.pictures import choose, contact_sheet

    with tempfile.TemporaryDirectory() as folder:
        outcome = run_demonstration(DemoOptions(Path(folder) / "demo"), Console(stderr=True))
        headline = f"{n} of the {len(outcome.verdicts)} candidates of skydelta demo"
        contact_sheet(choose(outcome, n), path, headline, columns)
    # Grey levels and few colours: a palette takes a fraction of the bytes.
    with Image.open(path) as sheet:
        rgb = sheet.convert("RGB")
    colours = rgb.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)


def main(arguments: list[str] | None = None) -> int:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(prog="make figures", description=main.__doc__)
    parser.add_argument("--demo", action="store_true", help="those of a demonstration, too")
    options = parser.parse_args(arguments)
    (FOLDER / "flow.svg").write_text(flow_svg(), encoding="utf-8")
    if options.demo:
        triplets_png(FOLDER / "triplets.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
