"""Stamps on what both images show, and none on what only one of them shows."""

import numpy as np
import pytest

from core.subtraction.sfft.shared_light import Light, MeasuredLight, shared
from core.subtraction.sfft.stamps import stamps_at, stamps_on
from tests.unit.made_frames import add_gaussians, grid_of_places

SHAPE = (300, 310)
FWHM = 3.0


def measured(fluxes, sky, seed, fwhm=FWHM, usable=None):
    rng = np.random.default_rng(1)
    x, y = grid_of_places(SHAPE, 30, rng)
    frame = np.random.default_rng(seed).normal(sky, 5.0, SHAPE)
    add_gaussians(frame, x, y, fluxes(len(x)), fwhm)
    stamps = stamps_at(x, y, 9, 3, SHAPE)
    good = np.ones(SHAPE, bool) if usable is None else usable
    variance = np.full(SHAPE, 25.0, np.float32)
    return Light(4).measure(frame.astype(np.float32), variance, good, stamps)


def test_the_light_of_a_star_is_measured_above_its_rim():
    got = measured(lambda n: np.full(n, 5000.0), 300.0, 2)
    assert got.flux.mean() == pytest.approx(5000, rel=0.02)
    assert np.std(got.flux) == pytest.approx(got.error[0], rel=0.5)
    assert got.error[0] == pytest.approx(5 * np.sqrt(49), rel=0.05)  # pixels within 4 of one


def test_a_masked_core_is_not_measured():
    got = measured(lambda n: np.full(n, 5e3), 0.0, 2, usable=np.zeros(SHAPE, bool))
    assert np.isinf(got.error).all()
    assert not shared(got, got)[1].any()


def test_a_star_at_the_edge_is_measured_where_it_is():
    """Its stamp is centred further in."""
    frame = np.full(SHAPE, 300.0)
    add_gaussians(frame, [6.0, 150.0], [150.0, 295.0], [5000.0, 5000.0], FWHM)
    stamps = stamps_on([6, 150], [150, 295], 9, 6, SHAPE)
    flux = (
        Light(4)
        .measure(frame.astype(np.float32), np.ones(SHAPE, np.float32), np.ones(SHAPE, bool), stamps)
        .flux
    )
    np.testing.assert_allclose(flux, 5000, rtol=0.02)


@pytest.mark.parametrize("new", [5, 60])
def test_transients_are_left_out_though_they_outnumber_the_stars(new):
    source = measured(lambda n: np.where(np.arange(n) < new, 0, 6000.0), 200.0, 3)
    target = measured(lambda n: np.full(n, 3000.0), 900.0, 4, fwhm=4.0)
    ratio, kept = shared(source, target)
    assert ratio == pytest.approx(0.5, rel=0.1)  # the wider PSF loses a little to its rim
    assert len(kept) > 60 + 10
    assert not kept[:new].any()
    assert kept[new:].mean() > 0.97


def test_a_star_that_doubled_or_vanished_is_left_out():
    source = measured(lambda n: np.full(n, 6000.0), 200.0, 5)
    change = np.array([2.5, 0.3, 0.0, 1.15])
    target = measured(lambda n: 4000 * np.r_[change, np.ones(n - 4)], 200.0, 6)
    np.testing.assert_array_equal(shared(source, target)[1][:5], [False, False, False, True, True])


def test_nothing_in_common_is_nothing():
    light = MeasuredLight(np.array([1e4, 0.0]), np.array([10.0, 10.0]))
    other = MeasuredLight(np.array([0.0, 1e4]), np.array([10.0, 10.0]))
    ratio, kept = shared(light, other)
    assert np.isnan(ratio)
    assert not kept.any()
