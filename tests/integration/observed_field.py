"""Fields of stars that the archives on loopback know, and exposures of them as events name them.

Everything is drawn from the same stars, whose magnitudes are those of every band: what a template
of any archive shows is what an exposure shows, but for the seeing, the noise and the transients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS

from tests.archive.hips import StarField
from tests.archive.star_sky import StarSky

PIXELS = 320
SCALE = 1.0  # arcsec
ZERO_POINT = 26.5
SKY, GAIN, READ_NOISE, SATURATION = 300.0, 2.0, 6.0, 60_000.0
SEEING, SURVEY_SEEING = 3.0, 2.2  # FWHM, arcsec
STARS_PER_PIXEL = 1.2e-3
MARGIN = 80  # pixels around an exposure in which there are stars too
FIRST_NIGHT = 61000.2


@dataclass(frozen=True)
class Transient:
    """A new source: offsets from the middle of the field, arcsec east and north, and magnitude."""

    east: float
    north: float
    mag: float


#: Of S/N 15 to 40 in an exposure, and away from its edges.
TRANSIENTS = (
    Transient(-100.0, 80.0, 19.2),
    Transient(90.0, 60.0, 18.9),
    Transient(20.0, -95.0, 18.4),
    Transient(-70.0, -40.0, 18.7),
)


@dataclass(frozen=True)
class ObservedField:
    """A field of stars.

    Attributes
    ----------
    name : str
        Of the field; exposures are named after it.
    ra, dec : float
        Its middle, ICRS degrees.
    """

    name: str
    ra: float
    dec: float
    exposures: list[str] = field(default_factory=list, compare=False)

    @property
    def stars(self) -> StarSky:
        """The stars of the field and of what surrounds it, the same ones every time."""
        rng = np.random.default_rng([round(100 * self.ra), round(100 * (self.dec + 90))])
        width = PIXELS + 2 * MARGIN
        number = round(STARS_PER_PIXEL * width * width)
        x, y = rng.uniform(-MARGIN, PIXELS + MARGIN, (2, number))
        ra, dec = self.wcs().all_pix2world(x, y, 0)
        return StarSky(ra, dec, rng.uniform(15.5, 20.0, number), SURVEY_SEEING)

    def wcs(self, dx: float = 0.0, dy: float = 0.0, angle: float = 0.0) -> WCS:
        """Return the grid of an exposure that points some pixels away and is rotated (degrees)."""
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
        wcs.wcs.crval = self.ra, self.dec
        wcs.wcs.crpix = (PIXELS + 1) / 2 + dx, (PIXELS + 1) / 2 + dy
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        wcs.wcs.cd = SCALE / 3600 * np.array([[-c, s], [s, c]])
        wcs.wcs.radesys = "ICRS"
        wcs.wcs.set()
        return wcs

    @property
    def transients(self) -> npt.NDArray[np.float64]:
        """Right ascension and declination of the transients, shape (n, 2)."""
        cosine = np.cos(np.radians(self.dec))
        return np.array(
            [(self.ra + t.east / 3600 / cosine, self.dec + t.north / 3600) for t in TRANSIENTS]
        )

    def star_field(self, zero_point: float, pixel: float) -> StarField:
        """Return the stars as the play of a HiPS takes them; ``pixel`` in arcsec."""
        sky = self.stars
        return StarField(
            sky.ra, sky.dec, sky.fluxes(zero_point), SURVEY_SEEING / 2.3548, pixel, level=100.0
        )

    def expose(self, folder: Path, band: str, *, repeat: bool = False) -> dict[str, Any]:
        """Write an exposure with the transients in it, and return its event.

        Parameters
        ----------
        folder : Path
            Where the file goes.
        band : str
        repeat : bool
            Point exactly as the first exposure did; else a few pixels away, and rotated a little.
        """
        number = len(self.exposures)
        name = f"{self.name}-{band}-{number}"
        self.exposures.append(name)
        rng = np.random.default_rng([number, *name.encode()])
        wcs = self.wcs() if repeat or number == 0 else self.wcs(*rng.uniform(-4, 4, 2), 0.3)
        sky = self.stars
        new = StarSky(*self.transients.T, np.array([t.mag for t in TRANSIENTS]))
        shape = PIXELS, PIXELS
        light = sum(
            StarSky(s.ra, s.dec, s.mag, SEEING).drawn(wcs, shape, ZERO_POINT) for s in (sky, new)
        )
        electrons = rng.poisson((light + SKY) * GAIN) + rng.normal(0, READ_NOISE, shape)
        header = wcs.to_header()
        header["FILTER"], header["EXPTIME"] = band, 30.0
        header["MJD-OBS"] = FIRST_NIGHT + number
        header["GAIN"], header["RDNOISE"], header["SATURATE"] = GAIN, READ_NOISE, SATURATION
        path = folder / f"{name}.fits"
        fits.writeto(path, (electrons / GAIN).astype(np.float32), header)
        return {
            "exposure_id": name,
            "science_uri": path.as_uri(),
            "band": band,
            "mjd_mid": FIRST_NIGHT + number + 15 / 86400,
            "exposure_time": 30.0,
            "field": self.name,
        }

    def write_template(self, folder: Path, band: str) -> None:
        """Write a survey's own template of the field: deep, sharp, and larger than an exposure."""
        wcs, margin = self.wcs(), 60
        wcs.wcs.crpix = wcs.wcs.crpix + margin + 0.37
        shape = PIXELS + 2 * margin, PIXELS + 2 * margin
        light = self.stars.drawn(wcs, shape, ZERO_POINT) + SKY
        rng = np.random.default_rng(len(self.name))
        noise = rng.normal(0, np.sqrt(light / (16 * GAIN)))
        header = wcs.to_header()
        header["FILTER"], header["EXPTIME"], header["NCOMBINE"] = band, 30.0, 16
        header["GAIN"], header["MAGZP"], header["SATURATE"] = 16 * GAIN, ZERO_POINT, SATURATION
        header["MJD-OBS"] = FIRST_NIGHT - 300
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}-{band}.fits"
        fits.writeto(path, (light + noise).astype(np.float32), header)
