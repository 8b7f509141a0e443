"""Templates in which the stars that their survey has saturated are masked, by a catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from astropy.table import Table

from core.bands import canonical_band
from core.errors import ExposureError, NoTemplate
from core.image import MaskBit
from core.templates.cache import KeptOnly
from core.templates.catalogues import CatalogueSource, reference_stars
from core.templates.given_stars import GivenStars
from core.templates.index import Frame
from core.templates.masking import mask_template
from core.templates.template import (
    Identifying,
    Keeping,
    Template,
    TemplateProvider,
    TemplateRequest,
)

_VERSION = "1"  # of how stars are masked


@dataclass(frozen=True)
class StarMask:
    """Which stars are masked; see `core.templates.masking.mask_template`.

    Attributes
    ----------
    stars : str or GivenStars
        One of `core.templates.catalogues.CATALOGUES`, or a file.
    source : CatalogueSource or None
        Where a catalogue is asked for; None for VizieR itself.
    brighter_than : float or None
        Magnitude.
    unknown : bool
        Stars without magnitude as well; not for catalogues in which those are the faintest.
    photometric : bool
        Stars that are fainter in the template than in the catalogue.
    dilate : int
        Size of the square that is masked around each, in pixels of the template.
    bands : mapping of str to str
        Band of the template to band of the catalogue, where the names differ.
    """

    stars: str | GivenStars
    source: CatalogueSource | None = None
    brighter_than: float | None = None
    unknown: bool = False
    photometric: bool = False
    dilate: int = 5
    bands: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, ...]:
        """All that determines the mask, but the template.

        Raises
        ------
        core.errors.InputUnavailable
            If the file is not there.
        """
        stars = (self.stars,) if isinstance(self.stars, str) else self.stars.identity
        rules = (self.brighter_than, self.unknown, self.photometric, self.dilate)
        bands = sorted(self.bands.items())
        return "stars masked", _VERSION, *stars, repr(rules), repr(bands)

    def applied(self, template: Template, request: TemplateRequest) -> Template:
        """Return a template with its stars flagged as `MaskBit.SATURATED`.

        Raises
        ------
        core.errors.NoTemplate
            If it is not known of which band the template is.
        core.errors.InputUnavailable
            If the catalogue cannot be asked now.
        core.errors.UnusableInput
            If the catalogue does not have the band.
        """
        image = template.image
        if image.wcs is None or request.wcs is None:
            return template
        band = self._band(template, request)
        stars = self._around(request, band)
        holes = (image.mask & MaskBit.NO_DATA) != 0
        masked = mask_template(
            np.where(holes, np.float32(np.nan), image.data) if self.photometric else image.data,
            stars,
            cat_saturation_mag=self.brighter_than,
            cat_col_mag=f"{band}mag",
            cat_col_mag_err=f"e_{band}mag",
            mask_nans=False,
            mask_masked=self.unknown,
            mask_photometric=self.photometric,
            wcs=image.wcs,
            dilate=self.dilate,
        )
        mask = image.mask | np.where(masked, np.uint16(MaskBit.SATURATED), np.uint16(0))
        identity = (*template.identity, *self.identity) if template.identity else ()
        return replace(template, image=replace(image, mask=mask), identity=identity)

    def is_kept(self, request: TemplateRequest) -> bool:
        """Return whether the stars around an exposure are here already."""
        if isinstance(self.stars, GivenStars):
            return True
        if self.source is None:
            return False
        short = canonical_band(request.band)
        kept = replace(self, source=replace(self.source, cache=KeptOnly(self.source.cache)))
        try:
            kept._around(request, self._translated(short or ""))
        except ExposureError:
            return False
        return True

    def _band(self, template: Template, request: TemplateRequest) -> str:
        name = template.facts.band or template.image.facts.band or request.band
        short = canonical_band(name)
        if name is None or short is None:
            raise NoTemplate(
                f"{template.facts.template_id}: its band is not known, so its stars cannot be "
                "masked by their magnitudes; state the band in its header"
            )
        return self._translated(short)

    def _translated(self, band: str) -> str:
        table = {canonical_band(ours): theirs for ours, theirs in self.bands.items()}
        return table.get(band, band)

    def _around(self, request: TemplateRequest, band: str) -> Table:
        assert request.wcs is not None
        if isinstance(self.stars, GivenStars):
            return self.stars.around(Frame.of(request.wcs, request.shape), band)
        # Those that others are compared with, and those without magnitude, no limit would select.
        limited = not (self.photometric or self.unknown)
        return reference_stars(
            self.stars,
            request.wcs,
            request.shape,
            band,
            brighter_than=self.brighter_than if limited else None,
            source=self.source,
            deadline=request.deadline,
        )


class StarMaskedTemplates:
    """The templates of a provider, their saturated stars masked.

    A catalogue that cannot be asked is as if the archive could not be: a template whose stars are
    to be masked is none without it.

    Parameters
    ----------
    provider : TemplateProvider
    mask : StarMask
    """

    def __init__(self, provider: TemplateProvider, mask: StarMask) -> None:
        self.provider = provider
        self._mask = mask

    @property
    def name(self) -> str:
        """What the provider is called in status records and packets."""
        return self.provider.name

    def find(self, request: TemplateRequest) -> Template:
        """Return the provider's template, masked.

        Raises
        ------
        core.errors.ExposureError
            What the provider raises, and what `StarMask.applied` does.
        """
        return self._mask.applied(self.provider.find(request), request)

    def identify(self, request: TemplateRequest) -> tuple[str, ...] | None:
        """Return the identity of the masked template, None where the provider cannot tell.

        Raises
        ------
        core.errors.ExposureError
            What the provider raises.
        """
        if not isinstance(self.provider, Identifying):
            return None
        identity = self.provider.identify(request)
        return (*identity, *self._mask.identity) if identity else identity

    def is_kept(self, request: TemplateRequest) -> bool:
        """Return whether neither the template nor the stars are to be fetched; see `Keeping`.

        Raises
        ------
        core.errors.ExposureError
            What the provider raises.
        """
        if not isinstance(self.provider, Keeping) or not self.provider.is_kept(request):
            return False
        return self._mask.is_kept(request)
