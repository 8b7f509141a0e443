"""Bright stars found without a full search, against injected ones."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from core.image import MaskBit
from core.subtraction.zogy.bright_stars import bright_stars

SIDE = 1400
SIGMA = 1.5  # pixels
NOISE = 10.0


def add(frame, x, y, flux, sigma):
    half = int(np.ceil(6 * sigma))
    for xi, yi, fi in zip(x, y, flux, strict=True):
        row, column = round(yi), round(xi)
        v, u = np.mgrid[-half : half + 1, -half : half + 1]
        r2 = (u + column - xi) ** 2 + (v + row - yi) ** 2
        box = np.s_[row - half : row + half + 1, column - half : column + half + 1]
        frame[box] += fi / (2 * np.pi * sigma**2) * np.exp(-0.5 * r2 / sigma**2)


@pytest.fixture(scope="module")
def field():
    rng = np.random.default_rng(8)
    cells = np.stack(np.meshgrid(np.arange(30, 1370, 40), np.arange(30, 1370, 40)), -1)
    places = cells.reshape(-1, 2) + rng.uniform(-4, 4, (cells.size // 2, 2))
    rng.shuffle(places)
    frame = rng.normal(0, NOISE, (SIDE, SIDE))
    stars, galaxies, pairs, spoilt = np.split(places, (900, 1000, 1060))
    add(frame, *stars.T, rng.uniform(3e3, 1e5, len(stars)), SIGMA)
    add(frame, *galaxies.T, rng.uniform(1e4, 1e5, len(galaxies)), 2.2 * SIGMA)
    for offset, flux in ((0.0, 4e4), (4.5, 4e4)):
        add(frame, pairs[:, 0] + offset, pairs[:, 1], np.full(len(pairs), flux), SIGMA)
    add(frame, *spoilt.T, np.full(len(spoilt), 5e4), SIGMA)
    mask = np.zeros(frame.shape, dtype=np.uint16)
    bits = np.where(np.arange(len(spoilt)) % 2, MaskBit.SATURATED, MaskBit.BAD)
    x, y = np.rint(spoilt).astype(int).T
    mask[y, x + 2] = bits.astype(np.uint16)
    rms = np.full(frame.shape, NOISE, dtype=np.float32)
    return frame.astype(np.float32), rms, mask, stars, np.concatenate([galaxies, pairs, spoilt])


def test_isolated_stars_are_found_and_nothing_else(field):
    frame, rms, mask, stars, others = field
    found = bright_stars(frame, rms, mask)
    assert found is not None
    places = np.column_stack([found.sources.x, found.sources.y])
    distance, _ = cKDTree(places).query(stars)
    assert np.mean(distance < 0.3) > 0.97
    assert np.median(distance) < 0.04
    assert cKDTree(places).query(others)[0].min() > 1.5
    assert len(found) <= len(stars)
    assert found.fwhm == pytest.approx(2.3548 * SIGMA, rel=0.02)


def test_fluxes_and_order_are_those_of_the_stars(field):
    frame, rms, mask, _, _ = field
    sources = bright_stars(frame, rms, mask).sources
    assert (np.diff(sources.flux) <= 0).all()
    x, y = np.rint(sources.x).astype(int), np.rint(sources.y).astype(int)
    offset = np.arange(-8, 9)
    boxes = frame[y[:, None, None] + offset[:, None], x[:, None, None] + offset]
    ratio = sources.flux / boxes.sum(axis=(1, 2))
    assert np.median(ratio[:200]) == pytest.approx(1.0, abs=0.01)
    assert sources.elongation[:200].max() < 1.1


def test_few_stars_are_left_to_a_full_search(field):
    frame, rms, mask, _, _ = field
    assert bright_stars(frame[:500, :500].copy(), rms[:500, :500], mask[:500, :500]) is None
    assert bright_stars(0 * frame, rms, mask) is None
