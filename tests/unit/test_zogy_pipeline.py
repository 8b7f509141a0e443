"""The pipeline with ZOGY as its only engine, from files to candidates."""

import numpy as np

from core.exposure import Exposure
from core.pipeline import PipelineSettings, process
from core.simulate import SurveySettings, simulate_survey
from core.templates.directory import DirectoryTemplates


def test_transients_are_found_with_zogy_alone(tmp_path):
    settings = SurveySettings(
        n_exposures=1, shape=(640, 660), seed=5, n_transients=14, n_variables=0,
        star_density=2500, peak_snr_range=(25.0, 90.0), fwhm_range=(3.0, 3.4), dither=8.0,
    )  # fmt: skip
    survey = simulate_survey(settings, tmp_path)
    simulated = survey.exposures[0]
    exposure = Exposure(
        simulated.event["exposure_id"],
        simulated.event["science_uri"].removeprefix("file://"),
        mask=simulated.event["mask_uri"].removeprefix("file://"),
    )
    result = process(
        exposure,
        DirectoryTemplates(survey.template_dir),
        PipelineSettings(engines=("zogy",), threads=2, keep_difference=True),
    )
    assert result.outcome == "published", result.reason
    assert result.quality.engine == "zogy"
    assert result.quality.convolved == "both"
    assert 0.9 < result.quality.sky_chi2 < 1.1
    mask = result.difference.mask
    truth = simulated.truth
    seen = 0
    for row in truth[np.abs(truth["snr"]) > 10]:
        y, x = round(row["y"]), round(row["x"])
        if mask[y - 3 : y + 4, x - 3 : x + 4].any():
            continue
        near = [c for c in result.candidates if np.hypot(c.x - row["x"], c.y - row["y"]) < 2.5]
        assert near, f"lost a source of S/N {row['snr']:.0f} at {x}, {y}"
        assert abs(near[0].flux - row["flux"]) < max(5 * near[0].flux_err, 0.1 * abs(row["flux"]))
        seen += 1
    assert seen >= 6
    places = np.column_stack([truth["x"], truth["y"]])
    false = [
        c
        for c in result.candidates
        if np.hypot(*(places - (c.x, c.y)).T).min() > 5 and c.peak_snr > 6
    ]
    assert len(false) <= 2
