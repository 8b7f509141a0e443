"""Identifiers: stable, distinct, within their ranges."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.identifiers import candidate_ids, object_ids, processing_id, reference_id

CANDID = 897_793_325_949_617_592
PID = 6_599_063_880_771_142


def test_candid_is_frozen() -> None:
    """A replay in ten years must give the same id."""
    assert candidate_ids("exposure-1", [(10.0, 20.0, 1)]) == [CANDID]
    assert processing_id("exposure-1") == PID


@given(
    x=st.integers(-5, 30000), y=st.integers(-5, 30000), half=st.booleans(),
    jitter=st.floats(-1e-3, 1e-3),
)  # fmt: skip
def test_candid_survives_jitter_where_fits_pile_up(
    x: int, y: int, half: bool, jitter: float
) -> None:
    """At pixel centres and corners the last digits of a fit decide nothing."""
    x0, y0 = x + 0.5 * half, y + 0.5 * half
    assert candidate_ids("e", [(x0, y0, 1)]) == candidate_ids("e", [(x0 + jitter, y0 - jitter, 1)])


def test_candid_rarely_changes_under_jitter_anywhere() -> None:
    places = np.random.default_rng(7).uniform(0, 4000, (20_000, 2))
    before = candidate_ids("e", [(x, y, 1) for x, y in places])
    after = candidate_ids("e", [(x + 1e-6, y - 1e-6, 1) for x, y in places])
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 2


def test_candids_of_one_exposure_differ_and_are_positive_longs() -> None:
    places = [(x, y, sign) for x in range(60) for y in range(60) for sign in (1, -1)]
    ids = candidate_ids("e", places)
    assert len(set(ids)) == len(places)
    assert all(0 < i < 2**63 for i in ids)


def test_candidates_in_one_cell_still_differ_whatever_their_order() -> None:
    places = [(10.1, 20.1, 1), (10.3, 20.2, 1), (10.2, 20.3, 1)]
    ids = candidate_ids("e", places)
    assert len(set(ids)) == 3
    assert candidate_ids("e", places[::-1]) == ids[::-1]


def test_candid_depends_on_exposure_place_and_sign() -> None:
    ids = [
        candidate_ids(exposure, [place])[0]
        for exposure in ("a", "b")
        for place in ((1.0, 2.0, 1), (2.0, 1.0, 1), (1.0, 2.0, -1))
    ]
    assert len(set(ids)) == 6


def test_a_neighbour_does_not_change_an_id() -> None:
    alone = candidate_ids("e", [(100.0, 100.0, 1)])[0]
    assert candidate_ids("e", [(3.0, 5.0, 1), (100.0, 100.0, 1)])[1] == alone


def test_image_ids_fit_into_a_float64() -> None:
    for i in range(200):
        for number in (processing_id(f"e{i}"), reference_id("directory", f"t{i}")):
            assert 0 < number < 2**53
            assert int(float(number)) == number


def test_object_id_has_the_form_of_a_ztf_name() -> None:
    (name,) = object_ids("SD", 2026, [150.0], [2.0])
    assert re.fullmatch(r"SD26[a-z]{8}", name)
    assert object_ids("SD", 2026, [], []) == []


def test_object_id_is_shared_by_positions_of_one_source() -> None:
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 2000), np.degrees(np.arcsin(rng.uniform(-1, 1, 2000)))
    offset = 0.05 / 3600
    one = object_ids("SD", 2026, ra, dec)
    other = object_ids("SD", 2026, ra, dec + offset)
    same = np.mean([a == b for a, b in zip(one, other, strict=True)])
    assert same > 0.93  # an edge of a 1.6 arcsec cell lies within 0.05 arcsec of few of them
    far = object_ids("SD", 2026, ra, dec * 0.999)
    moved = np.abs(dec) * 0.001 * 3600 > 5.0
    assert not any(a == b for a, b, m in zip(one, far, moved, strict=True) if m)


@pytest.mark.parametrize(("ra", "dec"), [(0.0, 90.0), (359.999999, -90.0), (0.0, 0.0)])
def test_object_id_at_the_corners_of_the_sky(ra: float, dec: float) -> None:
    assert re.fullmatch(r"SD99[a-z]{8}", object_ids("SD", 1999, [ra], [dec])[0])


def test_object_id_knows_the_circle() -> None:
    assert object_ids("SD", 2026, [0.0], [10.0]) == object_ids("SD", 2026, [360.0], [10.0])
