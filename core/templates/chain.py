"""Several sources of templates, asked one after another until one delivers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from core.bands import canonical_band
from core.deadline import Deadline
from core.errors import (
    ExposureError,
    ForbiddenAddress,
    InputUnavailable,
    NoTemplate,
    RequestRefused,
)
from core.templates.filling import WHOLE, Filling, bare_request, filled, mismatch
from core.templates.index import Frame
from core.templates.observer import RequestResult, Silent, TemplateObserver
from core.templates.shared_grids import grid_fingerprint
from core.templates.template import (
    Identifying,
    Keeping,
    Template,
    TemplateProvider,
    TemplateRequest,
)

logger = logging.getLogger(__name__)

_REMEMBERED = 1000  # pointings whose template was partial
_NONE = ("none",)  # in an identity: who was asked for the rest and had nothing


@dataclass(frozen=True)
class Link:
    """One provider of a chain.

    Attributes
    ----------
    provider : TemplateProvider
        Checks its footprint itself, before it asks anybody.
    seconds : float
        The most time that it may take.
    bands : mapping of str to str
        Band of the exposure to band of the provider; names of either are compared as
        `core.bands.canonical_band` understands them. A band that is not in it stays as it is.
    """

    provider: TemplateProvider
    seconds: float = math.inf
    bands: Mapping[str, str] = field(default_factory=dict)

    def request(self, request: TemplateRequest) -> TemplateRequest:
        """Return the request as the provider is to see it."""
        table = {canonical_band(ours): theirs for ours, theirs in self.bands.items()}
        band = canonical_band(request.band)
        whole = request.deadline or Deadline(math.inf)
        return replace(
            request, band=table.get(band, request.band), deadline=whole.shorter(self.seconds)
        )


class ChainTemplates:
    """The template of the first provider that has one.

    A provider that has none, cannot be asked, or delivers what cannot be used gives way to the
    next. Part of the exposure is enough if it is the ``min_overlap`` of the request; the rest is
    masked when the template is projected, or filled from the next of the same band, if both have
    zero points.

    Parameters
    ----------
    links : sequence of Link
        In the order in which they are asked.
    observer : TemplateObserver or None
        Hears what each said.
    filling : Filling or None
        How a template that covers a part is filled; None to leave the rest masked.
    """

    name = "chain"

    def __init__(
        self,
        links: Sequence[Link],
        *,
        observer: TemplateObserver | None = None,
        filling: Filling | None = None,
    ) -> None:
        if not links:
            raise ValueError("a chain of templates needs at least one provider")
        self.links = tuple(links)
        self._observer: TemplateObserver = observer or Silent()
        self._filling = filling
        self._asked: dict[tuple[str, ...], tuple[_Asked, ...]] = {}

    def find(self, request: TemplateRequest) -> Template:
        """Return the first template that is delivered.

        Raises
        ------
        NoTemplate
            If every provider was asked and has none; the message says what each said.
        InputUnavailable
            If none delivers, and at least one could not be asked: it may have one.
        """
        said: list[str] = []
        faults: list[str] = []
        unavailable = False
        for place, link in enumerate(self.links):
            name = link.provider.name
            if request.deadline is not None and request.deadline.expired:
                said.append(f"{name}: not asked, there was no time left")
                unavailable = True
                continue
            try:
                template = self._ask(link, request)
            except ExposureError as error:
                result = _result_of(error)
                self._observer.requested(name, result)
                said.append(f"{name}: {error}")
                if result != "none":
                    faults.append(said[-1])
                unavailable |= error.retriable
                continue
            self._observer.requested(name, "found")
            if faults:
                logger.warning("the template is of %s; %s", name, "; ".join(faults))
            return self._filled(template, request, self.links[place + 1 :])
        message = f"no template{_where(request)}; {'; '.join(said)}"
        if unavailable:
            raise InputUnavailable(message)
        raise NoTemplate(message)

    def identify(self, request: TemplateRequest) -> tuple[str, ...] | None:
        """Return the identity of the template that is expected; None where nobody can say."""
        for link in self.links:
            if not isinstance(link.provider, Identifying):
                return None
            try:
                identity = link.provider.identify(link.request(request))
            except ExposureError:  # `find` would go on to the next, too
                continue
            return None if identity is None else self._with_rest(identity, request)
        return None

    def kept_by(self, request: TemplateRequest) -> str | None:
        """Return whose template is here already, so that nothing is to be fetched for it.

        Returns
        -------
        str or None
            Name of the provider; None where it is in doubt, or there is none.
        """
        for link in self.links:
            if not isinstance(link.provider, Keeping):
                return None
            try:
                kept = link.provider.is_kept(link.request(request))
            except NoTemplate:  # `find` would go on to the next, too
                continue
            except ExposureError:
                return None
            return link.provider.name if kept else None
        return None

    def _filled(
        self, template: Template, request: TemplateRequest, links: Iterable[Link]
    ) -> Template:
        """Return the template, filled from others where it is to be."""
        if self._filling is None or template.facts.overlap >= WHOLE:
            return template
        own, asked, known = template.identity, [], True
        for link in links:
            part = bare_request(template, request)
            if part is None:
                break
            identity: tuple[str, ...] = _NONE
            try:
                other = link.provider.find(link.request(part))
            except ExposureError as error:
                self._observer.requested(link.provider.name, _result_of(error))
                logger.info("%s fills nothing: %s", link.provider.name, error)
                known &= not error.retriable
            else:
                self._observer.requested(link.provider.name, "found")
                identity = other.identity
                template = self._filled_from(other, template, request)
            asked.append(_Asked(link, replace(part, deadline=None), identity))
        if not (own and known and all(each.identity for each in asked)):
            return replace(template, identity=())
        if not asked:
            return template
        if len(self._asked) >= _REMEMBERED:
            self._asked.clear()
        self._asked[_pointing(own, request)] = tuple(asked)
        return replace(template, identity=_together(own, asked))

    def _filled_from(
        self, other: Template, template: Template, request: TemplateRequest
    ) -> Template:
        assert self._filling is not None
        reason = mismatch(template, other)
        if reason is None:
            try:
                return filled(template, other, request, self._filling)
            except ExposureError as error:
                reason = str(error)
        logger.info("%s is not filled: %s", template.facts.template_id, reason)
        return template

    def _with_rest(
        self, identity: tuple[str, ...], request: TemplateRequest
    ) -> tuple[str, ...] | None:
        """Return the identity of the whole, as far as it is known who is asked for the rest."""
        if self._filling is None or request.wcs is None:
            return identity
        now: list[_Asked] = []
        for each in self._asked.get(_pointing(identity, request), ()):
            provider = each.link.provider
            if not isinstance(provider, Identifying):
                return None
            try:
                part = replace(each.part, deadline=request.deadline)
                found = provider.identify(each.link.request(part))
            except ExposureError:
                found = _NONE
            if found is None:
                return None
            now.append(replace(each, identity=found))
        return _together(identity, now) if now else identity

    def _ask(self, link: Link, request: TemplateRequest) -> Template:
        template = link.provider.find(link.request(request))
        overlap = template.facts.overlap
        if overlap < request.min_overlap:
            raise NoTemplate(
                f"{template.facts.template_id} covers only {100 * overlap:.0f} % of the exposure, "
                f"{100 * request.min_overlap:.0f} % are needed"
            )
        return template


@dataclass(frozen=True)
class _Asked:
    """Who was asked for which part of what was bare, and what it has of it."""

    link: Link
    part: TemplateRequest
    identity: tuple[str, ...]


def _pointing(identity: tuple[str, ...], request: TemplateRequest) -> tuple[str, ...]:
    assert request.wcs is not None
    return *identity, grid_fingerprint(request.wcs, request.shape)


def _together(own: tuple[str, ...], asked: Iterable[_Asked]) -> tuple[str, ...]:
    parts = [part for each in asked for part in (each.link.provider.name, *each.identity)]
    return "filled", *own, *parts


def _result_of(error: ExposureError) -> RequestResult:
    if isinstance(error, ForbiddenAddress | RequestRefused):
        return "refused"
    if isinstance(error, NoTemplate):
        return "none"
    return "unavailable" if error.retriable else "error"


def _where(request: TemplateRequest) -> str:
    band = f"band {request.band}" if request.band else "any band"
    if request.wcs is None:
        return f" for {band}"
    ra, dec = Frame.of(request.wcs, request.shape).position
    return f" for RA {ra:.4f} Dec {dec:+.4f}, {band}"
