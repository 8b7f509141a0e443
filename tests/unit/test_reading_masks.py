"""The masks of other pipelines, as their own headers describe them."""

import numpy as np
import pytest
from astropy.io import fits

from core.image import MaskBit
from core.masks import decode_mask, scheme_of
from core.reading import read_image
from tests.shared_data import shared_data


def decoded(values, header=None):
    return decode_mask(np.array([values]), scheme_of(header or fits.Header()))[0].tolist()


def test_without_a_word_nonzero_is_bad():
    assert decoded([0, 1, 2, -1, 300]) == [0, *[MaskBit.BAD] * 4]


def test_floats_and_nan():
    values = np.array([[0.0, 1.0, np.nan]])
    assert decode_mask(values)[0].tolist() == [0, MaskBit.BAD, MaskBit.BAD]


def test_bit_cards_with_comments():
    header = fits.Header()
    header["BIT00"] = (0, "AIRCRAFT/SATELLITE TRACK")
    header["BIT01"] = (1, "CONTAINS SEXTRACTOR DETECTION")
    header["BIT07"] = (7, "PIXEL SPIKE (POSSIBLE RAD HIT)")
    header["BIT08"] = (8, "SATURATED")
    header["BIT10"] = (10, "NAN (not a number)")
    header["BIT11"] = (11, "CONTAINS PSF-EXTRACTED SOURCE POSITION")
    assert decoded([1, 2, 128, 256, 1024, 2048, 2 + 256, 1 << 13], header) == [
        MaskBit.BAD,
        0,
        MaskBit.COSMIC_RAY,
        MaskBit.SATURATED,
        MaskBit.NO_DATA,
        0,
        MaskBit.SATURATED,
        MaskBit.BAD,
    ]


def test_lsst_planes():
    header = fits.Header({"MP_BAD": 0, "MP_SAT": 1, "MP_CR": 3, "MP_EDGE": 4})
    header["HIERARCH MP_DETECTED"] = 5
    header["HIERARCH MP_NO_DATA"] = 8
    assert decoded([1, 2, 8, 16, 32, 256], header) == [
        MaskBit.BAD,
        MaskBit.SATURATED,
        MaskBit.COSMIC_RAY,
        MaskBit.BAD,
        0,
        MaskBit.NO_DATA,
    ]


def test_panstarrs_names():
    header = fits.Header({"MSKNAM00": "DETECTOR", "MSKVAL00": 1, "MSKNAM01": "SAT", "MSKVAL01": 32})
    assert decoded([1, 32, 33], header) == [
        MaskBit.BAD,
        MaskBit.SATURATED,
        MaskBit.BAD | MaskBit.SATURATED,
    ]


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"PLVER": "V4.8.2a", "INSTRUME": "DECam"}, MaskBit.SATURATED),  # a code
        ({"PLVER": "V1.0", "INSTRUME": "90prime"}, MaskBit.SATURATED),
        ({"PLVER": "V3.2", "INSTRUME": "DECam"}, MaskBit.BAD | MaskBit.SATURATED),  # two bits
    ],
)
def test_community_pipeline_versions(cards, expected):
    assert decoded([3], fits.Header(cards)) == [expected]


@pytest.mark.data
def test_the_real_ztf_mask():
    stem = shared_data("ztf_quadrant") / "ztf_20200924431759_000655_zr_c13_o_q3_"
    image = read_image(f"{stem}sciimg.fits.gz", mask=f"{stem}mskimg.fits.gz", max_pixels=20_000_000)
    # Bits 1 and 11 (332,429 and 18,745 pixels) mark sources, not defects.
    assert 2_000 < np.count_nonzero(image.mask) < 5_000
    assert np.count_nonzero(image.mask & MaskBit.COSMIC_RAY) == 343
    assert np.count_nonzero(image.mask & MaskBit.SATURATED) >= 1794
    assert image.facts.zero_point == pytest.approx(26.285139)
    assert image.wcs.to_header(relax=True)["CTYPE1"] == "RA---TPV"


@pytest.mark.data
def test_a_real_community_pipeline_cutout():
    folder = shared_data("community_pipeline_cutouts") / (
        "testcase6/images/decam/CP/V4.8.2a/CP20181103"
    )
    name = "c4d_181104_072440_{}_g_ls9.S4.fits"
    image = read_image(
        folder / name.format("ooi"),
        mask=folder / name.format("ood"),
        weight=folder / name.format("oow"),
        max_pixels=20_000_000,
    )
    codes = fits.getdata(folder / name.format("ood"), 1)
    np.testing.assert_array_equal(
        (image.mask & MaskBit.SATURATED) != 0, (codes == 3) | (codes == 4)
    )
    assert image.facts.exposure_time == 140.0
    assert image.facts.band == "g"
    assert image.facts.gain == pytest.approx(4.03, abs=0.03)
    assert (image.variance > 0).all()


@pytest.mark.data
def test_the_real_mask_of_another_size():
    folder = shared_data("lco_mask_shape_mismatch")
    image = read_image(
        folder / "lsc1m005-fl15-20170614-0130-e91_cropped.fits.gz", max_pixels=20_000_000
    )
    assert image.shape == (400, 400)
    assert "4096 x 4096" in image.notes[0]


@pytest.mark.data
def test_saturation_of_the_real_frames_without_the_card():
    crowded = shared_data("saao_crowded_series") / "AKB13475I0001.fits.gz"
    image = read_image(crowded, need_wcs=False, max_pixels=20_000_000)
    assert image.facts.saturation == pytest.approx(65300, abs=70)
    aligned = shared_data("eso085_null_pair") / "aligned_eso085-030-004.fit"
    image = read_image(aligned, need_wcs=False, max_pixels=20_000_000)
    assert image.facts.saturation == 65535
