"""Pointings: what is refused, and the grid that they describe."""

from __future__ import annotations

import contextlib
import io
import json
from datetime import UTC, datetime
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

import schemas
from core.errors import InvalidEvent, UnusableInput
from service.event_wire import UnreadableEvent
from service.pointings import Pointing, decode

PLAIN: dict[str, Any] = {
    "pointing_id": "F12-3", "band": "r", "width": 200, "height": 100,
    "ra": 359.99, "dec": 20.0, "pixel_scale": 1.5,
}  # fmt: skip


def message(**changes: Any) -> bytes:
    fields = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    return json.dumps(fields).encode()


def grid(**changes: Any) -> tuple[Any, tuple[int, int]]:
    request = decode(message(**changes)).request(0.3)
    assert request.wcs is not None
    return request.wcs, request.shape


def sky(wcs: Any, x: float, y: float) -> SkyCoord:
    return SkyCoord(*wcs.all_pix2world(x, y, 0), unit="deg")


def test_avro_and_json_give_the_same_pointing() -> None:
    out = io.BytesIO()
    fastavro.writer(out, schemas.load("pointing"), [{**PLAIN, "expires_at": None}])
    assert decode(out.getvalue()) == decode(message())
    framed = io.BytesIO()
    fastavro.schemaless_writer(framed, schemas.load("pointing"), PLAIN)
    assert decode(b"\x00\x00\x00\x00\x07" + framed.getvalue()) == decode(message())


def test_the_centre_of_the_detector_is_where_the_pointing_says() -> None:
    wcs, shape = grid()
    assert shape == (100, 200)
    assert sky(wcs, 99.5, 49.5).separation(SkyCoord(359.99, 20, unit="deg")).arcsec < 1e-6


@pytest.mark.parametrize("angle", [0.0, 30.0, -120.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_angle_scale_and_handedness(angle: float, mirrored: bool) -> None:
    wcs, _ = grid(position_angle=angle, mirrored=mirrored)
    middle = sky(wcs, 99.5, 49.5)
    up, right = sky(wcs, 99.5, 59.5), sky(wcs, 109.5, 49.5)
    assert middle.separation(up).arcsec == pytest.approx(15.0, rel=1e-6)
    assert middle.position_angle(up).wrap_at("180d").deg == pytest.approx(angle, abs=1e-3)
    turn = (middle.position_angle(right) - middle.position_angle(up)).wrap_at("180d").deg
    # seen on the sky, east is to the left of north: x runs towards the west
    assert turn == pytest.approx(90 if mirrored else -90, abs=1e-2)


def test_a_detector_at_the_pole_lies_as_one_beside_it() -> None:
    """The default of FITS turns the grid by half a circle in the last step to the pole."""
    at, _ = grid(dec=90.0, ra=30.0, position_angle=20.0)
    beside, _ = grid(dec=90.0 - 1e-9, ra=30.0, position_angle=20.0)
    assert sky(at, 150, 20).separation(sky(beside, 150, 20)).arcsec < 1e-3


def test_a_wcs_may_stand_for_the_place() -> None:
    wcs, shape = grid()
    cards = {k: v for k, v in wcs.to_header().items() if isinstance(v, str | float | int)}
    cards = {key: cards[key] for key in cards if len(key) <= 8}
    other, _ = grid(ra=None, dec=None, pixel_scale=None, wcs=cards)
    corner = sky(wcs, 0, shape[0] - 1)
    assert corner.separation(sky(other, 0, shape[0] - 1)).arcsec < 1e-6


@pytest.mark.parametrize("cards", [{"CTYPE1": "FREQ"}, {"END": 1.0}])
def test_cards_that_are_no_wcs_are_refused_in_one_line(cards: dict[str, Any]) -> None:
    pointing = decode(message(ra=None, dec=None, pixel_scale=None, wcs=cards))
    with pytest.raises(UnusableInput, match=r"the pointing's wcs: "):
        pointing.request(0.3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ra": None}, "ra, dec and pixel_scale are needed"),
        ({"wcs": {"CRVAL1": 1.0}}, "give one"),
        ({"ra": 400.0}, "ra should be less than or equal to 360"),
        ({"width": 3}, "width should be greater than or equal to 16"),
        ({"height": 10**6}, "height should be less than or equal to 20000"),
        ({"pixel_scale": 0.0}, "pixel_scale should be greater than"),
        ({"band": ""}, "band"),
        ({"pointing_id": "a\nb"}, "pointing_id"),
        ({"dec": "20"}, "dec should be a valid number"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnreadableEvent) as caught:
        decode(message(**changes))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pointing_expires() -> None:
    pointing = decode(message(expires_at="2026-11-22T03:00:00Z"))
    assert pointing.expired(datetime(2026, 11, 22, 3, 0, tzinfo=UTC))
    assert not pointing.expired(datetime(2026, 11, 22, 2, 59, tzinfo=UTC))
    assert not decode(message()).expired(datetime(2099, 1, 1, tzinfo=UTC))


@given(st.binary(max_size=200) | st.dictionaries(st.text(max_size=12), st.integers()).map(
    lambda fields: json.dumps({**PLAIN, **fields}).encode()
))  # fmt: skip
def test_only_one_error_leaves(payload: bytes) -> None:
    with contextlib.suppress(InvalidEvent):
        assert isinstance(decode(payload), Pointing)


def test_angles_are_those_of_the_whole_circle() -> None:
    first, _ = grid(position_angle=-90.0)
    second, _ = grid(position_angle=270.0)
    np.testing.assert_allclose(first.wcs.cd, second.wcs.cd, atol=1e-15)
