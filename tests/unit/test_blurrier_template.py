"""Exposures sharper than their template: the science image is convolved, and nothing is lost."""

import numpy as np
import pytest

from core.exposure import Exposure
from core.pipeline import PipelineSettings, process
from core.simulate import PairSettings, SurveySettings, simulate_survey
from core.subtraction.sfft import subtract
from core.templates.directory import DirectoryTemplates
from tests.prepared_pair import make_pair


def test_transients_in_the_image_that_is_convolved_do_not_bend_the_kernel():
    """Ten of them among fifty stars; the template says nothing of how bright they are."""
    settings = PairSettings(
        shape=(512, 512), seed=3, n_transients=10, star_density=1200,
        science_fwhm=2.75, template_fwhm=3.8, template_depth=12,
    )  # fmt: skip
    truth, pair = make_pair(settings)
    quality = subtract(pair).quality
    assert quality.convolved == "science"
    assert quality.kernel_sum == pytest.approx(truth.flux_scale, rel=0.04)
    assert quality.kernel_sum_spread < 0.04
    assert quality.star_chi2 < 2


def test_fluxes_are_those_of_the_truth(tmp_path):
    """The PSF of the difference is that of the template, as it lies on the exposure."""
    settings = SurveySettings(
        n_exposures=1, shape=(512, 512), seed=3, n_transients=16, n_variables=0,
        fwhm_range=(2.7, 2.8), template_fwhm=3.8, peak_snr_range=(40, 120), star_density=2000,
    )  # fmt: skip
    survey = simulate_survey(settings, tmp_path)
    simulated = survey.exposures[0]
    exposure = Exposure(
        "sharp",
        simulated.event["science_uri"].removeprefix("file://"),
        mask=simulated.event["mask_uri"].removeprefix("file://"),
    )
    result = process(exposure, DirectoryTemplates(survey.template_dir), PipelineSettings())
    assert result.outcome == "published"
    assert result.quality.convolved == "science"
    ratios, flags = [], []
    truth = simulated.truth[(simulated.truth["snr"] > 15) & ~simulated.truth["masked"]]
    for row in truth:
        near = [c for c in result.candidates if np.hypot(c.x - row["x"], c.y - row["y"]) < 1]
        assert near, f"the transient of S/N {row['snr']:.0f} was not found"
        ratios.append(near[0].flux / row["flux"])
        flags.append(near[0].flags)
    assert len(ratios) >= 10
    assert np.median(ratios) == pytest.approx(1, abs=0.03)
    assert np.mean(np.array(flags) == 0) > 0.8
