"""Surveys of full size for benchmarks: every tile, cell or brick is one file, re-addressed.

Making the real files of a few square degrees would take longer than the benchmark. So the pixels of
one tile, cell or brick are made, of the size, depth, compression and number of stars that the real
ones have, and only the cards that say where it lies are changed. Stars keep away from the strips in
which neighbours overlap: there is no contradiction between them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from astropy.coordinates import ICRS
from astropy.io import fits
from astropy.wcs import WCS
from astropy_healpix import HEALPix

from core.pointing import tangential_grid
from core.templates.cells.bricks import Brick, brick_at
from tests.archive.hips import fits_bytes
from tests.archive.panstarrs import (
    COLUMNS,
    LIST,
    Projection,
    asinh_file,
    mask_file,
    path_of,
    stack_header,
)
from tests.archive.server import ERROR_PAGE, Answer, ArchiveServer, Request
from tests.archive.star_sky import StarSky
from tests.unit.made_frames import add_gaussians

STARS_PER_ARCSEC2 = 6e-4
MAGNITUDES = 16.0, 21.0
SEEING = 1.4  # arcsec; of the HiPS, twice that, for the size of its pixels
BAND = "r"
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """The part of the sky that is surveyed: middle and half widths, degrees."""

    ra: float
    dec: float
    half_ra: float
    half_dec: float

    def lattice(self, step: float) -> tuple[FloatArray, FloatArray]:
        """Return places all over it."""
        cosine = np.cos(np.radians(self.dec))
        ra = np.arange(-self.half_ra, self.half_ra + step, step) / cosine + self.ra
        dec = np.arange(-self.half_dec, self.half_dec + step, step) + self.dec
        a, d = np.meshgrid(ra, dec)
        return a.ravel(), d.ravel()


class MadeSurvey(Protocol):
    """A survey of a region, and the provider that it is for."""

    provider: str

    @property
    def stars(self) -> StarSky:
        """All stars of the region."""
        ...

    def serve(self, server: ArchiveServer) -> None:
        """Let a server answer for it."""
        ...

    def settings(self, url: str) -> dict[str, Any]:
        """Return what the service's settings say about it."""
        ...


def drawn_stars(area: float, low: float, high: tuple[float, float]) -> FloatArray:
    """Return x, y and magnitude of the stars of a pattern of some square arcseconds."""
    rng = np.random.default_rng(3)
    number = round(STARS_PER_ARCSEC2 * area)
    x, y = rng.uniform(low, high[0], number), rng.uniform(low, high[1], number)
    return np.stack([x, y, rng.uniform(*MAGNITUDES, number)])


def pattern(
    shape: tuple[int, int], stars: FloatArray, zero_point: float, fwhm: float
) -> FloatArray:
    """Return the stars of a pattern on their pixels; ``fwhm`` in pixels."""
    pixels = np.zeros(shape)
    add_gaussians(pixels, stars[0], stars[1], 10 ** (0.4 * (zero_point - stars[2])), fwhm)
    return pixels


def everywhere(placed: list[tuple[FloatArray, FloatArray]], magnitudes: FloatArray) -> StarSky:
    """Return the stars of a pattern that lies at many places."""
    ra, dec = (np.concatenate(values) for values in zip(*placed, strict=True))
    return StarSky(ra, dec, np.tile(magnitudes, len(placed)), SEEING)


def with_cards(file: bytes, **cards: float | str) -> bytes:
    """Return a FITS file with other values in cards that it has, once each."""
    for name, value in cards.items():
        place = file.index(f"{name:8s}=".encode())
        card = fits.Card(name, value).image.encode()
        file = file[:place] + card + file[place + 80 :]
    return file


