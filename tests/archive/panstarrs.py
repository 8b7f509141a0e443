"""The Pan-STARRS archive, played on loopback: the file-list service and the sky cells.

Formats as the public documentation has them, at https://outerspace.stsci.edu/display/PANSTARRS:

- "PS1 Image Cutout Service", section "PS1 image list service": ``cgi-bin/ps1filenames.py`` with
  ``ra``, ``dec``, ``filters`` and ``type`` (a comma-separated list of ``stack``, ``stack.wt``,
  ``stack.mask`` ...) answers with a table separated by blanks, whose first line names its columns.
- "PS1 Stack images" and "PS1 DR2 caveats", section "FITS image format quirks": tile-compressed
  files, ``PC001001`` instead of ``PC1_1``, no RADESYS, asinh scaling with BSOFTEN and BOFFSET in
  stacks and weights, zero point 25 + 2.5 log10(EXPTIME), weights that are variances.
- "PS1 Pixel flags in Image Table Data": the bits of the masks; MSKNAMnn and MSKVALnn in their
  headers.
- As in real stacks MJD-OBS is a mean, and ``INP_nnnn`` name the exposures, with their nights.
- "PS1 Sky tessellation patterns": cells of one projection cell share its tangent point and overlap.

The whole numbers of stacks are RICE-compressed int16 with BSCALE and BZERO, one row a tile; those
of masks GZIP-compressed uint16.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS

from core.asinh import AsinhScale
from tests.archive.server import ERROR_PAGE, Answer, ArchiveServer, Request
from tests.archive.star_sky import StarSky

SCALE = 0.25 / 3600
LIST = "/cgi-bin/ps1filenames.py"
COLUMNS = "projcell subcell ra dec filter mjd type filename shortname badflag"
SUFFIXES = {"stack": "", "stack.wt": ".wt", "stack.mask": ".mask"}
BITS = (
    "DETECTOR", "FLAT", "DARK", "BLANK", "CTE", "SAT", "LOW", "SUSPECT", "CR", "SPIKE", "GHOST",
    "STREAK", "STARCORE", "CONV.BAD", "CONV.POOR", "MARK",
)  # fmt: skip


@dataclass(frozen=True)
class Projection:
    """A projection cell: its number, tangent point, and its cells, counted along x first."""

    number: int
    ra: float
    dec: float
    columns: int = 2
    rows: int = 2
    cell: int = 400  # pixels from one cell to the next; real ones have about 5760
    overlap: int = 80  # pixels that neighbours share

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of all cells together."""
        return self.rows * self.cell + self.overlap, self.columns * self.cell + self.overlap

    @property
    def wcs(self) -> WCS:
        """The pixel grid of all cells together; the tangent point is in their midst."""
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
        wcs.wcs.crval = self.ra, self.dec
        wcs.wcs.crpix = self.shape[1] / 2 + 0.5, self.shape[0] / 2 + 0.5
        wcs.wcs.cdelt = SCALE, SCALE
        wcs.wcs.pc = [[-1.0, 0.0], [0.0, 1.0]]
        wcs.wcs.radesys = "FK5"
        wcs.wcs.set()
        return wcs

    def box(self, subcell: int) -> tuple[slice, slice]:
        """Rows and columns of a cell on the grid of the projection."""
        row, column = divmod(subcell, self.columns)
        size = self.cell + self.overlap
        y, x = row * self.cell, column * self.cell
        return slice(y, y + size), slice(x, x + size)

    def subcell_at(self, ra: float, dec: float) -> int | None:
        """The cell in whose own part a place lies; None outside of all."""
        x, y = self.wcs.all_world2pix(ra, dec, 0)
        if not (np.isfinite(x) and np.isfinite(y)):
            return None
        column, row = ((value - self.overlap / 2 + 0.5) // self.cell for value in (x, y))
        # The outermost cells reach to their ends.
        if not (-0.5 <= x <= self.shape[1] - 0.5 and -0.5 <= y <= self.shape[0] - 0.5):
            return None
        column = min(max(int(column), 0), self.columns - 1)
        row = min(max(int(row), 0), self.rows - 1)
        return row * self.columns + column

    def angle_to(self, ra: float, dec: float) -> float:
        """Degrees from the tangent point."""
        a, b = math.radians(self.dec), math.radians(dec)
        cosine = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(
            math.radians(ra - self.ra)
        )
        return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


@dataclass
class PanStarrsPlay:
    """What the archive has.

    Attributes
    ----------
    sky : StarSky
    projections : tuple of Projection
    exposure_time : mapping of (projection, subcell) to seconds
        Of the cells that differ from ``usual_time``.
    sigma : float
        Noise of a pixel in counts a second; drawn only where ``noisy``.
    flags : list of (projection, row, column, value)
        Bits of the masks, by pixel of the projection's grid; saturated ones are NaN in the stack.
    missing : set of (projection, subcell)
        Cells that are listed but not there.
    """

    sky: StarSky
    projections: tuple[Projection, ...]
    exposure_time: Mapping[tuple[int, int], float] = field(default_factory=dict)
    usual_time: float = 1000.0
    sigma: float = 0.05
    noisy: bool = False
    flags: list[tuple[int, int, int, int]] = field(default_factory=list)
    missing: set[tuple[int, int]] = field(default_factory=set)
    _files: dict[str, bytes] = field(default_factory=dict)

    def serve(self, server: ArchiveServer) -> None:
        """Let a server answer for this archive."""
        server.route(LIST, self._list)
        server.route("/rings.v3.skycell/", self._file)

    def _list(self, request: Request) -> Answer:
        try:
            ra, dec = float(request.query["ra"]), float(request.query["dec"])
        except (KeyError, ValueError):
            return Answer(b"ERROR: ra and dec are needed\n", content_type="text/plain")
        kinds = request.query.get("type", "stack").split(",")
        lines = [COLUMNS]
        nearest = min(self.projections, key=lambda p: p.angle_to(ra, dec))
        subcell = nearest.subcell_at(ra, dec)
        if subcell is not None:
            for band in request.query.get("filters", "grizy"):
                for kind in kinds:
                    path = path_of(nearest.number, subcell, band, kind)
                    lines.append(
                        f"{nearest.number} {subcell} {ra:.6f} {dec:.6f} {band} 0.0 {kind} {path} "
                        f"{path.rsplit('/', 1)[-1]} 0"
                    )
        return Answer("\n".join(lines).encode() + b"\n", content_type="text/plain")

    def _file(self, request: Request) -> Answer:
        if request.path not in self._files:
            self._make(request.path)
        body = self._files.get(request.path)
        return Answer(ERROR_PAGE, 404, "text/html") if body is None else Answer(body)

    def _make(self, path: str) -> None:
        for projection in self.projections:
            for subcell in range(projection.rows * projection.columns):
                if (projection.number, subcell) in self.missing:
                    continue
                for band in "grizy":
                    for kind in SUFFIXES:
                        if path_of(projection.number, subcell, band, kind) == path:
                            self._files[path] = self._cell(projection, subcell, band, kind)

    def _cell(self, projection: Projection, subcell: int, band: str, kind: str) -> bytes:
        box = projection.box(subcell)
        seconds = self.exposure_time.get((projection.number, subcell), self.usual_time)
        wcs = projection.wcs[box]
        shape = box[0].stop - box[0].start, box[1].stop - box[1].start
        header = stack_header(wcs, seconds, band, projection.number, subcell)
        bits = np.zeros(projection.shape, np.uint16)
        for number, row, column, value in self.flags:
            if number == projection.number:
                bits[row, column] |= value
        if kind == "stack.mask":
            return mask_file(bits[box], header)
        sky = self.sky.drawn(wcs, shape, 25.0)
        if kind == "stack.wt":
            return asinh_file(np.full(shape, (self.sigma * seconds) ** 2), header)
        if self.noisy:
            # The same exposures made all cells: where they overlap their noise is the same.
            rng = np.random.default_rng([projection.number, "grizy".index(band)])
            sky += rng.normal(0, self.sigma, projection.shape)[box]
        counts = sky * seconds
        counts[(bits[box] & 0x20) != 0] = np.nan
        return asinh_file(counts, header)


def path_of(projection: int, subcell: int, band: str, kind: str) -> str:
    """The path of a file, as the list names it."""
    name = f"rings.v3.skycell.{projection:04d}.{subcell:03d}.stk.{band}.unconv"
    return f"/rings.v3.skycell/{projection:04d}/{subcell:03d}/{name}{SUFFIXES[kind]}.fits"


def stack_header(wcs: WCS, seconds: float, band: str, projection: int, subcell: int) -> fits.Header:
    """The cards of a stack that matter, as the real ones have them."""
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = wcs.wcs.crval
    header["CRPIX1"], header["CRPIX2"] = wcs.wcs.crpix
    header["CDELT1"], header["CDELT2"] = wcs.wcs.cdelt
    for row in (1, 2):
        for column in (1, 2):
            header[f"PC00{row}00{column}"] = wcs.wcs.pc[row - 1, column - 1]
    header["NINPUTS"] = 12
    header["STK_TYPE"] = "DEEP_STACK"
    header["SKYCELL"] = f"skycell.{projection:04d}.{subcell:03d}"
    header["TESS_ID"] = "RINGS.V3"
    header["HIERARCH FPA.FILTERID"] = f"{band}.00000"
    header["HIERARCH FPA.ZP"] = 25.0
    header["HIERARCH CELL.GAIN"] = 1.031332
    header["EXPTIME"] = seconds
    header["MJD-OBS"] = 55961.07
    for number, night in enumerate((6521, 5090, 5961 + subcell)):
        header[f"INP_{number:04d}"] = (
            f"o{night}g0225o.644178.wrp.1155869.skycell.{projection:04d}.{subcell:03d}.fits"
        )
    return header


_COMPRESSED: dict[bytes, bytes] = {}
"""Files by what is in them: compressing row by row is slow, and many tests want the same cells."""


def _once(
    make: Callable[[npt.NDArray[Any], fits.Header], bytes],
) -> Callable[[npt.NDArray[Any], fits.Header], bytes]:
    def made(pixels: npt.NDArray[Any], header: fits.Header) -> bytes:
        content = make.__name__.encode() + pixels.tobytes() + header.tostring().encode()
        key = hashlib.sha256(content).digest()
        if key not in _COMPRESSED:
            _COMPRESSED[key] = make(pixels, header)
        return _COMPRESSED[key]

    return made


@_once
def asinh_file(linear: npt.NDArray[np.floating], header: fits.Header) -> bytes:
    """Scale counts by asinh, round them to int16, and compress them."""
    finite = linear[np.isfinite(linear)]
    scale = AsinhScale(
        float(np.median(finite)), max(float(finite.std()), 1e-3 * abs(finite[0]) + 1)
    )
    stored = scale.stored(linear)
    low, high = np.nanmin(stored), np.nanmax(stored)
    step, zero = max((high - low) / 65000, 1e-7), (low + high) / 2
    whole = np.where(np.isfinite(stored), np.rint((stored - zero) / step), -32768)
    hdu = fits.CompImageHDU(
        whole.astype(np.int16), header, compression_type="RICE_1",
        tile_shape=(1, linear.shape[1]), uint=False,
    )  # fmt: skip
    hdu.header["BSCALE"], hdu.header["BZERO"] = step, zero
    hdu.header["BLANK"] = -32768
    hdu.header["BSOFTEN"], hdu.header["BOFFSET"] = scale.soften, scale.offset
    return _bytes_of(hdu)


@_once
def mask_file(bits: npt.NDArray[np.uint16], header: fits.Header) -> bytes:
    """Compress a mask, and name its bits."""
    hdu = fits.CompImageHDU(bits, header, compression_type="GZIP_1", tile_shape=(1, bits.shape[1]))
    hdu.header["MSKNUM"] = len(BITS)
    for number, name in enumerate(BITS):
        hdu.header[f"MSKNAM{number:02d}"] = name
        hdu.header[f"MSKVAL{number:02d}"] = 1 << number
    return _bytes_of(hdu)


def _bytes_of(hdu: fits.CompImageHDU) -> bytes:
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
    return stream.getvalue()
