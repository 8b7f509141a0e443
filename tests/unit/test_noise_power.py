"""The noise of interpolated pixels: measured against interpolations whose effect is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from core.noise_power import measure_noise_power
from core.resample import shift_image
from tests.unit.made_frames import add_gaussians, made_image

SHAPE = (700, 700)
GOOD = np.zeros(SHAPE, dtype=bool)


def white(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 5, SHAPE)


def measured(data: np.ndarray, bad: np.ndarray = GOOD, least: float = 1.0) -> float:
    return measure_noise_power(data.astype(np.float32), bad, least)


def test_independent_pixels_have_none() -> None:
    powers = [measured(white(seed), least=0.0) for seed in range(5)]
    assert np.mean(powers) == pytest.approx(1.0, abs=0.02)
    assert np.std(powers) < 0.05


@pytest.mark.parametrize("size", [2, 3])
def test_running_means(size: int) -> None:
    """Of ``size``² pixels: single ones have 1/size² of the variance, sums all of it.

    Blocks of four lose a part of it, since the tie reaches over their edges.
    """
    power = np.mean([measured(ndimage.uniform_filter(white(s), size)) for s in range(4)])
    overlap = np.arange(1 - size, size)
    kept = (((size - np.abs(overlap)) / size) * (1 - np.abs(overlap) / 4)).sum() / size
    assert power == pytest.approx(size**2 * kept**2, rel=0.05)
    assert power > 0.5 * size**2


def test_lanczos_by_half_a_pixel() -> None:
    images = [made_image(white(seed)) for seed in range(4)]
    power = np.mean([measured(shift_image(i, 0.5, 0.5).data) for i in images])
    one_axis = np.array([0.02446, -0.13587, 0.61141]) * np.array([1, 1, 1])
    alone = 2 * float((one_axis**2).sum())
    assert power == pytest.approx(1 / alone**2, rel=0.06)


def test_stars_are_not_noise() -> None:
    rng = np.random.default_rng(5)
    frame = white(6)
    x, y = rng.uniform(0, SHAPE[1], 400), rng.uniform(0, SHAPE[0], 400)
    add_gaussians(frame, x, y, rng.uniform(500, 50_000, 400), 3.0)
    assert measured(frame) == pytest.approx(1.0, abs=0.1)


def test_bad_pixels_are_left_out() -> None:
    frame, bad = white(7), np.random.default_rng(8).random(SHAPE) < 0.01
    frame[bad] = 1e5
    assert measured(frame, bad) == pytest.approx(1.0, abs=0.08)


def test_what_is_known_holds_where_nothing_can_be_measured() -> None:
    tiny = np.ones((8, 8), dtype=np.float32)
    assert measure_noise_power(tiny, np.zeros((8, 8), dtype=bool), 1.24) == 1.24
    assert measured(np.full(SHAPE, 3.0), least=1.1) == 1.1
    assert measured(white(9), least=1.3) == 1.3
