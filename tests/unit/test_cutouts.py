"""Stamps around a candidate, wherever it lies."""

import numpy as np
import pytest

from core.cutouts import cut_out
from core.image import Image, MaskBit
from tests.unit.made_frames import made_difference

SHAPE = (90, 120)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
NUMBERED = (1000 * Y + X).astype(np.float32)  # every pixel says where it is


def planes(science_mask=0, template_mask=0, difference_mask=0):
    empty = np.zeros(SHAPE, np.uint16)
    return (
        Image(NUMBERED, empty | np.uint16(science_mask)),
        Image(NUMBERED + 0.25, empty | np.uint16(template_mask)),
        made_difference(NUMBERED + 0.5, 1.0, mask=empty | np.uint16(difference_mask)),
    )


@pytest.mark.parametrize(
    ("x", "y"), [(60.4, 44.6), (0.0, 0.0), (119.4, 89.3), (5.7, 80.1), (-3.0, 95.0)]
)
@pytest.mark.parametrize("size", [63, 21])
def test_stamps_are_padded_beyond_the_edge_and_true_within(x, y, size):
    got = cut_out(*planes(), x, y, size)
    assert (got.x0, got.y0) == (round(x) - size // 2, round(y) - size // 2)
    rows, cols = np.mgrid[got.y0 : got.y0 + size, got.x0 : got.x0 + size]
    inside = (rows >= 0) & (cols >= 0) & (rows < SHAPE[0]) & (cols < SHAPE[1])
    for stamp, offset in ((got.science, 0.0), (got.template, 0.25), (got.difference, 0.5)):
        assert stamp.shape == (size, size)
        assert stamp.dtype == np.float32
        expected = np.where(inside, 1000 * rows + cols + offset, np.nan).astype(np.float32)
        np.testing.assert_array_equal(stamp, expected)


def test_a_place_far_outside_gives_empty_stamps():
    got = cut_out(*planes(), 500.0, -400.0, 63)
    assert all(np.isnan(stamp).all() for stamp in (got.science, got.template, got.difference))


def test_what_has_no_data_is_missing_and_what_is_only_bad_is_shown():
    science, template, difference = planes()
    science.mask[40, 50] = MaskBit.NO_DATA | MaskBit.BAD
    science.mask[40, 51] = MaskBit.SATURATED
    template.mask[41, 50] = MaskBit.NO_DATA
    difference.mask[42, 50] = MaskBit.TEMPLATE_NO_DATA
    difference.mask[42, 51] = MaskBit.NO_DATA
    difference.mask[42, 52] = MaskBit.TEMPLATE_BAD | MaskBit.EDGE
    got = cut_out(science, template, difference, 50, 41, 5)

    def missing(stamp):
        return [(int(y) + got.y0, int(x) + got.x0) for y, x in np.argwhere(np.isnan(stamp))]

    assert missing(got.science) == [(40, 50)]
    assert missing(got.template) == [(41, 50)]
    assert missing(got.difference) == [(42, 50), (42, 51)]
    assert not np.isnan(NUMBERED).any()  # cutting leaves the images as they were
    assert np.isfinite(science.data).all()
