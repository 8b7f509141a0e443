"""Simulated images with a known truth: pairs for the tests of the science, surveys for the rest."""

from core.simulation.detector import Detector, SkyLevel
from core.simulation.injection import NoiseBudget
from core.simulation.pair import PairSettings, SimulatedPair, simulate_pair
from core.simulation.psf import SimulatedPSF
from core.simulation.render import add_galaxies, add_stars
from core.simulation.sky import Galaxies, Stars
from core.simulation.survey import (
    SimulatedExposure,
    SimulatedSurvey,
    SurveySettings,
    simulate_survey,
)

__all__ = [
    "Detector",
    "Galaxies",
    "NoiseBudget",
    "PairSettings",
    "SimulatedExposure",
    "SimulatedPSF",
    "SimulatedPair",
    "SimulatedSurvey",
    "SkyLevel",
    "Stars",
    "SurveySettings",
    "add_galaxies",
    "add_stars",
    "simulate_pair",
    "simulate_survey",
]
