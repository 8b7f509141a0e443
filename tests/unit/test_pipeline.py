"""From an exposure on disk to its candidates, or to the reason why there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from core import pipeline
from core.errors import SubtractionFailed
from core.exposure import Exposure, ExposureResult
from core.pipeline import PipelineSettings, process
from core.simulate import SimulatedExposure, SurveySettings, simulate_survey
from core.subtraction import sfft
from core.subtraction.verdict import QualityLimits
from core.templates.cache import TemplateCache
from core.templates.directory import DirectoryTemplates
from core.templates.single import SingleTemplate

SETTINGS = SurveySettings(
    n_exposures=1, shape=(420, 440), seed=5, n_transients=10, n_variables=0, star_density=2500,
    peak_snr_range=(25.0, 90.0), fwhm_range=(3.0, 3.4), dither=8.0,
)  # fmt: skip
STAGES = ["read", "noise", "stars", "template", "register", "subtract", "detect", "measure"]


@dataclass(frozen=True)
class Night:
    """A simulated exposure on disk, its template and the truth."""

    simulated: SimulatedExposure
    templates: DirectoryTemplates
    template_dir: Path

    @property
    def exposure(self) -> Exposure:
        event = self.simulated.event
        return Exposure(
            event["exposure_id"],
            event["science_uri"].removeprefix("file://"),
            mask=event["mask_uri"].removeprefix("file://"),
        )

    def run(self, **settings: Any) -> ExposureResult:
        return process(self.exposure, self.templates, PipelineSettings(**settings))


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    survey = simulate_survey(SETTINGS, tmp_path_factory.mktemp("survey"))
    return Night(survey.exposures[0], DirectoryTemplates(survey.template_dir), survey.template_dir)


@pytest.fixture(scope="module")
def result(night: Night) -> ExposureResult:
    return night.run()


@pytest.fixture
def changed(night: Night, tmp_path: Path) -> Callable[..., Exposure]:
    """``changed(pixels -> pixels, **cards) -> Exposure``: the exposure with other pixels."""

    def write(
        change: Callable[[np.ndarray], np.ndarray] = lambda data: data, **cards: Any
    ) -> Exposure:
        data, header = fits.getdata(night.exposure.science, header=True)
        for name, value in cards.items():
            if value is None:
                del header[name]
            else:
                header[name] = value
        path = tmp_path / "changed.fits"
        fits.writeto(path, change(data.astype(np.float32)), header)
        return replace(night.exposure, science=str(path))

    return write


# --- what a good exposure gives ---------------------------------------------------------------


def test_transients_are_found_and_measured(night: Night, result: ExposureResult) -> None:
    assert (result.outcome, result.reason, result.error_class, result.stage) == (
        "published", "", None, None,
    )  # fmt: skip
    truth = night.simulated.truth
    strong = truth[(truth["snr"] > 12) & ~truth["masked"]]
    assert len(strong) >= 4
    found = {(round(c.x), round(c.y)): c for c in result.candidates}
    for source in strong:
        place = min(found, key=lambda at: np.hypot(at[0] - source["x"], at[1] - source["y"]))
        c = found[place]
        assert np.hypot(c.x - source["x"], c.y - source["y"]) < 5 * np.hypot(c.x_err, c.y_err)
        assert abs(c.flux - source["flux"]) < 5 * c.flux_err + 0.03 * source["flux"]
        assert abs(c.mag - source["mag"]) < 5 * c.mag_err + 0.04
        assert 0.7 < c.snr / source["snr"] < 1.15
    false = [
        c for c in result.candidates
        if np.hypot(truth["x"] - c.x, truth["y"] - c.y).min() > 2
    ]  # fmt: skip
    assert len(false) <= 2
    assert all(c.snr < 8 for c in false)


def test_counts_quality_and_facts_are_reported(night: Night, result: ExposureResult) -> None:
    assert result.counts["candidates"] == len(result.candidates)
    assert result.counts["detections"] >= result.counts["candidates"]
    assert result.counts["stars"] > 40
    assert result.quality is not None
    assert result.quality.engine == "sfft"
    assert result.quality.sky_chi2 == pytest.approx(1, abs=0.06)
    assert result.facts.fwhm == pytest.approx(night.simulated.fwhm, rel=0.04)
    assert result.facts.band == "r"
    assert result.facts.estimated == ("fwhm",)
    assert result.shape == SETTINGS.shape
    assert result.wcs is not None
    assert result.template is not None
    assert result.template.provider == "directory"
    assert result.template.overlap == pytest.approx(1, abs=0.01)
    assert result.difference is None
    assert result.limiting_mag is not None


def test_stages_are_timed_in_their_order(result: ExposureResult) -> None:
    assert list(result.seconds) == STAGES
    assert all(seconds > 0 for seconds in result.seconds.values())


def test_zero_point_of_the_template_goes_over_with_the_kernel(
    night: Night, result: ExposureResult
) -> None:
    assert result.facts.zero_point_origin == "template"
    # 36 stars, of which the brightest few hold nearly all the light
    assert result.facts.zero_point == pytest.approx(night.simulated.zero_point, abs=0.015)
    assert result.facts.zero_point_err is not None
    assert 0 <= result.facts.zero_point_err < 0.03


def test_a_replay_is_the_same_to_the_last_bit(night: Night, result: ExposureResult) -> None:
    assert_alike(result, night.run())


def test_a_template_that_was_kept_changes_nothing(
    night: Night, result: ExposureResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TemplateCache(tmp_path)
    for _ in range(2):
        again = process(night.exposure, night.templates, PipelineSettings(), cache=cache)
        assert_alike(result, again)
        assert again.notes == result.notes
        assert again.template == result.template
        assert list(again.seconds) == STAGES
        # the second time, neither the template's file nor a projection is needed
        monkeypatch.delattr("core.templates.directory.read_image", raising=False)
        monkeypatch.delattr("core.templates.projected.project", raising=False)


def assert_alike(result: ExposureResult, again: ExposureResult) -> None:
    assert len(again.candidates) == len(result.candidates) > 0
    for one, other in zip(result.candidates, again.candidates, strict=True):
        assert replace(one, cutouts=other.cutouts) == other
        for stamp in ("science", "template", "difference"):
            np.testing.assert_array_equal(
                getattr(one.cutouts, stamp), getattr(other.cutouts, stamp)
            )
    assert result.quality is not None
    assert again.quality is not None
    assert replace(result.quality, seconds=0) == replace(again.quality, seconds=0)


def test_more_threads_change_nothing(night: Night, result: ExposureResult) -> None:
    """Nor does another machine: the identifiers of the alerts follow from these numbers."""
    again = night.run(threads=2)
    assert [(c.x, c.y, c.flux) for c in again.candidates] == [
        (c.x, c.y, c.flux) for c in result.candidates
    ]


@pytest.mark.parametrize("where", ["event", "header"])
def test_a_zero_point_that_is_given_wins(
    night: Night, changed: Callable[..., Exposure], result: ExposureResult, where: str
) -> None:
    by_event = replace(night.exposure, zero_point=24.0)
    exposure = by_event if where == "event" else changed(MAGZP=24.0)
    got = process(exposure, night.templates, PipelineSettings())
    assert (got.facts.zero_point, got.facts.zero_point_origin) == (24.0, where)
    offset = got.facts.zero_point - result.facts.zero_point
    assert got.candidates[0].mag == pytest.approx(result.candidates[0].mag + offset, abs=1e-5)


def test_missing_gain_is_estimated_and_said(
    night: Night, changed: Callable[..., Exposure], result: ExposureResult
) -> None:
    got = process(changed(GAIN=None), night.templates, PipelineSettings())
    assert got.outcome == "published"
    assert got.facts.estimated == ("gain", "fwhm")
    # from the photons of the sky, the read noise (6 electrons of about 25) not taken out
    assert got.facts.gain == pytest.approx(SETTINGS.gain, rel=0.12)
    assert len(got.candidates) >= len(result.candidates) - 1


def test_planes_are_kept_when_asked(night: Night) -> None:
    got = night.run(keep_difference=True)
    assert got.difference is not None
    assert got.difference.data.shape == SETTINGS.shape
    good = got.difference.mask == 0
    scaled = got.difference.data / got.difference.noise
    np.testing.assert_allclose(got.difference.scaled[good], scaled[good], rtol=1e-5, atol=1e-6)


def test_cutouts_have_the_size_that_was_asked(night: Night) -> None:
    got = night.run(cutout_size=21)
    assert {c.cutouts.difference.shape for c in got.candidates} == {(21, 21)}


# --- why there are none -----------------------------------------------------------------------


def test_a_missing_file_is_unavailable_and_may_be_tried_again(night: Night) -> None:
    exposure = replace(night.exposure, science="/nowhere/at/all.fits", zero_point=25.0)
    got = process(exposure, night.templates, PipelineSettings())
    assert (got.outcome, got.error_class, got.stage) == (
        "input_unavailable", "InputUnavailable", "read",
    )  # fmt: skip
    assert got.retriable
    assert "/nowhere/at/all.fits" in got.reason
    assert got.facts.zero_point == 25.0
    assert got.candidates == ()
    assert list(got.seconds) == ["read"]


def test_what_is_not_an_image_fails_for_good(night: Night, tmp_path: Path) -> None:
    path = tmp_path / "junk.fits"
    path.write_bytes(b"not a FITS file at all " * 400)
    got = process(replace(night.exposure, science=str(path)), night.templates, PipelineSettings())
    assert (got.outcome, got.error_class, got.stage) == ("failed", "UnusableInput", "read")
    assert not got.retriable


def test_too_large_is_said_before_it_is_read(night: Night) -> None:
    got = night.run(max_pixels=1000)
    assert (got.outcome, got.stage) == ("failed", "read")
    assert "pixels" in got.reason


def test_pixels_that_are_all_nan(night: Night, changed: Callable[..., Exposure]) -> None:
    got = process(
        changed(lambda data: np.full_like(data, np.nan)), night.templates, PipelineSettings()
    )
    assert (got.outcome, got.stage) == ("rejected_quality", "read")
    assert got.error_class == "QualityRejected"
    assert got.reason


def test_pixels_that_are_all_alike(night: Night, changed: Callable[..., Exposure]) -> None:
    got = process(
        changed(lambda data: np.full_like(data, 300.0)), night.templates, PipelineSettings()
    )
    assert got.outcome == "rejected_quality"
    assert got.stage in ("read", "noise")
    assert got.reason


def test_pixels_that_are_all_masked(night: Night, tmp_path: Path) -> None:
    path = tmp_path / "mask.fits"
    fits.writeto(path, np.ones(SETTINGS.shape, np.int16))
    got = process(replace(night.exposure, mask=str(path)), night.templates, PipelineSettings())
    assert got.outcome == "rejected_quality"
    assert got.stage in ("read", "noise")
    assert "mask" in got.reason


def test_a_sky_without_stars(night: Night, changed: Callable[..., Exposure]) -> None:
    def clouds(data: np.ndarray) -> np.ndarray:
        return np.random.default_rng(1).normal(300, 12, data.shape).astype(np.float32)

    got = process(changed(clouds), night.templates, PipelineSettings())
    assert (got.outcome, got.stage, got.error_class) == (
        "rejected_quality", "stars", "QualityRejected",
    )  # fmt: skip
    assert "no star was found" in got.reason
    assert list(got.seconds) == STAGES[:3]


def test_a_place_without_template(night: Night, changed: Callable[..., Exposure]) -> None:
    got = process(changed(CRVAL2=50.0), night.templates, PipelineSettings())
    assert (got.outcome, got.stage, got.error_class) == ("no_template", "template", "NoTemplate")
    assert "elsewhere on the sky" in got.reason
    assert got.counts["stars"] > 40
    assert got.facts.fwhm is not None


def test_another_band_is_no_template(night: Night) -> None:
    exposure = replace(night.exposure, band="i")
    got = process(exposure, night.templates, PipelineSettings())
    assert got.outcome == "no_template"
    assert "of band r" in got.reason


def test_an_exposure_is_never_its_own_template(night: Night) -> None:
    """A folder that new exposures are written to may be the folder of the templates."""
    folder = DirectoryTemplates(Path(night.exposure.science).parent)
    got = process(night.exposure, folder, PipelineSettings())
    assert got.outcome == "no_template"
    assert "the exposure itself" in got.reason


def test_a_template_of_another_size_is_not_aligned(night: Night) -> None:
    template = SingleTemplate(night.template_dir / "template.fits", aligned=True)
    got = process(night.exposure, template, PipelineSettings(aligned=True))
    assert (got.outcome, got.stage) == ("failed", "template")
    assert "not aligned" in got.reason


def test_another_sky_is_rejected_not_published(
    night: Night, changed: Callable[..., Exposure]
) -> None:
    """The right coordinates over the wrong stars: the subtraction is worthless."""
    got = process(
        changed(lambda data: np.ascontiguousarray(data[::-1, ::-1])),
        night.templates, PipelineSettings(max_candidates=40),
    )  # fmt: skip
    assert got.outcome == "rejected_quality"
    assert got.candidates == ()
    assert got.stage in ("subtract", "detect", "measure")


def test_a_subtraction_out_of_bounds_is_rejected_with_its_numbers(night: Night) -> None:
    got = night.run(limits=QualityLimits(sky_chi2=(2.0, 3.0)))
    assert (got.outcome, got.stage, got.error_class) == (
        "rejected_quality", "subtract", "SubtractionFailed",
    )  # fmt: skip
    assert "sfft: variance of the scaled sky is" in got.reason
    assert got.quality is not None
    assert 0.9 < got.quality.sky_chi2 < 1.1
    assert list(got.seconds) == STAGES[:6]


def test_a_flood_of_candidates_is_not_published(night: Night, result: ExposureResult) -> None:
    most = len(result.candidates) - 1
    got = night.run(max_candidates=most)
    assert got.outcome == "rejected_quality"
    assert f"more than the {most} candidates that are allowed" in got.reason
    assert got.candidates == ()
    assert got.counts["candidates" if got.stage == "measure" else "detections"] > most
    none = night.run(max_candidates=0)
    assert (none.outcome, none.stage) == ("rejected_quality", "detect")


# --- the ladder of engines --------------------------------------------------------------------


def test_the_next_engine_is_tried_when_one_fails(
    night: Night, result: ExposureResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def broken(pair: object) -> sfft.Difference:
        tried.append("broken")
        raise SubtractionFailed("it does not run here")

    def untrustworthy(pair: Any) -> sfft.Difference:
        tried.append("untrustworthy")
        difference = sfft.subtract(pair)
        return replace(difference, quality=replace(difference.quality, sky_chi2=7.0))

    engines = {
        "broken": broken,
        "untrustworthy": untrustworthy,
        "sfft": partial(sfft.subtract, threads=1),
        "never": broken,
    }
    monkeypatch.setattr(pipeline, "_engines", lambda settings: engines)
    got = night.run(engines=("broken", "untrustworthy", "sfft", "never"))
    assert got.outcome == "published"
    assert tried == ["broken", "untrustworthy"]
    assert [c.flux for c in got.candidates] == [c.flux for c in result.candidates]
    said = [note for note in got.notes if note.startswith("tried before")]
    assert said == [
        "tried before: broken: it does not run here",
        "tried before: untrustworthy: variance of the scaled sky is 7, outside 0.6 to 1.5",
    ]
    none = night.run(engines=("broken", "untrustworthy"))
    assert (none.outcome, none.stage) == ("rejected_quality", "subtract")
    assert "broken: it does not run here | untrustworthy: variance" in none.reason


def test_an_engine_that_does_not_exist_is_the_operators_mistake(night: Night) -> None:
    assert "sfft" in pipeline.engine_names()
    with pytest.raises(ValueError, match="unknown engine 'magic'; there are sfft"):
        night.run(engines=("magic",))


def test_a_defect_is_not_hidden(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*args: object, **words: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(pipeline, "detect", defect)
    with pytest.raises(ZeroDivisionError):
        night.run()
