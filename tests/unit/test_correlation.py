"""The factor for correlated noise against a Monte Carlo of the sums that it is for."""

import numpy as np
import pytest

from core.psf import gaussian_psf
from core.subtraction.correlation import CorrelatedNoise, measure_correlation
from tests.unit.made_frames import smoothed_noise, smoothing_kernel

TARGET, SOURCE = 3.0, 2.0  # noise of the images, ADU


def profiles():
    rows, cols = np.mgrid[-9:10, -9:10]
    lopsided = np.zeros((7, 7))
    lopsided[1, 2] = lopsided[1, 3] = 1.0
    return {
        "psf": gaussian_psf(3.5, (64, 64)).at(32, 32).astype(float),
        "disc": (np.hypot(rows, cols) <= 9).astype(float),
        "pair": lopsided,
        "pixel": np.ones((1, 1)),
    }


@pytest.mark.parametrize("name", ["psf", "disc", "pair", "pixel"])
def test_factor_is_true_over_white_noise(name):
    profile = profiles()[name]
    kernel = smoothing_kernel(2.6, total=1.4)
    rng = np.random.default_rng(1)
    half = profile.shape[0]
    sums = []
    for _ in range(40):
        noise = rng.normal(0, TARGET, (400, 400))
        noise -= smoothed_noise(rng, (400, 400), SOURCE, kernel)
        for y in range(0, 400 - half, 20):
            rows = np.lib.stride_tricks.sliding_window_view(noise[y : y + half], half, axis=1)
            sums.append(np.einsum("yxk,yk->x", rows[:, ::20], profile))
    true = np.std(np.concatenate(sums))
    pixel_variance = TARGET**2 + SOURCE**2 * (kernel**2).sum()
    white = np.sqrt(pixel_variance * (profile**2).sum())
    factor = CorrelatedNoise(kernel, SOURCE**2, TARGET**2).factor(profile)
    assert factor == pytest.approx(true / white, rel=0.02)
    if name == "pixel":
        assert factor == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", ["psf", "disc"])
def test_wide_sums_are_noisier_than_pixels_say(name):
    assert (
        CorrelatedNoise(smoothing_kernel(2.6), SOURCE**2, TARGET**2).factor(profiles()[name]) > 1.1
    )


def test_white_noise_needs_no_factor():
    psf = profiles()["psf"]
    assert CorrelatedNoise().factor(psf) == 1.0
    assert CorrelatedNoise(smoothing_kernel(3.0), 0.0, 1.0).factor(psf) == 1.0
    delta = np.zeros((5, 5))
    delta[2, 2] = 1.7
    assert CorrelatedNoise(delta, 4.0, 9.0).factor(psf) == pytest.approx(1.0, abs=1e-9)


def test_typical_variances_are_those_of_the_good_pixels():
    source = np.full((200, 300), 4.0, np.float32)
    target = np.full((200, 300), 9.0, np.float32)
    masked = np.zeros(source.shape, bool)
    masked[:120] = True
    source[:120] = target[:120] = 1e6
    kernel = smoothing_kernel(2.0)
    got = measure_correlation(kernel, source, target, masked)
    assert (got.source_variance, got.target_variance) == (4.0, 9.0)
    assert got.kernel is kernel
    for nothing in (
        measure_correlation(kernel, None, target, masked),
        measure_correlation(kernel, source, target, np.ones_like(masked)),
    ):
        assert nothing.factor(profiles()["psf"]) == 1.0