@dataclass
class TileSurvey:
    """A HiPS of order 9: tiles of 512 pixels of 0.8 arcsec, floats as they are."""

    region: Region
    provider: str = "hips"
    order: int = 9
    width: int = 512
    zero_point: float = 25.0

    @property
    def pixel(self) -> float:
        """Arcsec."""
        return float(np.degrees(np.sqrt(np.pi / 3)) / 2**self.order / self.width * 3600)

    @property
    def healpix(self) -> HEALPix:
        """The tiles."""
        return HEALPix(2**self.order, order="nested", frame=ICRS())

    @cached_property
    def numbers(self) -> list[int]:
        """The tiles of the region."""
        import astropy.units as u

        ra, dec = self.region.lattice(0.02)
        return np.unique(self.healpix.lonlat_to_healpix(ra * u.deg, dec * u.deg)).tolist()

    @property
    def pattern_stars(self) -> FloatArray:
        """Columns, rows and magnitudes."""
        size = self.width - 8.0
        return drawn_stars((self.width * self.pixel) ** 2, 8.0, (size, size))

    @property
    def stars(self) -> StarSky:
        """See `MadeSurvey`."""
        x, y, magnitudes = self.pattern_stars
        dx, dy = 1 - (y + 0.5) / self.width, (x + 0.5) / self.width
        placed = []
        for number in self.numbers:
            lon, lat = self.healpix.healpix_to_lonlat(np.full(x.shape, number), dx=dx, dy=dy)
            placed.append((lon.deg, lat.deg))
        return everywhere(placed, magnitudes)

    def serve(self, server: ArchiveServer) -> None:
        """See `MadeSurvey`."""
        shape = self.width, self.width
        pixels = pattern(shape, self.pattern_stars, self.zero_point, 2 * SEEING / self.pixel)
        pixels += np.random.default_rng(4).normal(10, 0.3, shape)
        tile = fits_bytes(pixels.astype(np.float32), None)
        known = {
            f"/hips/Norder{self.order}/Dir{n // 10000 * 10000}/Npix{n}.fits" for n in self.numbers
        }

        def answer(request: Request) -> Answer:
            if request.path == "/hips/properties":
                return Answer(self._properties(), content_type="text/plain")
            if request.path in known:
                return Answer(tile, content_type="application/fits")
            return Answer(ERROR_PAGE, 404, "text/html")

        server.route("/hips/", answer)

    def _properties(self) -> bytes:
        facts = {
            "creator_did": "ivo://skydelta/P/made",
            "dataproduct_type": "image",
            "hips_tile_format": "fits",
            "hips_release_date": "2026-01-01T00:00Z",
            "hips_order": self.order,
            "hips_order_min": self.order,
            "hips_frame": "equatorial",
            "hips_tile_width": self.width,
        }
        return "".join(f"{name} = {value}\n" for name, value in facts.items()).encode()

    def settings(self, url: str) -> dict[str, Any]:
        """See `MadeSurvey`."""
        return {"providers": ["hips"], "hips": [{"band": BAND, "tree": f"{url}/hips"}]}


@dataclass
class CutoutSurvey:
    """hips2fits: the service draws what is asked for."""

    region: Region
    provider: str = "hips2fits"
    pixel: float = 0.8
    zero_point: float = 25.0

    @cached_property
    def stars(self) -> StarSky:
        """See `MadeSurvey`."""
        return random_stars(self.region)

    def serve(self, server: ArchiveServer) -> None:
        """See `MadeSurvey`."""
        import json

        noise = np.random.default_rng(5).normal(10, 0.3, (4700, 4700)).astype(np.float32)
        sky = StarSky(self.stars.ra, self.stars.dec, self.stars.mag, 2 * SEEING)

        def answer(request: Request) -> Answer:
            header = fits.Header(json.loads(request.query["wcs"]))
            wcs, shape = WCS(header), (int(header["NAXIS2"]), int(header["NAXIS1"]))
            own = abs(float(np.linalg.det(wcs.pixel_scale_matrix))) ** 0.5 * 3600
            stars = sky.drawn(wcs, shape, self.zero_point) * (self.pixel / own) ** 2
            data = (noise[: shape[0], : shape[1]] + stars).astype(np.float32)
            return Answer(fits_bytes(data, wcs), content_type="application/fits")

        server.route("/hips2fits", answer)

    def settings(self, url: str) -> dict[str, Any]:
        """See `MadeSurvey`."""
        survey = {"band": BAND, "survey": "made/r", "pixel_scale": self.pixel}
        return {"providers": ["hips"], "hips": [survey], "hips2fits_urls": [f"{url}/hips2fits"]}


