"""The providers of templates that the settings name, put together in one chain."""

from __future__ import annotations

from dataclasses import dataclass

from core.templates import TemplateProvider
from core.templates.cache import FileCache, NoCache, TemplateCache
from core.templates.catalogues import CatalogueSource
from core.templates.cells import SurveyTemplates
from core.templates.chain import ChainTemplates, Link
from core.templates.directory import DirectoryTemplates
from core.templates.fetching import ArchiveFiles, Fetcher, FetchPolicy
from core.templates.filling import Filling
from core.templates.given_stars import GivenStars
from core.templates.hips import HipsLimits, HipsSurvey, HipsTemplates, warm_hips
from core.templates.legacysurvey import LegacySurvey
from core.templates.observer import TemplateObserver
from core.templates.panstarrs import PanStarrsSurvey
from core.templates.star_mask import StarMask, StarMaskedTemplates
from service.template_settings import HipsSurveySettings, ProviderName, TemplateSettings


@dataclass(frozen=True)
class TemplateSource:
    """Whom to ask for templates, and where what was fetched is kept.

    Attributes
    ----------
    templates : ChainTemplates
        Asks all others.
    projected : FileCache or None
        Where projected templates are kept; None where they are not.
    cache : TemplateCache or None
        Where anything is kept; None where nothing is.
    """

    templates: ChainTemplates
    projected: FileCache | None
    cache: TemplateCache | None = None

    @property
    def cache_size(self) -> int | None:
        """Bytes that are kept; None where nothing is."""
        return None if self.cache is None else self.cache.size

    def warm_up(self) -> None:
        """Compile what only the first template would wait for."""
        if any(link.provider.name == HipsTemplates.name for link in self.templates.links):
            warm_hips()


def make_templates(
    settings: TemplateSettings,
    *,
    max_pixels: int,
    threads: int = 1,
    observer: TemplateObserver | None = None,
) -> TemplateSource:
    """Put the providers together.

    Parameters
    ----------
    settings : TemplateSettings
    max_pixels : int
        Larger templates are refused.
    threads : int
        For the projection of what archives send.
    observer : TemplateObserver, optional
        Hears of requests, the cache and what archives send.
    """
    kept = make_cache(settings, observer) if settings.cache_bytes else None
    cache: FileCache = kept or NoCache()
    policy = FetchPolicy(
        settings.hosts,
        attempts=settings.attempts,
        timeout_seconds=settings.timeout_seconds,
        max_bytes=settings.max_download_bytes,
    )
    files = ArchiveFiles(Fetcher(policy, observer), cache)

    mask = _star_mask(settings, files)

    def provider(name: ProviderName) -> TemplateProvider:
        found = unmasked(name)
        chosen = settings.star_mask
        if mask is None or chosen is None or name not in (chosen.providers or (name,)):
            return found
        return StarMaskedTemplates(found, mask)

    def unmasked(name: ProviderName) -> TemplateProvider:
        if name == "directory":
            return DirectoryTemplates(
                settings.path, max_pixels=max_pixels, cache=cache, threads=threads
            )
        if name == "hips":
            return HipsTemplates(
                [_survey(each) for each in settings.hips],
                fetcher=files.fetcher,
                cache=cache,
                endpoints=settings.hips2fits_urls,
                limits=HipsLimits(max_pixels=max_pixels, threads=threads),
            )
        if name == "panstarrs":
            return SurveyTemplates(PanStarrsSurvey(settings.panstarrs_url), files, threads=threads)
        survey = LegacySurvey(
            settings.legacysurvey_url,
            south=settings.legacysurvey_south,
            north=settings.legacysurvey_north,
        )
        return SurveyTemplates(survey, files, threads=threads)

    links = [
        Link(provider(name), settings.deadline_seconds, bands=settings.bands_of(name))
        for name in settings.providers
    ]
    filling = Filling(max_pixels, threads) if settings.fill else None
    return TemplateSource(
        ChainTemplates(links, observer=observer, filling=filling),
        kept if settings.keep_projected else None,
        kept,
    )


def make_cache(
    settings: TemplateSettings, observer: TemplateObserver | None = None
) -> TemplateCache:
    """Return the cache that the settings name."""
    return TemplateCache(
        settings.cache,
        max_bytes=settings.cache_bytes,
        negative_seconds=settings.cache_hole_seconds,
        observer=observer,
    )


def _star_mask(settings: TemplateSettings, files: ArchiveFiles) -> StarMask | None:
    chosen = settings.star_mask
    if chosen is None:
        return None
    stars: str | GivenStars
    if chosen.file is not None:
        stars = GivenStars(
            chosen.file,
            ra=chosen.ra,
            dec=chosen.dec,
            magnitude=chosen.magnitude,
            error=chosen.error,
        )
    else:
        assert chosen.catalogue is not None  # one of them is required
        stars = chosen.catalogue
    return StarMask(
        stars,
        CatalogueSource(files.fetcher, files.cache, settings.vizier_url),
        brighter_than=chosen.brighter_than,
        unknown=chosen.unknown,
        photometric=chosen.photometric,
        dilate=chosen.dilate,
        bands=chosen.bands,
    )


def _survey(settings: HipsSurveySettings) -> HipsSurvey:
    return HipsSurvey(
        settings.survey,
        settings.tree,
        settings.band,
        settings.pixel_scale,
        settings.zero_point,
        settings.saturation,
        settings.asinh,
    )
