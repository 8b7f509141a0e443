"""The local mean of a difference."""

from __future__ import annotations

import numpy as np
import pytest

from core.subtraction.local_sky import subtract_local_sky
from tests.unit.made_frames import add_gaussians, grid_of_places

SHAPE = (300, 340)


def planes(seed: int, extra: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    noise = np.full(SHAPE, 7.0, dtype=np.float32)
    data = (rng.normal(0, 7, SHAPE) + extra).astype(np.float32)
    return data, noise, data / noise


def test_a_patch_of_sky_is_taken_out_and_both_planes_agree() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    patch = 3.5 * np.exp(-0.5 * ((x - 150) ** 2 + (y - 160) ** 2) / 60**2)
    data, noise, scaled = planes(1, patch)
    before = scaled[130:190, 120:180].mean()
    subtract_local_sky(data, noise, scaled, np.zeros(SHAPE, dtype=np.uint16))
    assert before > 0.4
    # the mean of 3600 pixels is known to 0.017, that of the blocks to 0.03
    assert abs(scaled[130:190, 120:180].mean()) < 0.12
    assert scaled == pytest.approx(data / noise, abs=1e-4)


def test_a_bright_source_keeps_its_flux() -> None:
    light = np.zeros(SHAPE)
    add_gaussians(light, 161.3, 148.8, 5000.0, 4.0)
    data, noise, scaled = planes(2, light)
    before = data[136:162, 149:175].sum()
    subtract_local_sky(data, noise, scaled, np.zeros(SHAPE, dtype=np.uint16))
    after = data[136:162, 149:175].sum()
    # 676 pixels and a level known to 0.02 sigma of 7: 95
    assert after == pytest.approx(before, abs=250)


def test_the_halo_of_a_star_is_taken_out() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    radius = np.hypot(x - 150, y - 160)
    data, noise, scaled = planes(5, 7 * np.exp(-0.5 * (radius / 25) ** 2))
    mask = np.where(radius < 12, 1, 0).astype(np.uint16)
    ring = (radius > 20) & (radius < 32)
    before = scaled[ring].mean()
    subtract_local_sky(data, noise, scaled, mask)
    assert before > 0.5
    assert abs(scaled[ring].mean()) < 0.2 * before


def test_faint_sources_keep_their_fluxes() -> None:
    rng = np.random.default_rng(6)
    x, y = grid_of_places(SHAPE, 50, rng)
    light = np.zeros(SHAPE)
    add_gaussians(light, x, y, 700.0, 4.0)  # S/N 14
    weight = np.zeros(SHAPE)
    add_gaussians(weight, x, y, 1.0, 4.0)
    change = []
    for seed in range(4):
        data, noise, scaled = planes(seed, light)
        before = (weight * data).sum()
        subtract_local_sky(data, noise, scaled, np.zeros(SHAPE, dtype=np.uint16))
        change.append((weight * data).sum() / before - 1)
    assert abs(np.mean(change)) < 0.01


def test_masked_pixels_have_no_say_and_an_empty_block_takes_nothing() -> None:
    data, noise, scaled = planes(3, 0.0)
    mask = np.zeros(SHAPE, dtype=np.uint16)
    data[100:200, 100:200] = 500
    mask[100:200, 100:200] = 1
    scaled = data / noise
    subtract_local_sky(data, noise, scaled, mask)
    assert abs(scaled[mask == 0].mean()) < 0.03
    assert data[150, 150] == pytest.approx(500, abs=1)
