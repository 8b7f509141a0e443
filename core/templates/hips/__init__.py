"""Templates from any survey that is published as a HiPS."""

from core.templates.hips.assembly import HipsLimits
from core.templates.hips.provider import HipsTemplates
from core.templates.hips.survey import HipsSurvey
from core.templates.hips.warming import warm_hips

__all__ = ["HipsLimits", "HipsSurvey", "HipsTemplates", "warm_hips"]