@dataclass
class CellSurvey:
    """Pan-STARRS: one projection cell of 10 x 10 cells of 6250 x 6250 pixels."""

    region: Region
    provider: str = "panstarrs"
    sigma: float = 0.05  # counts a second
    seconds: float = 1000.0

    @property
    def projection(self) -> Projection:
        """The cells."""
        return Projection(
            1226, self.region.ra, self.region.dec, columns=10, rows=10, cell=5770, overlap=480
        )

    @property
    def pattern_stars(self) -> FloatArray:
        """Columns, rows and magnitudes on a cell."""
        low, high = 500.0, 5770.0 - 20
        return drawn_stars((5770 * 0.25) ** 2, low, (high, high))

    @property
    def stars(self) -> StarSky:
        """See `MadeSurvey`."""
        x, y, magnitudes = self.pattern_stars
        wcs, steps = self.projection.wcs, range(10)
        placed = [
            wcs.all_pix2world(x + 5770 * column, y + 5770 * row, 0)
            for row in steps
            for column in steps
        ]
        return everywhere(placed, magnitudes)

    def serve(self, server: ArchiveServer) -> None:
        """See `MadeSurvey`."""
        shape = (6250, 6250)
        header = stack_header(self.projection.wcs, self.seconds, BAND, 1226, 0)
        rng = np.random.default_rng(6)
        counts = pattern(shape, self.pattern_stars, 25.0, SEEING / 0.25)
        counts += rng.normal(0, self.sigma, shape)
        files = {"stack": asinh_file(counts * self.seconds, header)}
        counts = rng.normal(1, 0.03, shape) * (self.sigma * self.seconds) ** 2
        files["stack.wt"] = asinh_file(counts, header)
        del counts
        bits = np.where(rng.random(shape) < 1e-3, 0x20, 0).astype(np.uint16)
        files["stack.mask"] = mask_file(bits, header)
        known = {
            path_of(1226, subcell, BAND, kind): (subcell, kind)
            for subcell in range(100)
            for kind in files
        }

        def cell(request: Request) -> Answer:
            if request.path not in known:
                return Answer(ERROR_PAGE, 404, "text/html")
            subcell, kind = known[request.path]
            y, x = (part.start for part in self.projection.box(subcell))
            reference = self.projection.wcs.wcs.crpix - (x, y)
            return Answer(with_cards(files[kind], CRPIX1=reference[0], CRPIX2=reference[1]))

        def listing(request: Request) -> Answer:
            place = float(request.query["ra"]), float(request.query["dec"])
            subcell = self.projection.subcell_at(*place)
            rows = [COLUMNS]
            for kind in files if subcell is not None else ():
                path = path_of(1226, subcell, BAND, kind)
                name = path.rsplit("/", 1)[-1]
                rows.append(
                    f"1226 {subcell} {place[0]} {place[1]} {BAND} 0.0 {kind} {path} {name} 0"
                )
            return Answer("\n".join(rows).encode() + b"\n", content_type="text/plain")

        server.route("/rings.v3.skycell/", cell)
        server.route(LIST, listing)

    def settings(self, url: str) -> dict[str, Any]:
        """See `MadeSurvey`."""
        return {"providers": ["panstarrs"], "panstarrs_url": url}


_BRICK = re.compile(
    r"/dr10/south/coadd/\d{3}/(?P<brick>\w{8})/legacysurvey-(?P=brick)-(?P<what>.*)\.fits\.fz"
)


