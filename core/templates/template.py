"""What a template provider is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from core.exposure import TemplateFacts
from core.image import Image

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from core.deadline import Deadline


@dataclass(frozen=True)
class TemplateRequest:
    """The pixel grid and the band that a template is wanted for.

    Attributes
    ----------
    wcs : astropy.wcs.WCS or None
        Celestial WCS of the exposure; None where template and exposure are aligned already.
    shape : tuple of int
        (ny, nx) of the exposure.
    band : str or None
        Band of the exposure.
    mjd_mid : float or None
        Mid-exposure; a template must not contain the exposure itself.
    min_overlap : float
        The least fraction of the exposure that a template must cover.
    exclude : tuple of str
        Files that must not be the template: the exposure itself.
    deadline : Deadline or None
        By when the answer is wanted; None where it may take as long as it takes.
    """

    wcs: WCS | None
    shape: tuple[int, int]
    band: str | None = None
    mjd_mid: float | None = None
    min_overlap: float = 0.3
    exclude: tuple[str, ...] = ()
    deadline: Deadline | None = None


@dataclass(frozen=True)
class Template:
    """A template on its own pixel grid, or already on the grid that was asked for.

    Attributes
    ----------
    image : Image
        Pixels, mask, variance (if known), WCS and facts.
    facts : TemplateFacts
        Where it came from.
    on_grid : bool
        True when ``image`` already lies on the pixel grid of the request.
    sources : tuple of str
        What it was made of: names of files, sky cells or tiles. Empty where that is not told.
    origin : ndarray of uint8 or uint16, shape (ny, nx), or None
        Index into ``sources`` of what contributes most to each pixel; the largest number of the
        type where nothing does. None where there is a single source.
    identity : tuple of str
        All that determines the pixels but the grid of the request: names of files with their sizes
        and times of change, or survey and release. Empty where it is not known; what is projected
        of such a template is not kept.
    """

    image: Image
    facts: TemplateFacts
    on_grid: bool = False
    sources: tuple[str, ...] = ()
    origin: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | None = None
    identity: tuple[str, ...] = ()


class TemplateProvider(Protocol):
    """Anything that can find a template."""

    @property
    def name(self) -> str:
        """What the provider is called in status records and packets."""
        ...

    def find(self, request: TemplateRequest) -> Template:
        """Return the best template for the request.

        Raises
        ------
        core.errors.NoTemplate
            If none covers the exposure; the message says what was looked at.
        core.errors.InputUnavailable
            If the source of templates cannot be reached now.
        """
        ...


@runtime_checkable
class Keeping(Protocol):
    """A provider that can tell whether there is anything to fetch for a template."""

    def is_kept(self, request: TemplateRequest) -> bool:
        """Return whether all that `TemplateProvider.find` would read is here already.

        Only where it covers the whole exposure, as far as headers and names of tiles tell; and
        nobody is asked but for the listing of a folder. Whatever is in doubt is not kept.

        Raises
        ------
        core.errors.NoTemplate
            If it is known without asking that there is no template.
        """
        ...


@runtime_checkable
class Identifying(Protocol):
    """A provider that can tell which template it would give without reading its pixels."""

    def identify(self, request: TemplateRequest) -> tuple[str, ...] | None:
        """Return the `Template.identity` that `TemplateProvider.find` would give, None if unknown.

        It is only a guess of what to look up; nothing is kept under it that is not of this
        identity.

        Raises
        ------
        core.errors.NoTemplate, core.errors.InputUnavailable
            As ``find`` would.
        """
        ...
