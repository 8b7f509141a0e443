"""The kernel's own error, as it stands in the noise of a difference."""

import numpy as np
import pytest

from core.polynomials import terms
from core.subtraction.convolve import convolve_varying, footprint_power, pad
from core.subtraction.sfft.kernel_model import KernelModel
from core.subtraction.sfft.kernel_noise import COHERENT, kernel_noise, stamp_power
from core.subtraction.sfft.normal_equations import FitPlanes, accumulate, solve
from core.subtraction.sfft.stamps import stamps_at

SHAPE = (200, 260)
SIDE = 7
FWHM = 2.5


def stars(rng, n, flux):
    plane = np.zeros(SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    xs, ys = rng.uniform(20, SHAPE[1] - 20, n), rng.uniform(20, SHAPE[0] - 20, n)
    sigma = FWHM / 2.3548
    for px, py in zip(xs, ys, strict=True):
        plane += flux * np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / sigma**2) / sigma**2 / 6.28
    return plane.astype(np.float32), xs, ys


def fitted(seed, noise=10.0):
    """Fit a kernel to stars and white noise; return the solution, the truth and the source."""
    rng = np.random.default_rng(seed)
    source, xs, ys = stars(rng, 40, 3e4)
    true = np.zeros((6, SIDE, SIDE))
    true[0, 2:5, 2:5] = 1 / 9
    target = convolve_varying(source, true, 2) + rng.normal(0, noise, SHAPE)
    stamps = stamps_at(xs, ys, 7, SIDE // 2, SHAPE)
    model = KernelModel((SIDE, SIDE), 2, 0, 2, 0.0, 1e-8)
    planes = FitPlanes(target.astype(np.float32), source, None)
    weights = np.full((len(stamps), 15, 15), noise**-2, dtype=np.float32)
    return solve(accumulate(planes, stamps, weights, model), model), true


@pytest.fixture(scope="module")
def many():
    return [fitted(seed) for seed in range(12)]


def test_it_is_the_variance_of_what_the_kernel_makes_of_a_star(many):
    """At the middle of the frame and at a corner, where the polynomials are extrapolated."""
    new = np.zeros(SHAPE, dtype=np.float32)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    places = [(130, 100), (8, 8), (250, 20)]
    for px, py in places:
        new += np.exp(-0.5 * ((x - px) ** 2 + (y - py) ** 2) / (FWHM / 2.3548) ** 2)
    power = footprint_power(pad(new, SIDE // 2, SIDE // 2), SHAPE, (SIDE, SIDE))
    measured, predicted = np.zeros(len(places)), np.zeros(len(places))
    for solution, true in many:
        error = convolve_varying(new, solution.kernel - true, 2)
        plane = np.zeros(SHAPE, dtype=np.float32)
        kernel_noise(solution, SHAPE, FWHM).add_to(plane, power)
        for i, (px, py) in enumerate(places):
            box = np.s_[py - 3 : py + 4, px - 3 : px + 4]
            measured[i] += np.mean(error[box] ** 2)
            predicted[i] += plane[box].mean() / COHERENT
    assert (measured / predicted < 2).all()
    assert (measured / predicted > 0.3).all()
    assert measured[1] > 3 * measured[0]


def test_the_plane_is_the_variance_of_every_place(many):
    noise = kernel_noise(many[0][0], SHAPE, FWHM)
    plane = np.zeros(SHAPE, dtype=np.float32)
    noise.add_to(plane, np.full(SHAPE, 1e6, dtype=np.float32))
    x, y = np.meshgrid(np.arange(SHAPE[1]), np.arange(SHAPE[0]))
    np.testing.assert_allclose(plane, COHERENT * 1e6 * noise.at(x, y), rtol=0.05)


def test_a_single_place_agrees_with_the_sum_over_terms(many):
    noise = kernel_noise(many[0][0], SHAPE, FWHM)
    phi = terms(2, 40.0, 150.0, SHAPE)
    assert noise.at(40.0, 150.0) == pytest.approx(phi @ noise.matrix @ phi)
    assert np.linalg.eigvalsh(noise.matrix).min() > 0


def test_more_light_makes_the_kernel_better():
    faint, bright = (kernel_noise(fitted(1, noise)[0], SHAPE, FWHM) for noise in (20.0, 5.0))
    assert faint.at(130, 100) == pytest.approx(16 * bright.at(130, 100), rel=0.05)


def test_power_under_stamps_is_that_of_the_frame():
    rng = np.random.default_rng(3)
    plane = rng.normal(0, 5, SHAPE).astype(np.float32)
    stamps = stamps_at([30.0, 100.0, 245.0], [40.0, 180.0, 17.0], 6, 7, SHAPE)
    assert len(stamps) == 3
    power = stamp_power(plane, stamps, (9, 15))
    everywhere = footprint_power(pad(plane, 4, 7), SHAPE, (9, 15))
    for own, x, y in zip(power, stamps.x, stamps.y, strict=True):
        np.testing.assert_allclose(own, everywhere[y - 6 : y + 7, x - 6 : x + 7], rtol=1e-4)
