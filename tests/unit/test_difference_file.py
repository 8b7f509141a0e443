"""``difference.fits``: planes, mask bits and a WCS that loses nothing, distortions included."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip

from core.image import MaskBit
from core.psf import PSFModel
from core.subtraction.difference import Difference
from service.difference_file import write_difference
from tests.shared_data import shared_data
from tests.unit.made_result import SHAPE, made_result, tan_wcs


def made_difference() -> Difference:
    rng = np.random.default_rng(1)
    data, noise, template = rng.uniform(1, 9, (3, *SHAPE)).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint16)
    mask[3, 4] = MaskBit.TEMPLATE_NO_DATA | MaskBit.BAD
    quality = made_result().quality
    assert quality is not None
    psf = PSFModel(np.ones((1, 3, 3), np.float32) / 9, 0, SHAPE, 3.0)
    return Difference(data, noise, data / noise, template, mask, psf, None, quality)


def sip_wcs() -> WCS:
    wcs = tan_wcs()
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    a, b = np.zeros((3, 3)), np.zeros((3, 3))
    a[2, 0], b[1, 1] = 2e-5, -1e-5
    wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    return wcs


def tpv_wcs() -> WCS:
    return WCS(fits.getheader(next(shared_data("ztf_quadrant").glob("*sciimg.fits.gz"))))


@pytest.mark.parametrize("make", [tan_wcs, sip_wcs, tpv_wcs])
def test_wcs_survives(make: Callable[[], WCS], tmp_path: Path) -> None:
    wcs = make()
    path = tmp_path / "difference.fits"
    write_difference(path, made_result(wcs, candidates=()), made_difference())
    with fits.open(path) as hdus:
        for name in ("DIFF", "MASK"):
            read = WCS(hdus[name].header)
            for x, y in ((0, 0), (499, 0), (250, 200), (499, 399)):
                separation = read.pixel_to_world(x, y).separation(wcs.pixel_to_world(x, y))
                assert separation.arcsec < 1e-3


def test_pixels_and_mask_bits_survive(tmp_path: Path) -> None:
    path, difference = tmp_path / "difference.fits", made_difference()
    write_difference(path, made_result(), difference)
    with fits.open(path) as hdus:
        np.testing.assert_array_equal(hdus["DIFF"].data, difference.data)
        np.testing.assert_array_equal(hdus["CONVOLVED"].data, difference.convolved)
        mask, header = hdus["MASK"].data, hdus["MASK"].header
        meanings = [header[f"BIT{n:02d}"] for n in range(16) if mask[3, 4] >> n & 1]
        assert meanings == ["BAD", "TEMPLATE_NO_DATA"]
        assert np.count_nonzero(mask) == 1
        assert hdus[0].header["EXPID"] == "night7/ccd 3"
        assert hdus[0].header["TEMPLATE"] == "directory deep-505-r"


def test_a_header_takes_any_name_and_any_number(tmp_path: Path) -> None:
    result = made_result()
    result = replace(
        result,
        exposure=replace(result.exposure, exposure_id="nuit d’été\n" + "x" * 100),
        facts=replace(result.facts, zero_point=float("nan"), band=None),
    )
    write_difference(tmp_path / "d.fits", result, made_difference())
    header = fits.getheader(tmp_path / "d.fits")
    assert header["EXPID"] == "nuit d??t??" + "x" * 100
    assert "ZPT" not in header
