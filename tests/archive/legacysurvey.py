"""The Legacy Surveys' archive, played on loopback: bricks, as far as they exist.

Layout and formats from https://www.legacysurvey.org/dr10/files ("Image Stacks") and
https://www.legacysurvey.org/dr10/bitmasks: images in nanomaggies and inverse variances,
fpack-compressed floats (RICE_1, SUBTRACTIVE_DITHER_2, tiles of 100 x 100); maskbits in three
HDUs, HCOMPRESS_1 int32 and two of uint8. Real bricks have 3600 x 3600 pixels of 0.262 arcsec; these
are as large on the sky, of fewer pixels.
"""

from __future__ import annotations

import io
import re
import threading
from dataclasses import dataclass, field

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from core.templates.cells.bricks import Brick, brick_at
from tests.archive.server import ERROR_PAGE, Answer, ArchiveServer, Request
from tests.archive.star_sky import StarSky

# Two threads that encode HCOMPRESS at a time spoil each other's bits.
_ENCODING = threading.Lock()
_PATH = re.compile(
    r"^/(?P<region>dr\d+/(?:north|south))/coadd/(?P<folder>\d{3})/(?P<brick>\d{4}[pm]\d{3})/"
    r"legacysurvey-(?P=brick)-(?P<what>image|invvar|maskbits)(?:-(?P<band>[griz]))?\.fits\.fz$"
)


@dataclass
class LegacySurveyPlay:
    """What the archive has.

    Attributes
    ----------
    sky : StarSky
    bricks : mapping of str to list of Brick
        ``dr10/south`` and the like.
    pixels : int
        Of a brick along each axis.
    scale : float
        Arcsec per pixel.
    sigma : float
        Noise of a pixel in nanomaggies; drawn only where ``noisy``.
    flags : list of (brick, row, column, value)
        Bits of the masks.
    holes : list of (brick, row, column)
        Pixels without weight.
    """

    sky: StarSky
    bricks: dict[str, list[Brick]]
    pixels: int = 360
    scale: float = 2.62
    sigma: float = 0.02
    noisy: bool = False
    flags: list[tuple[str, int, int, int]] = field(default_factory=list)
    holes: list[tuple[str, int, int]] = field(default_factory=list)
    _files: dict[str, bytes] = field(default_factory=dict)

    def serve(self, server: ArchiveServer) -> None:
        """Let a server answer for this archive."""
        server.route("/dr", self._file)

    def _file(self, request: Request) -> Answer:
        with _ENCODING:
            if request.path not in self._files:
                self._make(request.path)
        body = self._files.get(request.path)
        return Answer(ERROR_PAGE, 404, "text/html") if body is None else Answer(body)

    def _make(self, path: str) -> None:
        match = _PATH.match(path)
        if match and match["folder"] == match["brick"][:3]:
            for brick in self.bricks.get(match["region"], []):
                if brick.name == match["brick"]:
                    self._files[path] = self._plane(
                        brick, match["what"], match["band"], match["region"]
                    )

    def wcs(self, brick: Brick) -> WCS:
        """The tangent plane of a brick."""
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
        wcs.wcs.crval = brick.ra, brick.dec
        wcs.wcs.crpix = self.pixels / 2 + 0.5, self.pixels / 2 + 0.5
        wcs.wcs.cd = [[-self.scale / 3600, 0], [0, self.scale / 3600]]
        wcs.wcs.set()
        return wcs

    def _plane(self, brick: Brick, what: str, band: str | None, region: str) -> bytes:
        wcs, shape = self.wcs(brick), (self.pixels, self.pixels)
        header = fits.Header()
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        header["CRVAL1"], header["CRVAL2"] = brick.ra, brick.dec
        header["CRPIX1"], header["CRPIX2"] = wcs.wcs.crpix
        for row in (1, 2):
            for column in (1, 2):
                header[f"CD{row}_{column}"] = wcs.wcs.cd[row - 1, column - 1]
        header["BRICK"], header["SURVEY"] = brick.name, region
        if what == "maskbits":
            return self._maskbits(brick, header)
        header["BAND"] = band
        if what == "invvar":
            weight = np.full(shape, 1 / self.sigma**2, np.float32)
            for name, row, column in self.holes:
                if name == brick.name:
                    weight[row, column] = 0
            return _packed(weight, header)
        # As legacypipe's coadds have them, in UTC.
        header["DATEOBS1"] = f"2014-08-{int(brick.name[:4]) % 28 + 1:02d}T00:00:00.000"
        header["DATEOBS2"] = "2018-02-18T12:00:00.000"
        pixels = self.sky.drawn(wcs, shape, 22.5)
        if self.noisy:
            rng = np.random.default_rng([int(brick.name[:4]), int(brick.name[5:])])
            pixels += rng.normal(0, self.sigma, shape)
        return _packed(pixels.astype(np.float32), header)

    def _maskbits(self, brick: Brick, header: fits.Header) -> bytes:
        shape = self.pixels, self.pixels
        y, x = np.mgrid[: shape[0], : shape[1]]
        ra, dec = self.wcs(brick).all_pix2world(x.ravel(), y.ravel(), 0)
        step = 12  # a few places tell where the brick's own part ends
        bits = np.zeros(shape, np.int32)
        for row in range(0, shape[0], step):
            for column in range(0, shape[1], step):
                at = row * shape[1] + column
                if brick_at(ra[at], dec[at]).name != brick.name:
                    bits[row : row + step, column : column + step] |= 1  # NPRIMARY
        for name, row, column, value in self.flags:
            if name == brick.name:
                bits[row, column] |= value
        stream = io.BytesIO()
        hdus = [fits.PrimaryHDU()]
        for number, plane in enumerate((bits, bits.astype(np.uint8), bits.astype(np.uint8))):
            hdus.append(
                fits.CompImageHDU(
                    plane,
                    header if number == 0 else None,
                    compression_type="HCOMPRESS_1",
                    tile_shape=(60, 60),
                    hcomp_scale=0,
                )
            )
        fits.HDUList(hdus).writeto(stream)
        return stream.getvalue()


def _packed(pixels: np.ndarray, header: fits.Header) -> bytes:
    stream = io.BytesIO()
    hdu = fits.CompImageHDU(
        pixels, header, compression_type="RICE_1", tile_shape=(60, 60), quantize_level=-1e-4,
        quantize_method=2, dither_seed=1,
    )  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
    return stream.getvalue()
