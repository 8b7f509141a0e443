"""The stages of the pipeline are told as they begin."""

import json
from pathlib import Path

import pytest

from core.pipeline import PipelineSettings, process
from core.simulation.survey import SurveySettings, simulate_survey
from core.templates.directory import DirectoryTemplates
from service import stage_reports
from service.events import decode
from service.inputs import to_exposure


def test_stages_are_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_reports, "_listeners", [])
    told: list[str] = []
    stage_reports.listen(told.append)
    survey = simulate_survey(SurveySettings(n_exposures=1, shape=(200, 200)), tmp_path)
    event = decode(json.dumps(survey.exposures[0].event).encode())
    exposure = to_exposure(event, [tmp_path])
    templates = DirectoryTemplates(survey.template_dir)
    result = process(exposure, templates, PipelineSettings(), on_stage=stage_reports.enter_stage)
    assert told[:4] == ["read", "noise", "stars", "template"]
    assert list(dict.fromkeys(told)) == list(result.seconds)
