"""What the tests of HiPS templates share: an exposure, a sky of stars, and their fluxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.celestial import from_icrs
from core.image import Image
from core.tangent import TangentGrid
from core.templates.hips.provider import HipsTemplates
from core.templates.hips.survey import HipsSurvey
from core.templates.template import TemplateRequest
from tests.archive.hips import StarField

ORDER, WIDTH = 11, 128  # pixels of 0.805 arcsec
SCALE = 1.0
SHAPE = (220, 240)
LEVEL = 100.0


def exposure(
    ra: float = 150.0,
    dec: float = 2.0,
    *,
    angle: float = 0.0,
    mirrored: bool = False,
    scale: float = SCALE,
    shape: tuple[int, int] = SHAPE,
) -> TemplateRequest:
    centre = ((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    wcs = TangentGrid(ra, dec, scale / 3600, angle, shape, centre).wcs
    if mirrored:
        wcs.wcs.cd = wcs.wcs.cd @ np.diag([-1, 1])
        wcs.wcs.set()
    return TemplateRequest(wcs, shape, "r")


def sky_at(
    ra: float = 150.0,
    dec: float = 2.0,
    *,
    radius: float = 0.04,
    number: int = 40,
    **facts: object,
) -> StarField:
    # The survey's pixels are neither those of the exposure nor those of the HiPS.
    values = {"sigma": 1.3, "pixel": 0.6, "level": LEVEL} | facts
    return StarField.random(ra, dec, radius, number, **values)


def measured(image: Image, sky: StarField, level: float) -> np.ndarray:
    """Return found over true flux of the stars that stand alone, in 7 sigma apertures."""
    scale = 3600 * np.sqrt(abs(np.linalg.det(image.wcs.pixel_scale_matrix)))
    radius = 7 * sky.sigma / scale
    x, y = from_icrs(image.wcs, sky.ra, sky.dec)
    ny, nx = image.shape
    ratios = []
    for k in range(len(x)):
        apart = np.hypot(x - x[k], y - y[k])
        apart[k] = np.inf
        if not (radius < x[k] < nx - radius and radius < y[k] < ny - radius):
            continue
        if apart.min() < 2 * radius:
            continue
        rows, columns = np.ogrid[:ny, :nx]
        inside = np.hypot(columns - x[k], rows - y[k]) < radius
        if image.mask[inside].any():
            continue
        ratios.append((image.data[inside] - level).sum(dtype=float) / sky.flux[k])
    assert len(ratios) >= 3
    return np.array(ratios)


def local(folder: Path, **facts: object) -> HipsTemplates:
    return HipsTemplates([HipsSurvey(tree=str(folder), band="r", **facts)])  # type: ignore[arg-type]


PLACES = [
    (150.0, 2.0, 0.0, False, "equatorial"),
    (150.0, 2.0, 33.0, True, "galactic"),
    (0.0, 20.0, 30.0, False, "equatorial"),  # across RA 0
    (30.0, 89.99, 0.0, False, "galactic"),  # the pole lies on the exposure
    (200.0, -89.99, 10.0, True, "galactic"),
]
