"""Matching and subtracting: one interface, one file an engine."""

from core.subtraction.difference import Difference, SubtractionQuality
from core.subtraction.run_hotpants import run_hotpants
from core.subtraction.run_sfft import run_sfft

__all__ = ["Difference", "SubtractionQuality", "run_hotpants", "run_sfft"]
