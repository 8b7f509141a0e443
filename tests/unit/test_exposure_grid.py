"""The grid that the headers tell is the grid of the image that is read later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from core.errors import ExposureError, InputUnavailable, InvalidEvent, UnusableInput
from core.exposure import Exposure
from core.exposure_grid import read_grid
from core.pointing import tangential_grid
from core.reading import read_exposure

SHAPE = (40, 60)
WCS = tangential_grid((150.0, 2.0), SHAPE, 1.1, position_angle=25.0)
PIXELS = np.random.default_rng(3).normal(100, 5, SHAPE).astype(np.float32)


def plain(path: Path) -> None:
    fits.PrimaryHDU(PIXELS, WCS.to_header()).writeto(path)


def extensions(path: Path) -> None:
    image = fits.ImageHDU(PIXELS, WCS.to_header(), name="SCI")
    mask = fits.ImageHDU(np.zeros(SHAPE, np.int16), name="MASK")
    fits.HDUList([fits.PrimaryHDU(), mask, image]).writeto(path)


def compressed(path: Path) -> None:
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(PIXELS, WCS.to_header())]).writeto(path)


@pytest.mark.parametrize("write", [plain, extensions, compressed])
@pytest.mark.parametrize("overrides", [{}, {"CRVAL1": 200.0}])
def test_it_is_that_of_the_image(
    write: Callable[[Path], None], overrides: dict[str, float], tmp_path: Path
) -> None:
    path = tmp_path / "exposure.fits"
    write(path)
    exposure = Exposure("E1", str(path), header_overrides=overrides)
    wcs, shape = read_grid(exposure)
    image = read_exposure(exposure, max_pixels=10_000)
    assert shape == image.shape == SHAPE
    assert image.wcs is not None
    corners = np.array([0, 59.0, 0]), np.array([0, 0, 39.0])
    np.testing.assert_allclose(
        wcs.all_pix2world(*corners, 0), image.wcs.all_pix2world(*corners, 0), atol=1e-12
    )
    assert wcs.wcs.crval[0] == overrides.get("CRVAL1", 150.0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"science": "missing.fits"}, InputUnavailable),
        ({"hdu": 3}, UnusableInput),
        ({"header_overrides": {"NAXIS1": 10}}, InvalidEvent),
        ({"header_overrides": {"CTYPE1": "FREQ"}}, UnusableInput),
    ],
)
def test_faults_are_those_of_reading(
    changes: dict[str, object], error: type[ExposureError], tmp_path: Path
) -> None:
    path = tmp_path / "exposure.fits"
    plain(path)
    exposure = replace(Exposure("E1", str(path)), **changes)  # type: ignore[arg-type]
    with pytest.raises(error):
        read_grid(exposure)
