"""Matching and subtracting: one interface, one file an engine."""

from core.subtraction.difference import Difference, SubtractionQuality
from core.subtraction.run_hotpants import run_hotpants
from core.subtraction.run_sfft import run_sfft
from core.subtraction.run_zogy import run_zogy

__all__ = ["Difference", "SubtractionQuality", "run_hotpants", "run_sfft", "run_zogy"]
