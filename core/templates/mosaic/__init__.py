"""Several images made one: common zero point and background, no seams."""

from core.templates.mosaic.mosaicking import mosaic

__all__ = ["mosaic"]
