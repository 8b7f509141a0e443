"""Which HiPS is to be the template of which band."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from core.asinh import AsinhScale
from core.image import FloatImage
from core.templates.fetching.addresses import without_user

_PANSTARRS = re.compile(r"pan[-_ ]?starrs", re.IGNORECASE)
_LINEAR = re.compile(r"pan[-_ ]?starrs\S*/g/?(?=\s|$)", re.IGNORECASE)
_MOST_STORED = 40.0

HIPS_ASINH = AsinhScale(offset=0.0, soften=1.0)
"""The Pan-STARRS HiPS of CDS hold the asinh-scaled pixels of the stacks, without the two numbers of
their scale, which differ from sky cell to sky cell. Ones that are close to none (0 and 1) make the
fluxes linear within a cell; their zero point is not known."""


def is_asinh(name: str) -> bool:
    """Return whether a HiPS of this name is known to have asinh-scaled pixels.

    Those of Pan-STARRS have, but for that of *g*.
    """
    return _PANSTARRS.search(name) is not None and _LINEAR.search(name) is None


def are_linear(images: Iterable[FloatImage]) -> bool:
    """Return whether pixels are beyond what an asinh scale holds, so that they are fluxes.

    A name tells what a HiPS was; those of Pan-STARRS are being made anew with linear values. On an
    asinh scale 40 stands for a flux of 1e16, which no pixel of a sky survey has. Whatever is
    decided holds for all images of a frame together.
    """
    return any(bool((np.abs(image) > _MOST_STORED).any()) for image in images)


def linear_fluxes(scale: AsinhScale, stored: FloatImage) -> FloatImage:
    """Return the fluxes of asinh-scaled values; NaN for those that stand for none."""
    flux = scale.linear(stored)
    flux[~np.isfinite(flux)] = np.nan
    return flux


@dataclass(frozen=True)
class HipsSurvey:
    """A HiPS as a source of templates.

    Attributes
    ----------
    hips : str or None
        Identifier for hips2fits, such as ``CDS/P/DSS2/red``; None: only the tree is read.
    tree : str or None
        Folder or URL of its tree; None: only hips2fits is asked.
    band : str or None
        Whose template it is; None: of any band for which there is no other.
    pixel_scale : float or None
        Size in arcseconds of the pixels of the survey's images, which the values are fluxes in.
        None: what the ``properties`` of the tree say, else the size of its finest pixels.
    zero_point : float or None
        AB magnitude of a flux of 1 in one pixel of the survey's images.
    saturation : float or None
        From which (linear) value on stars are saturated.
    asinh : bool or None
        Whether the values are asinh-scaled, as in the HiPS of Pan-STARRS but for *g*; None: told by
        the names, that of the tree and the HiPS's own, unless the values are beyond such a scale.

    Raises
    ------
    ValueError
        If neither tree nor identifier is given, or a zero point of an unknown pixel.
    """

    hips: str | None = None
    tree: str | None = None
    band: str | None = None
    pixel_scale: float | None = None
    zero_point: float | None = None
    saturation: float | None = None
    asinh: bool | None = None

    def __post_init__(self) -> None:
        if not self.hips and not self.tree:
            raise ValueError("a HiPS survey needs an identifier for hips2fits, or a tree")
        if self.pixel_scale is not None and not 0 < self.pixel_scale < 3600:
            raise ValueError(f"{self.label}: a pixel scale of {self.pixel_scale} arcsec is no size")
        if self.zero_point is not None and self.pixel_scale is None and self.hips:
            raise ValueError(
                f"{self.label}: a zero point means nothing without the size of the survey's "
                "pixels; give pixel_scale too"
            )

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return self.hips or without_user(self.tree or "")

    @property
    def name(self) -> str:
        """What it is called in records: its identifier, else the last part of the tree's place."""
        return self.hips or (self.tree or "").rstrip("/").rpartition("/")[2]

    def asinh_scale(self, title: str = "") -> AsinhScale | None:
        """Return how to make the values linear; None where they are.

        Parameters
        ----------
        title : str
            What the HiPS calls itself.
        """
        known = is_asinh(f"{self.hips} {self.tree} {title}") if self.asinh is None else self.asinh
        return HIPS_ASINH if known else None
