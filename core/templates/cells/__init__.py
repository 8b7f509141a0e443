"""Surveys that are cut into cells: which are needed, fetched, and made one image."""

from core.templates.cells.cell import Cell, CellFormat, CellImage
from core.templates.cells.survey import SurveyTemplates

__all__ = ["Cell", "CellFormat", "CellImage", "SurveyTemplates"]
