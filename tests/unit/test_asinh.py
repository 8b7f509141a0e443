"""The asinh scale of Pan-STARRS stacks.

The numbers of the scale used here are those that the documentation of the Legacy Surveys' reader of
Pan-STARRS stacks quotes from a real header (BSOFTEN 221.886, BOFFSET 7.172).
"""

import numpy as np
import pytest
from astropy.io import fits

from core.asinh import AsinhScale

SCALE = AsinhScale(offset=7.172080516815, soften=221.8863810555)


def test_round_trip_over_nine_decades():
    flux = np.concatenate([-np.geomspace(1e-3, 1e6, 400), [0.0], np.geomspace(1e-3, 1e6, 400)])
    # What float32 can hold beside the offset, no worse.
    assert SCALE.linear(SCALE.stored(flux)) == pytest.approx(flux, rel=3e-7, abs=3e-6)


def test_zero_is_the_offset_and_small_values_are_linear():
    assert SCALE.linear(0.0) == pytest.approx(SCALE.offset)
    small = 1e-3
    expected = SCALE.offset + 2 * SCALE.soften * small / 1.0857362047581296
    assert SCALE.linear(small) == pytest.approx(expected, rel=1e-6)


def test_bright_values_are_magnitudes():
    """Far above the softening, 2.5 stored units are a factor of ten in flux."""
    one, ten = SCALE.linear([20.0, 22.5]) - SCALE.offset
    assert ten / one == pytest.approx(10, rel=1e-6)


def test_nan_stays_and_overflow_is_infinite():
    linear = SCALE.linear([np.nan, 1000.0, -1000.0])
    assert np.isnan(linear[0])
    assert linear[1] == np.inf
    assert linear[2] == -np.inf


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"BSOFTEN": 221.9},
        {"BOFFSET": 7.2},
        {"BOFFSET": 7.2, "BSOFTEN": 0.0},
        {"BOFFSET": 7.2, "BSOFTEN": "NaN"},
        {"BOFFSET": True, "BSOFTEN": 221.9},
    ],
)
def test_linear_pixels_are_told_by_their_header(cards):
    assert AsinhScale.from_header(fits.Header(cards)) is None


def test_scale_is_read_from_the_header():
    header = fits.Header({"BOFFSET": 7, "BSOFTEN": 221.5})
    assert AsinhScale.from_header(header) == AsinhScale(7.0, 221.5)


def test_a_scale_must_be_one():
    with pytest.raises(ValueError, match="not an asinh scale"):
        AsinhScale(0.0, -1.0)
