"""Templates from any survey that is published as a HiPS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from core.bands import same_band
from core.deadline import Deadline
from core.errors import (
    ExposureError,
    ForbiddenAddress,
    InputUnavailable,
    NoTemplate,
    RequestRefused,
    UnusableInput,
)
from core.exposure import TemplateFacts
from core.image import ExposureFacts, Image
from core.templates.cache import FileCache, KeptOnly, NoCache
from core.templates.epochs import as_facts
from core.templates.fetching.fetcher import Fetcher
from core.templates.hips.assembly import (
    HipsLimits,
    NotCovered,
    SurveyPixels,
    TilePlan,
    pixels_from_service,
    service_identity,
)
from core.templates.hips.hips2fits import HIPS2FITS_ENDPOINTS, Hips2Fits
from core.templates.hips.survey import HipsSurvey
from core.templates.hips.tree import HipsTree, LocalTree, RemoteTree
from core.templates.template import Template, TemplateRequest

logger = logging.getLogger(__name__)

_WHOLE = 0.99  # of the exposure
_Way = Callable[[HipsSurvey, TemplateRequest, Deadline], SurveyPixels]


class HipsTemplates:
    """The template from the first HiPS of the exposure's band that has one.

    The tiles of a tree are preferred, since neighbouring exposures share them; where there is no
    tree, or it cannot be reached, hips2fits is asked. The template lies on a tangent plane along
    the axes of the exposure, at the scale of the HiPS pixels that are just finer than those of the
    exposure; it has no variance, which is measured from its pixels later.

    Parameters
    ----------
    surveys : sequence of HipsSurvey
        In order of preference.
    fetcher : Fetcher or None
        For trees by HTTP and for hips2fits; None: only local trees can be read.
    cache : TemplateCache or NoCache
        For tiles and cut-outs.
    endpoints : tuple of str
        Of hips2fits.
    limits : HipsLimits
        How much may be read.
    """

    name = "hips"

    def __init__(
        self,
        surveys: Sequence[HipsSurvey],
        *,
        fetcher: Fetcher | None = None,
        cache: FileCache | None = None,
        endpoints: tuple[str, ...] = HIPS2FITS_ENDPOINTS,
        limits: HipsLimits | None = None,
    ) -> None:
        self._surveys = tuple(surveys)
        self._fetcher = fetcher
        self._cache = cache or NoCache()
        self._endpoints = endpoints
        self._limits = limits or HipsLimits()

    def find(self, request: TemplateRequest) -> Template:
        """Return the template for the request.

        Raises
        ------
        core.errors.NoTemplate
            If no HiPS of the band covers enough of the exposure; the message says which were looked
            at and what was wrong with each.
        core.errors.ForbiddenAddress
            If there is none because an address is not allowed.
        core.errors.RequestRefused
            If the service knows none of the surveys.
        core.errors.InputUnavailable
            If one that might cannot be read now.
        """
        deadline = request.deadline or Deadline.never()
        failures: list[ExposureError] = []
        for survey in self._of_band(request):
            ways = self._ways(survey)
            for way in ways:
                # A tree that hangs must leave time to ask the service.
                part = deadline if way is ways[-1] else deadline.shorter(deadline.remaining() / 2)
                try:
                    return self._template(survey, way(survey, request, part), request)
                except (NoTemplate, InputUnavailable, UnusableInput) as error:
                    logger.info("%s gives no template: %s", survey.label, error)
                    failures.append(error)
                    if isinstance(error, NotCovered):
                        break  # the same survey would say the same in another way
        said = "; ".join(dict.fromkeys(str(error) for error in failures))
        if any(error.retriable for error in failures):
            raise InputUnavailable(said)
        if any(isinstance(error, ForbiddenAddress) for error in failures):
            raise ForbiddenAddress(said)
        if failures and all(isinstance(error, RequestRefused) for error in failures):
            raise RequestRefused(said)
        raise NoTemplate(said or "no archive may be asked, by the settings")

    def identify(self, request: TemplateRequest) -> tuple[str, ...] | None:
        """Return the identity of the template that is expected; see `Identifying`.

        Raises
        ------
        core.errors.NoTemplate
            If there is no HiPS of the band, or those that there are do not cover the exposure.
        """
        deadline = request.deadline or Deadline.never()
        bare: list[str] = []
        for survey in self._of_band(request):
            if survey.tree:
                try:
                    tree = self._tree(survey)
                    return TilePlan.of(survey, tree, request, self._limits, deadline).identity
                except NotCovered as error:
                    bare.append(str(error))
                    continue
                except (NoTemplate, InputUnavailable, UnusableInput) as error:
                    logger.info("%s cannot be looked at: %s", survey.label, error)
            if survey.hips and self._fetcher is not None:
                return service_identity(survey)
            return None
        raise NoTemplate("; ".join(bare))

    def is_kept(self, request: TemplateRequest) -> bool:
        """Return whether nothing is to be fetched for a template; see `Keeping`.

        Raises
        ------
        core.errors.NoTemplate
            If there is no HiPS of the band, or those that there are do not cover the exposure.
        """
        never, kept = Deadline.never(), KeptOnly(self._cache)
        bare: list[str] = []
        for survey in self._of_band(request):
            try:
                if survey.tree:
                    tree = self._tree(survey, kept)
                    plan = TilePlan.of(survey, tree, request, self._limits, never)
                    return plan.is_whole(request, never)
                if self._fetcher is not None:
                    service = Hips2Fits(self._fetcher, self._endpoints, kept)
                    pixels = pixels_from_service(survey, service, request, self._limits, never)
                    return pixels.overlap(request) >= _WHOLE
            except NotCovered as error:
                bare.append(str(error))
            except (NoTemplate, InputUnavailable, UnusableInput):
                return False
        raise NoTemplate("; ".join(bare) or "no archive may be asked, by the settings")

    def _of_band(self, request: TemplateRequest) -> list[HipsSurvey]:
        """Return the surveys for a request, those of its band first."""
        if request.wcs is None:
            raise NoTemplate("the exposure has no WCS, so no HiPS can be placed on it")
        of_band = [s for s in self._surveys if same_band(s.band, request.band)]
        of_any = [s for s in self._surveys if s.band is None or request.band is None]
        surveys = list(dict.fromkeys(of_band + of_any))
        if not surveys:
            bands = ", ".join(sorted({survey.band or "any" for survey in self._surveys}))
            raise NoTemplate(
                f"no HiPS for band {request.band or '(unknown)'}: the settings have "
                f"{bands or 'none'}"
            )
        return surveys

    def _ways(self, survey: HipsSurvey) -> list[_Way]:
        """Return how to get at a survey, in order."""
        ways: list[_Way] = [self._from_tree] if survey.tree else []
        if survey.hips and self._fetcher is not None:
            ways.append(self._from_service)
        return ways

    def _from_tree(
        self, survey: HipsSurvey, request: TemplateRequest, deadline: Deadline
    ) -> SurveyPixels:
        plan = TilePlan.of(survey, self._tree(survey), request, self._limits, deadline)
        return plan.read(self._limits, deadline)

    def _from_service(
        self, survey: HipsSurvey, request: TemplateRequest, deadline: Deadline
    ) -> SurveyPixels:
        assert self._fetcher is not None
        service = Hips2Fits(self._fetcher, self._endpoints, self._cache)
        return pixels_from_service(survey, service, request, self._limits, deadline)

    def _tree(self, survey: HipsSurvey, cache: FileCache | None = None) -> HipsTree:
        assert survey.tree is not None
        if not survey.tree.lower().startswith(("http://", "https://")):
            return LocalTree(survey.tree)
        if self._fetcher is None:
            raise NoTemplate(f"{survey.label}: no archive may be asked, by the settings")
        return RemoteTree(survey.tree, self._fetcher, cache or self._cache)

    def _template(
        self, survey: HipsSurvey, pixels: SurveyPixels, request: TemplateRequest
    ) -> Template:
        holes, overlap = pixels.holes, pixels.overlap(request)
        if holes.all() or overlap < request.min_overlap:
            raise NotCovered(
                f"{survey.label}: covers {100 * overlap:.0f} % of the exposure, "
                f"{100 * request.min_overlap:.0f} % are needed"
            )
        data = pixels.data
        data[holes] = np.median(data[~holes])
        facts = ExposureFacts(
            band=survey.band,
            zero_point=survey.zero_point,
            zero_point_origin=None if survey.zero_point is None else "survey",
        )
        return Template(
            image=Image(
                data=data,
                mask=pixels.mask,
                wcs=pixels.grid.wcs,
                facts=facts,
                name=survey.label,
                noise_power=pixels.noise_power,
            ),
            facts=TemplateFacts(
                provider=self.name,
                template_id=survey.name,
                band=survey.band,
                zero_point=survey.zero_point,
                overlap=overlap,
                **as_facts(pixels.epochs),
            ),
            sources=(pixels.source,),
            identity=pixels.identity,
        )
