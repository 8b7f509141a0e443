"""The wings of a PSF: saturated stars show them, and the sky must not be taken for them."""

import numpy as np
import pytest

from core.image import MaskBit
from core.psf import measure_psf
from core.psf_wings import RoughPSF, wing_level, wing_stamps
from core.stars import find_sources, select_saturated, select_stars

SHAPE = (640, 640)
FWHM, EXPONENT = 3.6, 2.5
NOISE = 12.0
FULL = 3000.0
RMS = np.full(SHAPE, NOISE, np.float32)
HALF = 11


def moffat(dx, dy, exponent=EXPONENT):
    alpha2 = (0.5 * FWHM) ** 2 / (2 ** (1 / exponent) - 1)
    height = (exponent - 1) / (np.pi * alpha2)
    return height * (1 + (dx**2 + dy**2) / alpha2) ** -exponent


def field(seed, exponent=EXPONENT):
    """Return data, mask, and the true x, y, flux: the last twelve stars are saturated."""
    rng = np.random.default_rng(seed)
    flux = np.concatenate([rng.uniform(2e3, 2e4, 130), rng.uniform(3e5, 1e6, 12)])
    x, y = rng.uniform(5, SHAPE[0] - 6, (2, len(flux)))
    grid = np.mgrid[80:560:3j, 80:560:4j].reshape(2, -1)
    y[-12:], x[-12:] = grid + rng.uniform(-9, 9, grid.shape)
    data = rng.normal(0, NOISE, SHAPE)
    for a, b, f in zip(x, y, flux, strict=True):
        reach = 60 if f < 1e5 else 640
        first, left = max(0, round(b) - reach), max(0, round(a) - reach)
        rows, cols = np.mgrid[
            first : min(SHAPE[0], round(b) + reach), left : min(SHAPE[1], round(a) + reach)
        ]
        data[rows, cols] += f * moffat(cols - a, rows - b, exponent)
    mask = np.where(data > FULL, MaskBit.SATURATED, 0).astype(np.uint16)
    return np.minimum(data, FULL).astype(np.float32), mask, x, y, flux


def flux_bias(psf):
    """By how much a flux that is fitted with it is off."""
    half = 6
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    model, middle = psf.at(320, 320).astype(float), psf.size // 2
    model = model[middle - half : middle + half + 1, middle - half : middle + half + 1]
    return (model * moffat(cols, rows)).sum() / (model**2).sum() - 1


def test_saturated_stars_tell_the_wings_and_with_them_the_fluxes():
    """The faint stars alone leave fluxes 3 % low: their wings are lost in the noise of the sky."""
    alone, helped = [], []
    for seed in range(4):
        data, mask, *_ = field(seed)
        sources = find_sources(data, RMS, mask)
        stars, saturated = select_stars(sources), select_saturated(sources, mask)
        arguments = (data, RMS, mask != 0, stars.sources, stars.fwhm)
        alone.append(flux_bias(measure_psf(*arguments)))
        helped.append(flux_bias(measure_psf(*arguments, saturated)))
    assert np.mean(alone) < -0.02
    assert abs(np.mean(helped)) < 0.006
    assert np.std(helped) < 0.01


def rough():
    rows, cols = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
    stamp = moffat(cols, rows)
    return RoughPSF(lambda x, y: stamp, np.full(stamp.shape, 1e-4)), stamp


def test_flux_and_place_of_saturated_stars_are_those_of_their_good_pixels():
    data, mask, x, y, flux = field(5)
    sources = select_saturated(find_sources(data, RMS, mask), mask)
    assert len(sources) == 12
    assert (np.diff(sources.flux) <= 0).all()
    psf, stamp = rough()
    stamps, noise, xs, ys = wing_stamps(data, RMS, mask != 0, sources, psf)
    assert len(xs) >= 10
    for pixels, sigma, a, b in zip(stamps, noise, xs, ys, strict=True):
        nearest = np.argmin(np.hypot(x - a, y - b))
        assert np.hypot(x[nearest] - a, y[nearest] - b) < 0.05
        assert np.median(NOISE / sigma) == pytest.approx(flux[nearest], rel=0.02)
        assert np.isnan(pixels[len(pixels) // 2])  # the core
        known = np.isfinite(pixels)
        left = (pixels - stamp.ravel())[known] / sigma[known]
        assert abs(np.median(left)) < 0.3


def test_stars_at_the_edge_or_without_good_pixels_are_left_out():
    data, mask, *_ = field(6)
    sources = select_saturated(find_sources(data, RMS, mask), mask)
    everything = np.ones(SHAPE, bool)
    assert len(wing_stamps(data, RMS, everything, sources, rough()[0])[2]) == 0
    moved = sources.select(np.zeros(1, np.int64))
    moved.x[0] = 4
    assert len(wing_stamps(data, RMS, mask != 0, moved, rough()[0])[2]) == 0


def ring():
    rows, cols = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
    away = np.hypot(rows, cols)
    return away > HALF - 1.5, moffat(cols, rows)


def test_the_level_of_the_wings_is_measured_whatever_the_sky():
    near, stamp = ring()
    levels = []
    for seed in range(4):
        data, mask, x, y, flux = field(seed)
        data += 20.0  # what a mesh of the sky leaves around a bright star
        levels.append(wing_level(data, RMS, mask != 0, (x, y, flux), near))
    assert np.mean(levels) == pytest.approx(stamp[near].mean(), rel=0.15)


def test_a_frame_without_noise_says_nothing_of_wings():
    near, _ = ring()
    data, mask, x, y, flux = field(1)
    assert wing_level(data, 0 * RMS, mask != 0, (x, y, flux), near) == 0
    assert wing_level(data, RMS, mask != 0, (x, y, np.full(len(x), np.nan)), near) == 0


def test_one_bright_neighbour_does_not_make_a_wing():
    near, _ = ring()
    rng = np.random.default_rng(8)
    data = rng.normal(0, NOISE, SHAPE).astype(np.float32)
    x, y = np.meshgrid([100.0, 250.0, 400.0, 540.0], [100.0, 320.0, 540.0])
    x, y, flux = x.ravel(), y.ravel(), np.full(12, 1e5)
    flux[0] = 1e6
    assert wing_level(data, RMS, data > 1e9, (x, y, flux), near) < 3e-6
    data[108:116, 92:108] += 40.0  # a galaxy beside the brightest
    assert wing_level(data, RMS, data > 1e9, (x, y, flux), near) < 3e-6
    assert wing_level(data, RMS, data > 1e9, (x[:5], y[:5], flux[:5]), near) == 0
