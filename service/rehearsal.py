"""A worker's rehearsal: one small simulated exposure, all the way, before the first real one.

It imports, compiles or loads from the disk cache whatever the first exposure would have waited
for, and an installation that cannot process anything fails here, before the service is ready.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from core.pipeline import process
from core.simulation.survey import SurveySettings, simulate_survey
from core.templates.directory import DirectoryTemplates
from service.events import decode
from service.inputs import to_exposure
from service.packets import encode_alerts

if TYPE_CHECKING:
    from core.pipeline import PipelineSettings
    from service.packets import PacketSettings

logger = logging.getLogger(__name__)

_SURVEY = SurveySettings(
    n_exposures=1, shape=(400, 400), star_density=1500.0, n_transients=6, bad_columns=1
)


def rehearse(pipeline: PipelineSettings, packets: PacketSettings) -> None:
    """Simulate, process and encode one exposure; nothing of it is kept."""
    with TemporaryDirectory(prefix="skydelta-rehearsal-") as folder:
        survey = simulate_survey(_SURVEY, folder)
        event = decode(json.dumps(survey.exposures[0].event).encode())
        exposure = to_exposure(event, [Path(folder)])
        settings = replace(pipeline, max_pixels=max(pipeline.max_pixels, 400 * 400))
        result = process(exposure, DirectoryTemplates(survey.template_dir), settings)
        encode_alerts(result, packets)
    logger.debug("rehearsal: %s, %d candidates", result.outcome, len(result.candidates))