@dataclass
class BrickSurvey:
    """The Legacy Surveys: bricks of 3600 x 3600 pixels of 0.262 arcsec."""

    region: Region
    provider: str = "legacysurvey"
    sigma: float = 0.02  # nanomaggies
    scale: float = 0.262
    pixels: int = 3600

    @cached_property
    def bricks(self) -> dict[str, Brick]:
        """The bricks of the region."""
        places = zip(*(axis.tolist() for axis in self.region.lattice(0.05)), strict=True)
        return {brick.name: brick for brick in (brick_at(*place) for place in places)}

    @property
    def pattern_stars(self) -> FloatArray:
        """Columns, rows and magnitudes on a brick."""
        return drawn_stars(900.0**2, 150.0, (self.pixels - 150.0, self.pixels - 150.0))

    def wcs(self, brick: Brick) -> WCS:
        """The tangent plane of a brick."""
        return tangential_grid((brick.ra, brick.dec), (self.pixels, self.pixels), self.scale)

    @property
    def stars(self) -> StarSky:
        """See `MadeSurvey`."""
        x, y, magnitudes = self.pattern_stars
        placed = [self.wcs(brick).all_pix2world(x, y, 0) for brick in self.bricks.values()]
        return everywhere(placed, magnitudes)

    def serve(self, server: ArchiveServer) -> None:
        """See `MadeSurvey`."""
        shape = self.pixels, self.pixels
        header = self.wcs(next(iter(self.bricks.values()))).to_header()
        header["CRVAL1"], header["CRVAL2"] = 123.456789, 12.345678
        rng = np.random.default_rng(7)
        pixels = pattern(shape, self.pattern_stars, 22.5, SEEING / self.scale)
        pixels += rng.normal(0, self.sigma, shape)
        files = {f"image-{BAND}": _packed(pixels, header)}
        pixels = rng.normal(1, 0.03, shape) / self.sigma**2
        files[f"invvar-{BAND}"] = _packed(pixels, header)
        bits = np.where(rng.random(shape) < 1e-4, 0x40, 0).astype(np.int32)
        files["maskbits"] = _bits(bits, header)

        def answer(request: Request) -> Answer:
            match = _BRICK.fullmatch(request.path)
            brick = self.bricks.get(match["brick"]) if match else None
            if match is None or brick is None or match["what"] not in files:
                return Answer(ERROR_PAGE, 404, "text/html")
            return Answer(with_cards(files[match["what"]], CRVAL1=brick.ra, CRVAL2=brick.dec))

        server.route("/dr10/", answer)

    def settings(self, url: str) -> dict[str, Any]:
        """See `MadeSurvey`."""
        return {"providers": ["legacysurvey"], "legacysurvey_url": url, "legacysurvey_north": ""}


@dataclass
class FolderSurvey:
    """A survey's own coadds, one around every pointing, larger by 60 pixels on each side."""

    region: Region
    centres: list[tuple[float, float]]
    size: int
    folder: Path
    provider: str = "directory"

    @cached_property
    def stars(self) -> StarSky:
        """See `MadeSurvey`."""
        return random_stars(self.region)

    def serve(self, server: ArchiveServer) -> None:
        """Write the files."""
        shape = self.size + 120, self.size + 120
        rng = np.random.default_rng(8)
        noise = rng.normal(300, 3, shape)
        sky = StarSky(self.stars.ra, self.stars.dec, self.stars.mag, 2 * SEEING)
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, centre in enumerate(self.centres):
            wcs = tangential_grid(centre, shape, 1.0)
            header = wcs.to_header()
            header["FILTER"], header["MAGZP"] = BAND, 26.5
            data = (noise + sky.drawn(wcs, shape, 26.5)).astype(np.float32)
            fits.writeto(self.folder / f"field{number:03d}.fits", data, header, overwrite=True)

    def settings(self, url: str) -> dict[str, Any]:
        """See `MadeSurvey`."""
        return {"providers": ["directory"], "path": str(self.folder)}


def random_stars(region: Region) -> StarSky:
    """Return stars all over a region."""
    rng = np.random.default_rng(9)
    number = round(STARS_PER_ARCSEC2 * 4 * region.half_ra * region.half_dec * 3600**2)
    ra = region.ra + rng.uniform(-1, 1, number) * region.half_ra / np.cos(np.radians(region.dec))
    dec = region.dec + rng.uniform(-1, 1, number) * region.half_dec
    return StarSky(ra, dec, rng.uniform(*MAGNITUDES, number), SEEING)


def _packed(pixels: FloatArray, header: fits.Header) -> bytes:
    """Compress as fpack does for the Legacy Surveys: see `tests.archive.legacysurvey`."""
    return _file(
        fits.CompImageHDU(
            pixels.astype(np.float32), header, compression_type="RICE_1", tile_shape=(100, 100),
            quantize_level=4.0, quantize_method=2, dither_seed=1,
        )
    )  # fmt: skip


def _bits(bits: npt.NDArray[np.int32], header: fits.Header) -> bytes:
    make: Callable[..., fits.CompImageHDU] = fits.CompImageHDU
    hdu = make(bits, header, compression_type="HCOMPRESS_1", tile_shape=(100, 100), hcomp_scale=0)
    return _file(hdu)


def _file(hdu: fits.CompImageHDU) -> bytes:
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
    return stream.getvalue()
