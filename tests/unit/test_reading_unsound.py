"""Whatever a file holds, only errors that name the file and the fault get out of the reader."""

import gzip
from io import BytesIO

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ExposureError
from core.reading import read_image

_CARDS = """
SIMPLE BITPIX NAXIS NAXIS1 NAXIS2 NAXIS3 PCOUNT GCOUNT GROUPS BSCALE BZERO BLANK EXTEND XTENSION
ZIMAGE ZNAXIS1 EXTNAME EXTVER CTYPE1 CTYPE2 CRVAL1 CRVAL2 CRPIX1 CD1_1 CDELT1 CUNIT1 PV1_1 A_ORDER
A_2_0 LONPOLE RADESYS EQUINOX WCSAXES PC1_1 CPDIS1 GAIN SATURATE EXPTIME MJD-OBS DATE-OBS MAGZP
FILTER BSOFTEN BOFFSET END CONTINUE
"""
KEYWORDS = [*_CARDS.split(), ""]
VALUES = st.one_of(
    st.integers(-(10**25), 10**25).map(str),
    st.integers(-70, 70).map(str),
    st.floats().map(repr),
    st.sampled_from(["T", "F", "'text'", "'RA---TPV'", "'DEC--SIP'", "''", "", "(1,2)", "1E400"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
)


def sound_file():
    data = np.random.default_rng(0).normal(100, 5, (12, 10)).astype(np.float32)
    header = fits.Header(
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 5.0, "CRPIX1": 5.0}
        | {"CRPIX2": 5.0, "CDELT1": -1e-4, "CDELT2": 1e-4, "GAIN": 1.5, "EXPTIME": 30.0}
    )
    hdus = [fits.PrimaryHDU(data, header), fits.ImageHDU(np.zeros((12, 10), np.int16), name="DQ")]
    stream = BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


SOUND = sound_file()


def try_to_read(path):
    """Return the image or the error of our family; anything else escapes and fails the test."""
    message, image = None, None
    try:
        image = read_image(path, max_pixels=10_000)
    except ExposureError as error:
        message = str(error)
    if image is None:
        assert str(path) in message
        assert "\n" not in message
        return None
    assert np.isfinite(image.data).all()
    assert image.mask.shape == image.data.shape
    return image


relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(
    cards=st.lists(st.tuples(st.sampled_from(KEYWORDS), VALUES), min_size=1, max_size=4),
    where=st.integers(0, 25),
)
def test_cards_that_make_no_sense(tmp_path, cards, where):
    raw = bytearray(SOUND)
    for keyword, value in cards:
        card = f"{keyword:<8}= {value:>20}"[:80].ljust(80).encode("ascii", "replace")
        # Replace the card of that name where there is one, else any card of the first header.
        at = next(
            (i for i in range(0, 2880, 80) if raw[i : i + 8].strip() == keyword.encode()),
            where * 80,
        )
        raw[at : at + 80] = card
    path = tmp_path / "a.fits"
    path.write_bytes(raw)
    try_to_read(path)


@relaxed
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=20),
    end=st.integers(0, len(SOUND)),
    packed=st.booleans(),
)
def test_damaged_bytes(tmp_path, flips, end, packed):
    raw = bytearray(SOUND)
    for at, value in flips:
        raw[at] = value
    path = tmp_path / "a.fits"
    damaged = bytes(raw[:end])
    path.write_bytes(gzip.compress(damaged) if packed else damaged)
    try_to_read(path)


@relaxed
@given(st.binary(max_size=4000))
def test_any_bytes_inside_gzip(tmp_path, noise):
    whole = gzip.compress(SOUND)
    path = tmp_path / "a.fits.gz"
    at = len(noise) % len(whole)
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    try_to_read(path)


def test_the_sound_file_is_read(tmp_path):
    path = tmp_path / "a.fits"
    path.write_bytes(SOUND)
    image = try_to_read(path)
    assert image is not None
    assert image.facts.gain == pytest.approx(1.5)
