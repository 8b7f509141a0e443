"""What the process that fetches ahead does with one pointing, or one exposure that waits."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from core.deadline import Deadline
from core.errors import ExposureError, InputRefused, NoTemplate
from service import logs
from service.events import ExposureEvent
from service.fetching_ahead import fetch_ahead
from service.input_addresses import is_address
from service.inputs import to_exposure
from service.pointings import Pointing
from service.template_tally import TemplateCounts, TemplateTally

if TYPE_CHECKING:
    from pathlib import Path

    from core.templates import TemplateProvider, TemplateRequest
    from service.work import WorkSettings

logger = logging.getLogger(__name__)

_NICE = 10  # a worker that wants the core gets it

PrefetchResult = Literal["fetched", "none", "unavailable", "refused"]


@dataclass(frozen=True)
class Prefetched:
    """What came of it; the template itself stays in the cache."""

    result: PrefetchResult
    message: str
    counts: TemplateCounts


class PrefetchWork:
    """Asks the providers of templates for what will be asked soon.

    Parameters
    ----------
    roots : tuple of Path
        Folders that the files of exposures may be read from.
    templates : TemplateProvider
        The same as those of the workers, over the same cache.
    min_overlap : float
        The least fraction of an exposure that a template must cover.
    tally : TemplateTally
        The observer of ``templates``.
    seconds : float
        The most time that the providers may take for an exposure, all together.
    pointing_seconds : float
        And for a pointing.
    """

    def __init__(
        self,
        roots: tuple[Path, ...],
        templates: TemplateProvider,
        min_overlap: float,
        tally: TemplateTally,
        *,
        seconds: float,
        pointing_seconds: float,
    ) -> None:
        self._roots = roots
        self._templates = templates
        self._min_overlap = min_overlap
        self._tally = tally
        self._seconds = seconds
        self._pointing_seconds = pointing_seconds

    def warm_up(self) -> None:
        """There is nothing to compile."""

    def __call__(self, task: ExposureEvent | Pointing) -> Prefetched:
        """Fetch for one of them; every `ExposureError` is an answer."""
        with logs.about_exposure(_name(task)):
            try:
                message = fetch_ahead(self._templates, self._request(task))
            except NoTemplate as error:
                return self._answer("none", str(error))
            except ExposureError as error:
                return self._answer("unavailable" if error.retriable else "refused", str(error))
            return self._answer("fetched", message)

    def _request(self, task: ExposureEvent | Pointing) -> TemplateRequest:
        from core.exposure_grid import read_grid
        from core.templates import TemplateRequest

        if isinstance(task, Pointing):
            return task.request(self._min_overlap, Deadline(self._pointing_seconds))
        if is_address(task.science_uri):
            raise InputRefused("its file is fetched only once, when a worker takes it")
        exposure = to_exposure(task, self._roots)
        wcs, shape = read_grid(exposure)
        return TemplateRequest(
            wcs, shape, band=task.band, mjd_mid=task.mjd_mid, min_overlap=self._min_overlap,
            exclude=(exposure.science,), deadline=Deadline(self._seconds),
        )  # fmt: skip

    def _answer(self, result: PrefetchResult, message: str) -> Prefetched:
        return Prefetched(result, message, self._tally.take())


def _name(task: ExposureEvent | Pointing) -> str:
    return task.pointing_id if isinstance(task, Pointing) else task.exposure_id


def make_prefetch_work(settings: WorkSettings) -> PrefetchWork:
    """Make the work of the process that fetches ahead; runs in it."""
    from service.templates import make_templates

    logs.configure(settings.log.level, settings.log.format)
    os.nice(_NICE)
    tally = TemplateTally()
    source = make_templates(
        settings.templates.ahead(), max_pixels=settings.pipeline.max_pixels, observer=tally
    )
    return PrefetchWork(
        settings.inputs.roots,
        source.templates,
        settings.pipeline.min_overlap,
        tally,
        seconds=settings.templates.most_seconds,
        pointing_seconds=settings.templates.ahead().most_seconds,
    )
