"""A HiPS and the hips2fits service, made of a sky of which everything is known.

The layout of a HiPS (``properties``, ``Norder<K>/Dir<D>/Npix<N>.fits``) is that of the IVOA
recommendation "HiPS - Hierarchical Progressive Survey 1.0", sections 4.1 and 4.4
(https://www.ivoa.net/documents/HiPS/20170519/REC-HIPS-1.0-20170519.pdf); the service is documented
at https://alasky.cds.unistra.fr/hips-image-services/hips2fits: ``hips``, ``format``, and either
``wcs`` (a FITS header as JSON) or ``width``, ``height``, ``ra``, ``dec``, ``fov``, ``projection``;
images of at most 50 million pixels; errors as JSON with ``title`` and ``description``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import astropy.units as u
import numpy as np
import numpy.typing as npt
from astropy.coordinates import ICRS, Galactic, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from astropy_healpix import HEALPix

from core.celestial import to_icrs
from tests.archive.server import Answer, ArchiveServer, Request

FRAMES = {"equatorial": ICRS(), "galactic": Galactic()}
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StarField:
    """Round Gaussian stars on a flat sky.

    Attributes
    ----------
    ra, dec : ndarray of float64
        Degrees.
    flux : ndarray of float64
        Whole flux of each star, in the units of the survey's pixels.
    sigma : float
        Arcseconds.
    pixel : float
        Size of the survey's pixels, arcseconds: values are fluxes in one of them.
    level : float
        Sky in such a pixel.
    covers : callable or None
        Whether the survey has data at some places; everywhere if None.
    """

    ra: FloatArray
    dec: FloatArray
    flux: FloatArray
    sigma: float
    pixel: float
    level: float = 0.0
    covers: Callable[[FloatArray, FloatArray], npt.NDArray[np.bool_]] | None = None

    @classmethod
    def random(
        cls, ra: float, dec: float, radius: float, number: int, **facts: object
    ) -> StarField:
        """Return stars within some degrees of a place, the same ones every time."""
        rng = np.random.default_rng(7)
        distance = radius * np.sqrt(rng.uniform(0, 1, number)) * u.deg
        places = SkyCoord(ra, dec, unit="deg").directional_offset_by(
            rng.uniform(0, 360, number) * u.deg, distance
        )
        flux = 10 ** rng.uniform(4.0, 6.0, number)
        return cls(places.ra.deg, places.dec.deg, flux, **facts)  # type: ignore[arg-type]

    def values(self, ra: FloatArray, dec: FloatArray) -> npt.NDArray[np.float32]:
        """Return the survey's values at some places (degrees); NaN where it has none."""
        at, stars = (
            _vectors(a, d) for a, d in ((np.ravel(ra), np.ravel(dec)), (self.ra, self.dec))
        )
        sigma = np.radians(self.sigma / 3600)
        peak = self.flux * self.pixel**2 / (2 * np.pi * self.sigma**2)
        out = np.full(len(at), self.level)
        for first in range(0, len(at), 1000):
            part = at[first : first + 1000]
            middle = np.nanmean(part, axis=0)
            reach = np.nanmax(np.linalg.norm(part - middle, axis=1)) + 7 * sigma
            # Chords: cosines of small angles have lost the digits that matter.
            for k in np.flatnonzero(np.linalg.norm(stars - middle, axis=1) < reach):
                chord2 = ((part - stars[k]) ** 2).sum(axis=1)
                near = np.flatnonzero(chord2 < (7 * sigma) ** 2)
                out[first + near] += peak[k] * np.exp(-0.5 * chord2[near] / sigma**2)
        out[~np.isfinite(at).all(axis=1)] = np.nan
        if self.covers is not None:
            out[~self.covers(np.ravel(ra), np.ravel(dec))] = np.nan
        return out.reshape(np.shape(ra)).astype(np.float32)

    def image(self, wcs: WCS, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Return the values at the centres of the pixels of a grid."""
        y, x = np.mgrid[: shape[0], : shape[1]]
        ra, dec = to_icrs(wcs, x.ravel(), y.ravel())
        return self.values(ra, dec).reshape(shape)


@dataclass
class Hips2FitsService:
    """Answers the queries of hips2fits.

    Attributes
    ----------
    surveys : dict of str to StarField
        By identifier.
    encode : dict of str to callable
        How the values of a survey are stored, where that is not as they are.
    max_pixels : int
        A larger image is refused.
    """

    surveys: dict[str, StarField]
    encode: dict[str, Callable[[FloatArray], FloatArray]] = field(default_factory=dict)
    max_pixels: int = 50_000_000
    _made: dict[tuple[str, str], Answer] = field(default_factory=dict)

    def __call__(self, request: Request) -> Answer:
        query = request.query
        sky = self.surveys.get(query.get("hips", ""))
        if sky is None:
            return _refusal("Bad request", f"Unknown HiPS: {query.get('hips')}")
        if query.get("format", "fits") != "fits":
            return _refusal("Bad request", "this archive makes FITS only")
        wcs, shape = _grid(query)
        if shape[0] * shape[1] > self.max_pixels:
            return _refusal("Bad request", "The requested image is too large (max. 50 Mpixels)")
        key = query["hips"], str(sorted(query.items()))
        if key not in self._made:
            data = sky.image(wcs, shape)
            if query["hips"] in self.encode:
                data = self.encode[query["hips"]](data).astype(np.float32)
            self._made[key] = Answer(fits_bytes(data, wcs), content_type="application/fits")
        return self._made[key]

    def at(self, server: ArchiveServer, path: str = "/hips-image-services/hips2fits") -> str:
        """Serve at a path, and return the endpoint."""
        server.route(path, self)
        return server.url + path


def write_hips(
    folder: Path,
    sky: StarField,
    where: WCS,
    shape: tuple[int, int],
    *,
    order: int,
    width: int = 128,
    frame: str = "equatorial",
    lowest: int | None = None,
    padded: bool = True,
    encode: Callable[[FloatArray], FloatArray] | None = None,
    **properties: object,
) -> None:
    """Write the tiles under a pixel grid, each pixel the sky's value at its centre.

    Orders below the deepest one, down to ``lowest``, hold the means of four pixels, as the
    hierarchy of a HiPS does.
    """
    y, x = np.meshgrid(np.arange(-20, shape[0] + 24, 4), np.arange(-20, shape[1] + 24, 4))
    ra, dec = to_icrs(where, x.ravel(), y.ravel())
    healpix = HEALPix(2**order, order="nested", frame=FRAMES[frame])
    numbers = np.unique(healpix.skycoord_to_healpix(SkyCoord(ra, dec, unit="deg")))
    levels = {
        order: {
            int(number): _tile(sky, order, int(number), width, frame, encode) for number in numbers
        }
    }
    for coarser in range(order - 1, (order if lowest is None else lowest) - 1, -1):
        levels[coarser] = _coarser(levels[coarser + 1], width)
    for level, tiles in levels.items():
        for number, tile in tiles.items():
            path = (
                folder / f"Norder{level}" / f"Dir{number // 10000 * 10000}" / f"Npix{number}.fits"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            body = fits_bytes(tile, None)
            path.write_bytes(body if padded else body[: 2880 + tile.nbytes])
    write_properties(
        folder,
        hips_order=order,
        hips_order_min=min(levels),
        hips_frame=frame,
        hips_tile_width=width,
        **{"s_pixel_scale": sky.pixel / 3600, **properties},
    )


def write_properties(folder: Path, **facts: object) -> None:
    """Write the file ``properties``; what is None is left out."""
    known = {
        "creator_did": "ivo://skydelta/P/made",
        "dataproduct_type": "image",
        "hips_tile_format": "fits",
        "hips_version": "1.4",
        "hips_release_date": "2026-01-01T00:00Z",
    } | facts
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{key:20s} = {value}" for key, value in known.items() if value is not None]
    (folder / "properties").write_text("# made for tests\n" + "\n".join(lines) + "\n")


def fits_bytes(data: npt.NDArray[np.generic], wcs: WCS | None) -> bytes:
    """Return an image as a FITS file."""
    stream = io.BytesIO()
    header = None if wcs is None else wcs.to_header()
    fits.PrimaryHDU(data, header).writeto(stream)
    return stream.getvalue()


def _tile(
    sky: StarField,
    order: int,
    number: int,
    width: int,
    frame: str,
    encode: Callable[[FloatArray], FloatArray] | None,
) -> npt.NDArray[np.float32]:
    """Return a tile as HiPS stores it.

    Columns run with dy (towards the north-west) and rows against dx (towards the north-east), as in
    the headers that `reproject.hips` gives its tiles.
    """
    row, column = np.mgrid[:width, :width]
    dx, dy = 1 - (row + 0.5) / width, (column + 0.5) / width
    healpix = HEALPix(2**order, order="nested", frame=FRAMES[frame])
    places = healpix.healpix_to_skycoord(np.full(row.shape, number), dx=dx, dy=dy).icrs
    values = sky.values(places.ra.deg, places.dec.deg)
    return values if encode is None else encode(values).astype(np.float32)


def _coarser(
    tiles: Mapping[int, npt.NDArray[np.float32]], width: int
) -> dict[int, npt.NDArray[np.float32]]:
    half = width // 2
    out: dict[int, npt.NDArray[np.float32]] = {}
    for number, tile in tiles.items():
        whole = out.setdefault(number // 4, np.full((width, width), np.nan, np.float32))
        # Children 0, 1, 2, 3 lie south, east, west, north; east is further along dx, west along dy.
        dx, dy = number % 4 % 2, number % 4 // 2
        rows = slice(0, half) if dx else slice(half, width)
        columns = slice(half, width) if dy else slice(0, half)
        whole[rows, columns] = tile.reshape(half, 2, half, 2).mean(axis=(1, 3))
    return out


def _grid(query: Mapping[str, str]) -> tuple[WCS, tuple[int, int]]:
    if "wcs" in query:
        header = fits.Header(json.loads(query["wcs"]))
        return WCS(header), (int(header["NAXIS2"]), int(header["NAXIS1"]))
    shape = int(query["height"]), int(query["width"])
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{query['projection']}", f"DEC--{query['projection']}"]
    wcs.wcs.crval = [float(query["ra"]), float(query["dec"])]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5, shape[0] / 2 + 0.5]
    step = float(query["fov"]) / max(shape)
    wcs.wcs.cdelt = [-step, step]
    return wcs, shape


def _refusal(title: str, description: str) -> Answer:
    body = json.dumps({"title": title, "description": description}).encode()
    return Answer(body, 400, "application/json")


def _vectors(ra: npt.ArrayLike, dec: npt.ArrayLike) -> FloatArray:
    a, d = np.radians(np.asarray(ra, float)), np.radians(np.asarray(dec, float))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)
