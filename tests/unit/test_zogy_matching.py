"""The flux scale on what both images show, however much else only one of them has."""

from dataclasses import replace

import numpy as np
import pytest

from core.errors import SubtractionFailed
from core.simulate import PairSettings
from core.subtraction.weighted_median import weighted_median
from core.subtraction.zogy.boxes import star_boxes
from core.subtraction.zogy.images import known
from core.subtraction.zogy.matching import Matching, MatchingOptions, aperture_scale, match
from core.subtraction.zogy.refinement import remaining_error
from tests.prepared_pair import make_pair


@pytest.fixture(scope="module")
def images():
    settings = PairSettings(
        shape=(420, 440), seed=3, star_density=1500, galaxy_density=0, n_transients=25,
        snr_range=(30, 60), host_fraction=0.0,
    )  # fmt: skip
    truth, pair = make_pair(settings)
    stars = pair.stars.sources
    science = known(pair.science, pair.science_fwhm, stars)
    template = known(pair.template, pair.template_fwhm, stars)
    return truth, stars, science, template


def near_transients(truth, sources):
    places = np.column_stack([truth.transients["x"], truth.transients["y"]])
    apart = np.hypot(sources.x[:, None] - places[:, 0], sources.y[:, None] - places[:, 1])
    return apart.min(axis=1) < 2


def test_transients_have_no_say_in_the_scale(images):
    truth, stars, science, template = images
    new = near_transients(truth, stars)
    few = np.r_[np.flatnonzero(~new)[:8], np.flatnonzero(new)]
    assert new[few].mean() > 0.6
    boxes = star_boxes(science, template, stars.select(few))
    matching = match(boxes, MatchingOptions(), science.shape)
    assert matching.flux_scale_at(220, 210) == pytest.approx(truth.flux_scale, rel=0.02)
    assert matching.scale_error < 0.03
    only_new = star_boxes(science, template, stars.select(new))
    nothing = match(only_new, MatchingOptions(), science.shape)
    assert nothing.stars_used == 0 or nothing.scale_error > 0.05


def test_apertures_know_the_scale_without_psfs(images):
    truth, stars, science, template = images
    there = stars.select(~near_transients(truth, stars))
    scale, error = aperture_scale(science, template, there, (0.0, 0.0))
    assert scale == pytest.approx(truth.flux_scale, abs=3 * error * truth.flux_scale)
    assert 0 < error < 0.03
    nothing = stars.select(np.zeros(len(stars), dtype=bool))
    assert aperture_scale(science, template, nothing, (0.0, 0.0))[1] == float("inf")


def test_a_wrong_scale_is_seen_in_what_remains(images):
    _, stars, science, template = images
    boxes = star_boxes(science, template, stars)
    matching = match(boxes, MatchingOptions(), science.shape)
    assert remaining_error(boxes, matching) < 0.02
    wrong = replace(matching, flux_scale=0.8 * matching.flux_scale)
    assert remaining_error(boxes, wrong) > 0.1


def test_a_scale_that_falls_below_zero_within_the_frame_is_refused():
    def sloped(slope):
        scale = np.array([1.0, slope, 0.0])
        return Matching(scale, np.zeros((2, 1)), 1, 0, (420, 440), 0.0, 0.0, 12, 0)

    sloped(0.3).check_flux_scale()
    for slope in (1.5, np.nan):
        with pytest.raises(SubtractionFailed, match="its 12 stars are too few"):
            sloped(slope).check_flux_scale()


def test_weighted_median_counts_weight():
    values = np.array([5.0, 1.0, 3.0])
    assert weighted_median(values, np.array([1.0, 1.0, 1.0])) == 3
    assert weighted_median(values, np.array([9.0, 1.0, 1.0])) == 5
