"""Boxes are those of plain slices."""

import numpy as np
import pytest

from core.subtraction.sfft.stamps import Stamps
from core.subtraction.zogy.cut_boxes import cut_boxes


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_boxes_are_slices(dtype):
    plane = (np.random.default_rng(1).normal(0, 1, (40, 60)) * 2).astype(dtype)
    places = Stamps(np.array([3, 56, 30]), np.array([3, 36, 20]), 9)
    boxes = cut_boxes(plane, places, 3)
    assert boxes.dtype == plane.dtype
    for box, x, y in zip(boxes, places.x, places.y, strict=True):
        np.testing.assert_array_equal(box, plane[y - 3 : y + 4, x - 3 : x + 4])
    assert cut_boxes(plane, places.select(np.zeros(3, dtype=bool)), 3).shape == (0, 7, 7)


@pytest.mark.parametrize(("x", "y"), [(2, 20), (57, 20), (30, 2), (30, 37)])
def test_a_box_beyond_the_plane_is_an_error(x, y):
    with pytest.raises(ValueError, match="reaches out"):
        cut_boxes(np.zeros((40, 60)), Stamps(np.array([x]), np.array([y]), 3), 3)
