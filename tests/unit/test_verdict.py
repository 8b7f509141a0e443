"""Which subtractions are trusted, and what is said about the others."""

import numpy as np
import pytest

from core.subtraction.verdict import QualityLimits, judge
from tests.unit.made_frames import made_quality

LIMITS = QualityLimits()


def test_a_perfect_subtraction_is_trusted():
    assert judge(made_quality(), LIMITS) == []


@pytest.mark.parametrize(
    ("name", "good", "bad", "clause"),
    [
        ("star_chi2", 1.99, 3.1, "chi² on the stars is 3.1, above 2"),
        ("model_error", 0.0299, 0.0471, "the matching is wrong by 4.7 % of the flux, above 3 %"),
        ("psf_error", 0.24, 0.42, "the PSF may be wrong by 42 % of the flux, above 25 %"),
        ("sky_chi2", 1.49, 1.75, "variance of the scaled sky is 1.75, outside 0.6 to 1.5"),
        ("sky_chi2", 0.61, 0.5, "variance of the scaled sky is 0.5, outside 0.6 to 1.5"),
        ("sky_mean", 0.29, 0.31, "the sky is off by 0.31 sigma"),
        ("sky_mean", -0.29, -0.31, "the sky is off by -0.31 sigma"),
        ("kernel_sum_spread", 0.24, 0.62, "the flux scale varies by 62 % over the frame"),
        ("stars_used", 8, 7, "the kernel rests on 7 stars, fewer than 8"),
    ],
)
def test_each_number_has_its_bound_and_its_clause(name, good, bad, clause):
    assert judge(made_quality(**{name: good}), LIMITS) == []
    assert judge(made_quality(**{name: bad}), LIMITS) == [clause]


def test_everything_that_is_wrong_is_said():
    quality = made_quality(star_chi2=99.0, sky_chi2=9.0, sky_mean=-2.0)
    assert len(judge(quality, LIMITS)) == 3


@pytest.mark.parametrize("name", ["sky_chi2", "sky_mean"])
def test_a_sky_that_could_not_be_measured_is_not_trusted(name):
    assert len(judge(made_quality(**{name: float("nan")}), LIMITS)) == 1


def test_a_field_without_stars_to_judge_by_may_pass():
    assert judge(made_quality(star_chi2=float("nan")), LIMITS) == []


def test_limits_are_the_operators():
    quality = made_quality(star_chi2=1.9)
    assert judge(quality, LIMITS) == []
    assert len(judge(quality, QualityLimits(star_chi2=1.5))) == 1


def test_an_engine_without_a_kernel_needs_no_stars_for_one():
    assert judge(made_quality(stars_used=3, convolved="both"), LIMITS) == []


def test_every_limit_is_a_number():
    assert np.isfinite(LIMITS.star_chi2)
