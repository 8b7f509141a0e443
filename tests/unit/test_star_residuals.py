"""The chi² on the stars: what it counts, what it leaves out, and that it cannot be fooled."""

from dataclasses import replace

import numpy as np
import pytest

from core.image import MaskBit
from core.subtraction.star_residuals import chi2_on_stars
from tests.unit.made_frames import add_gaussians
from tests.unit.test_finish import CLEAR, FWHM, SHAPE, noise_of, pair_of, stars  # noqa: F401


def chi2(data, variance, light, pair, mask=CLEAR):
    single = (np.asarray(plane, dtype=np.float32) for plane in (data, variance, light))
    return chi2_on_stars(*single, mask, pair)


@pytest.mark.parametrize("listed", [True, False])
def test_right_noise_gives_one(stars, listed):  # noqa: F811
    x, y, _, light, variance = stars
    pair = pair_of(x, y) if listed else replace(pair_of(), stars=None)
    assert chi2(noise_of(variance, 1), variance, light, pair) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("listed", [True, False])
def test_wrong_matching_is_seen(stars, listed):  # noqa: F811
    x, y, _, light, variance = stars
    pair = pair_of(x, y) if listed else pair_of()
    data = noise_of(variance, 2) + 0.03 * light
    expected = 1 + np.mean((0.03 * light)[light > 2e3] ** 2 / variance[light > 2e3])
    assert chi2(data, variance, light, pair) > 0.25 * expected > 2


def test_new_sources_in_the_star_list_are_no_stars_to_judge_by(stars):  # noqa: F811
    """Two of three entries are transients, as in a sparse field with many of them."""
    x, y, flux, light, variance = stars
    data, template = noise_of(variance, 3), light.copy()
    new = np.arange(len(x)) % 3 > 0
    add_gaussians(data, x[new], y[new], flux[new], FWHM)
    add_gaussians(template, x[new], y[new], -flux[new], FWHM)
    assert chi2(data, variance, template, pair_of(x, y)) == pytest.approx(1, abs=0.08)


def test_a_few_variable_stars_do_not_spoil_it(stars):  # noqa: F811
    x, y, _, light, variance = stars
    data = noise_of(variance, 11)
    add_gaussians(data, x[50:52], y[50:52], 1e5, FWHM)
    assert chi2(data, variance, light, pair_of(x, y)) == pytest.approx(1, abs=0.06)


def test_the_brightest_stars_cannot_all_be_variable(stars):  # noqa: F811
    x, y, flux, light, variance = stars
    data = noise_of(variance, 12)
    bright = flux > np.quantile(flux, 0.8)
    add_gaussians(data, x[bright], y[bright], 0.05 * flux[bright], FWHM)
    assert chi2(data, variance, light, pair_of(x, y)) > 3


def test_where_nothing_is_to_be_seen_there_is_no_number(stars):  # noqa: F811
    x, y, _, light, variance = stars
    blank = np.full(SHAPE, 25.0)
    assert np.isnan(chi2(noise_of(blank, 4), blank, np.zeros(SHAPE), pair_of()))
    masked = np.full(SHAPE, MaskBit.BAD, np.uint16)
    assert np.isnan(chi2(noise_of(variance, 12), variance, light, pair_of(x, y), masked))


def test_masked_pixels_have_no_say(stars):  # noqa: F811
    x, y, _, light, variance = stars
    data, mask = noise_of(variance, 5), CLEAR.copy()
    rows = np.rint(y).astype(int)
    data[rows, np.rint(x).astype(int)] = 1e6
    mask[rows, np.rint(x).astype(int)] = MaskBit.BAD
    assert chi2(data, variance, light, pair_of(x, y), mask) == pytest.approx(1, abs=0.05)
