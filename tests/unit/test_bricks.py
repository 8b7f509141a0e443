"""The Legacy Surveys' bricks, against names that are known from their documents."""

import numpy as np
import pytest

from core.templates.cells import bricks
from core.templates.cells.bricks import brick_at


@pytest.mark.parametrize(
    ("name", "ra", "dec"),
    [
        ("0001m002", 0.125, -0.25),  # the first brick of DR10's coadd folder 000
        ("1126p222", 112.67, 22.25),  # the example of the files page
        ("1351p320", 135.15, 32.0),  # an example of desitarget
        ("0001p000", 0.125, 0.0),
        ("3598p000", 359.875, 0.0),
        ("1800p900", 17.0, 90.0),  # the poles are one brick each
        ("1800m900", 300.0, -90.0),
    ],
)
def test_known_names(name, ra, dec):
    assert brick_at(ra, dec).name == name


def test_there_are_as_many_as_the_survey_says():
    """BRICKID runs from 1 to 662174 (column BRICKID of the sweep files)."""
    assert sum(bricks._columns(row) for row in range(bricks._ROWS + 1)) == 662174


def test_no_brick_is_wider_than_its_size_and_each_place_is_in_its_own():
    rng = np.random.default_rng(1)
    for ra, dec in zip(rng.uniform(0, 360, 2000), rng.uniform(-89.8, 89.8, 2000), strict=True):
        brick = brick_at(ra, dec)
        assert abs(brick.dec - dec) <= 0.125 + 1e-9
        apart = (ra - brick.ra + 180) % 360 - 180
        assert abs(apart) * np.cos(np.radians(abs(brick.dec) - 0.125)) <= 0.125 + 1e-6
        assert brick_at(brick.ra, brick.dec) == brick


def test_right_ascension_wraps():
    assert brick_at(360.0, 0.0) == brick_at(0.0, 0.0)
    assert brick_at(-0.1, 0.0).name == "3598p000"
    assert brick_at(719.99, 0.0).name == "3598p000"
