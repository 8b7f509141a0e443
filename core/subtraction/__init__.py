"""Matching and subtracting: one interface, one file an engine."""

from core.subtraction.difference import Difference, SubtractionQuality

__all__ = ["Difference", "SubtractionQuality"]
