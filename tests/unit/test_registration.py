"""The shift between two star lists whose displacement is known."""

import numpy as np
import pytest

from core.registration import Places, register

SHAPE = (1000, 1200)
FWHM = 3.5


def centroid_noise(snr):
    """What `register` takes for the photon noise of a centroid, per axis."""
    return 1.2 * FWHM / 2.3548 / snr


def star_lists(seed, n=200, shift=(0.0, 0.0), excess=0.0, noise=1.0, faintest=10):
    """The same stars seen twice: photon noise in each, and an excess scatter in one."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, SHAPE[1], n), rng.uniform(0, SHAPE[0], n)
    snr = faintest * rng.uniform(0.02, 1, n) ** -1.0
    blur = noise * centroid_noise(snr)
    ours = Places(x + rng.normal(0, blur), y + rng.normal(0, blur), snr)
    theirs = Places(
        x + shift[0] + rng.normal(0, np.hypot(blur, excess)),
        y + shift[1] + rng.normal(0, np.hypot(blur, excess)),
        snr,
    )
    return ours, theirs


def shuffled(places, seed, keep=1.0):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(places.x))[: round(keep * len(places.x))]
    return Places(places.x[order], places.y[order], places.snr[order])


def with_strangers(places, n, seed):
    """Stars that the other list does not have."""
    rng = np.random.default_rng(seed)
    return Places(
        np.append(places.x, rng.uniform(0, SHAPE[1], n)),
        np.append(places.y, rng.uniform(0, SHAPE[0], n)),
        np.append(places.snr, rng.uniform(10, 100, n)),
    )


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.37, -0.21), (-7.3, 5.9), (11.0, 0.0)])
def test_shift_is_measured_to_a_fiftieth_of_a_pixel(shift):
    ours, theirs = star_lists(1, shift=shift)
    found = register(ours, shuffled(theirs, 2), FWHM, SHAPE)
    assert found.dx == pytest.approx(shift[0], abs=0.02)
    assert found.dy == pytest.approx(shift[1], abs=0.02)
    assert found.matched > 190


def test_strangers_do_not_pull():
    ours, theirs = star_lists(3, n=150, shift=(4.4, -6.6))
    found = register(
        with_strangers(ours, 400, 4), with_strangers(shuffled(theirs, 5, 0.6), 400, 6), FWHM, SHAPE
    )
    assert (found.dx, found.dy) == pytest.approx((4.4, -6.6), abs=0.03)
    assert 80 <= found.matched < 110
    assert found.rms < 0.05


@pytest.mark.parametrize("n", [3, 5, 8])
def test_a_few_stars_are_enough(n):
    ours, theirs = star_lists(7, n=n, shift=(2.0, -3.0), noise=0.3)
    found = register(ours, theirs, FWHM, SHAPE)
    assert (found.dx, found.dy) == pytest.approx((2.0, -3.0), abs=0.15)
    assert found.matched == n


@pytest.mark.parametrize("seed", range(10, 16))
def test_no_excess_scatter_is_found_where_there_is_none(seed):
    ours, theirs = star_lists(seed, n=300, shift=(0.5, 0.5), noise=1 / 1.2)
    assert register(ours, theirs, FWHM, SHAPE).rms == 0


@pytest.mark.parametrize(("excess", "faintest"), [(0.05, 40), (0.2, 10)])
def test_excess_scatter_is_measured(excess, faintest):
    lists = (
        star_lists(seed, n=300, excess=excess, noise=1 / 1.2, faintest=faintest)
        for seed in range(20, 26)
    )
    got = [register(*pair, FWHM, SHAPE).rms for pair in lists]
    assert np.mean(got) == pytest.approx(excess, rel=0.1)
    assert np.ptp(got) < 0.5 * excess


def test_a_smooth_distortion_is_not_scatter():
    ours, theirs = star_lists(30, n=300, noise=1 / 1.2)
    u, v = ours.x / SHAPE[1] - 0.5, ours.y / SHAPE[0] - 0.5
    bent = Places(theirs.x + 0.6 * u * v + 0.4 * u, theirs.y - 0.5 * v**2, theirs.snr)
    assert register(ours, bent, FWHM, SHAPE).rms < 0.02


def test_stars_that_moved_do_not_make_scatter():
    ours, theirs = star_lists(31, n=300, noise=1 / 1.2)
    x = theirs.x.copy()
    x[::12] += 1.2
    assert register(ours, Places(x, theirs.y, theirs.snr), FWHM, SHAPE).rms < 0.03


def test_what_cannot_be_matched_is_not_moved():
    ours, theirs = star_lists(40, n=2)
    nothing = register(ours, theirs, FWHM, SHAPE)
    assert (nothing.dx, nothing.dy, nothing.rms, nothing.matched) == (0, 0, 0, 0)
    empty = Places(np.zeros(0), np.zeros(0), np.zeros(0))
    ours, _ = star_lists(41)
    assert register(ours, empty, FWHM, SHAPE).matched == 0
    far = Places(ours.x + 5000, ours.y, ours.snr)
    assert register(ours, far, FWHM, SHAPE).matched == 0
