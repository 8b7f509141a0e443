"""A worker's rehearsal: one small simulated exposure, all the way, before the first real one.

It imports, compiles or loads from the disk cache whatever the first exposure would have waited
for, and an installation that cannot process anything fails here, before the service is ready.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from core.pipeline import PipelineSettings, process
from core.simulation.survey import SurveySettings, simulate_survey
from core.templates.directory import DirectoryTemplates
from service.events import decode
from service.inputs import to_exposure
from service.packets import PacketSettings, encode_alerts

logger = logging.getLogger(__name__)

_SURVEY = SurveySettings(
    n_exposures=1,
    shape=(320, 320),
    star_density=3000.0,
    n_transients=5,
    bad_columns=0,
    fwhm_range=(3.0, 3.3),
    dither=3.0,
    rotation=0.0,
)


def rehearse(pipeline: PipelineSettings, packets: PacketSettings) -> int:
    """Simulate, process and encode one exposure; return the number of packets, keep nothing.

    The operator's engines and threads are used, but not the limits: they are not on trial here.
    """
    with TemporaryDirectory(prefix="skydelta-rehearsal-") as folder:
        survey = simulate_survey(_SURVEY, folder)
        event = decode(json.dumps(survey.exposures[0].event).encode())
        exposure = to_exposure(event, [Path(folder)])
        settings = PipelineSettings(
            engines=pipeline.engines, hotpants=pipeline.hotpants, threads=pipeline.threads
        )
        result = process(exposure, DirectoryTemplates(survey.template_dir), settings)
        alerts = encode_alerts(result, packets)
    logger.debug("rehearsal: %s, %d alerts; %s", result.outcome, len(alerts), result.reason)
    return len(alerts)
