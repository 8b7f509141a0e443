"""Templates from any survey that is published as a HiPS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.wcs.utils import proj_plane_pixel_area

from core.bands import same_band
from core.celestial import to_icrs
from core.deadline import Deadline
from core.errors import ExposureError, InputUnavailable, NoTemplate, UnusableInput
from core.exposure import TemplateFacts
from core.image import ExposureFacts, FloatImage, Image, MaskBit, MaskImage
from core.tangent import FloatArray, TangentGrid, unit_vectors
from core.templates.cache import FileCache, NoCache
from core.templates.fetching import Fetcher
from core.templates.hips2fits import HIPS2FITS_ENDPOINTS, Hips2Fits
from core.templates.hips_averages import average_tiles, block_means, finer_keys
from core.templates.hips_projection import project_tiles, stack_tiles, tiles_under
from core.templates.hips_properties import HipsProperties
from core.templates.hips_survey import HipsSurvey
from core.templates.hips_tree import HipsTree, LocalTree, RemoteTree, read_tiles
from core.templates.template import Template, TemplateRequest

logger = logging.getLogger(__name__)

_MOST_FINER = 4
_FINER = 2.0  # a survey with pixels coarser than the exposure's is not asked for finer ones


@dataclass(frozen=True)
class HipsLimits:
    """How much may be read for one template.

    Attributes
    ----------
    max_pixels : int
        Of the template.
    max_tiles : int
        For asinh-scaled surveys, whose coarser tiles are averages of logarithms, finer ones are
        read as long as they are not more than these.
    threads : int
        For the projection.
    """

    max_pixels: int = 20_000 * 20_000
    max_tiles: int = 256
    threads: int = 1


@dataclass(frozen=True)
class _Found:
    """Pixels on a grid, before they are a template."""

    data: FloatImage
    mask: MaskImage
    grid: TangentGrid
    sources: tuple[str, ...]


_Way = Callable[[HipsSurvey, TemplateRequest, Deadline], _Found]


class _NotCovered(NoTemplate):
    """The survey is there, and does not cover the exposure."""


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
        core.errors.InputUnavailable
            If one that might cannot be read now.
        """
        if request.wcs is None:
            raise NoTemplate("the exposure has no WCS, so no HiPS can be placed on it")
        deadline = request.deadline or Deadline.never()
        failures: list[ExposureError] = []
        surveys = self._of_band(request)
        for survey in surveys:
            for way in self._ways(survey):
                try:
                    return self._template(survey, way(survey, request, deadline), request)
                except (NoTemplate, InputUnavailable, UnusableInput) as error:
                    logger.info("%s gives no template: %s", survey.label, error)
                    failures.append(error)
                    if isinstance(error, _NotCovered):
                        break  # the same survey would say the same in another way
        if not failures:
            bands = ", ".join(sorted({survey.band or "any" for survey in self._surveys}))
            raise NoTemplate(
                f"no HiPS for band {request.band or '(unknown)'}: the settings have "
                f"{bands or 'none'}, or only some that would have to be asked for"
            )
        said = "; ".join(dict.fromkeys(str(error) for error in failures))
        if any(error.retriable for error in failures):
            raise InputUnavailable(said)
        raise NoTemplate(said)

    def _of_band(self, request: TemplateRequest) -> list[HipsSurvey]:
        of_band = [s for s in self._surveys if same_band(s.band, request.band)]
        of_any = [s for s in self._surveys if s.band is None or request.band is None]
        return list(dict.fromkeys(of_band + of_any))

    def _ways(self, survey: HipsSurvey) -> list[_Way]:
        """Return how to get at a survey, in order."""
        ways: list[_Way] = [self._from_tree] if survey.tree else []
        if survey.hips and self._fetcher is not None:
            ways.append(self._from_service)
        return ways

    def _from_tree(
        self, survey: HipsSurvey, request: TemplateRequest, deadline: Deadline
    ) -> _Found:
        tree = self._tree(survey)
        properties = tree.properties(deadline)
        order = properties.order_for(_pixel_scale(request))
        grid = self._grid(request, properties.pixel(order), shared=False)
        coverage = tree.coverage(properties, deadline)
        if coverage is not None and not coverage.covers(*_places(request)).any():
            raise _NotCovered(
                f"{survey.label}: its coverage map has nothing at RA {grid.ra:.4f} Dec "
                f"{grid.dec:+.4f}{_coverage(properties)}"
            )
        tiles, numbers = self._tiles(survey, tree, properties, order, grid, deadline)
        if not tiles:
            raise _NotCovered(
                f"{survey.label}: none of its {numbers} tiles of order {order} around RA "
                f"{grid.ra:.4f} Dec {grid.dec:+.4f} is there{_coverage(properties)}"
            )
        data, mask = project_tiles(
            stack_tiles(tiles, order, properties.tile_width),
            grid,
            properties.rotation,
            pixel_area=_survey_pixel(survey, properties) ** 2,
            saturation=np.inf if survey.saturation is None else survey.saturation,
            threads=self._limits.threads,
        )
        return _Found(data, mask, grid, (tree.place,))

    def _tiles(
        self,
        survey: HipsSurvey,
        tree: HipsTree,
        properties: HipsProperties,
        order: int,
        grid: TangentGrid,
        deadline: Deadline,
    ) -> tuple[dict[int, FloatImage], int]:
        """Return the linear tiles under a grid, and how many there could be."""
        keys = tiles_under(grid, order, properties.rotation)
        scale = survey.scale_of_pixels
        if scale is None:
            return read_tiles(tree, properties, order, keys.tolist(), deadline), keys.size
        deeper = 0
        while order + deeper < properties.order and (
            keys.size * 4 ** (deeper + 1) <= self._limits.max_tiles
        ):
            deeper += 1
        fine = read_tiles(
            tree, properties, order + deeper, finer_keys(keys, order, deeper).tolist(), deadline
        )
        linear = {key: scale.linear(tile) for key, tile in fine.items()}
        return average_tiles(linear, order, deeper), keys.size

    def _from_service(
        self, survey: HipsSurvey, request: TemplateRequest, deadline: Deadline
    ) -> _Found:
        assert self._fetcher is not None
        assert survey.hips is not None
        wanted = _pixel_scale(request)
        own = wanted if survey.pixel_scale is None else survey.pixel_scale / 3600
        grid = self._grid(request, max(wanted, own / _FINER), shared=True)
        service = Hips2Fits(self._fetcher, self._endpoints, self._cache)
        scale = survey.scale_of_pixels
        # As in `_tiles`: asinh-scaled values are asked for as fine as they are, made linear, and
        # averaged then.
        finer = 1 if scale is None else min(_MOST_FINER, max(1, round(grid.scale / own)))
        fine = grid.finer(finer)
        data = service.image(survey.hips, fine.wcs, fine.shape, deadline)
        if scale is not None:
            data = block_means(scale.linear(data), finer)
        mask = np.where(np.isfinite(data), 0, MaskBit.NO_DATA).astype(np.uint16)
        if survey.saturation is not None:
            with np.errstate(invalid="ignore"):
                mask[data >= survey.saturation] |= np.uint16(MaskBit.SATURATED)
        # The service leaves the values alone; without a pixel size their unit is that of the grid.
        unit = grid.scale if survey.pixel_scale is None else own
        data *= grid.pixel_areas() / np.float32(unit**2)
        return _Found(data, mask, grid, (survey.hips,))

    def _tree(self, survey: HipsSurvey) -> HipsTree:
        assert survey.tree is not None
        if not survey.tree.lower().startswith(("http://", "https://")):
            return LocalTree(survey.tree)
        if self._fetcher is None:
            raise NoTemplate(f"{survey.tree}: no archive may be asked, by the settings")
        return RemoteTree(survey.tree, self._fetcher, self._cache)

    def _grid(self, request: TemplateRequest, scale: float, *, shared: bool) -> TangentGrid:
        assert request.wcs is not None
        grid = TangentGrid.around(request.wcs, request.shape, scale, shared=shared)
        if grid.shape[0] * grid.shape[1] > self._limits.max_pixels:
            raise NoTemplate(
                f"a template of {grid.shape[1]} x {grid.shape[0]} pixels of {3600 * scale:.3g} "
                f"arcsec is larger than the limit of {self._limits.max_pixels}"
            )
        return grid

    def _template(self, survey: HipsSurvey, found: _Found, request: TemplateRequest) -> Template:
        holes = (found.mask & MaskBit.NO_DATA) != 0
        overlap = _overlap(found.grid, holes, request)
        if holes.all() or overlap < request.min_overlap:
            raise _NotCovered(
                f"{survey.label}: covers {100 * overlap:.0f} % of the exposure, "
                f"{100 * request.min_overlap:.0f} % are needed"
            )
        data = found.data
        data[holes] = np.median(data[~holes])
        facts = ExposureFacts(
            band=survey.band,
            zero_point=survey.zero_point,
            zero_point_origin=None if survey.zero_point is None else "survey",
        )
        image = Image(
            data=data, mask=found.mask, wcs=found.grid.wcs, facts=facts, name=survey.label
        )
        return Template(
            image=image,
            facts=TemplateFacts(
                provider=self.name,
                template_id=survey.label,
                band=survey.band,
                zero_point=survey.zero_point,
                overlap=overlap,
            ),
            sources=found.sources,
        )


def _pixel_scale(request: TemplateRequest) -> float:
    """Return the size of the exposure's pixels, degrees."""
    assert request.wcs is not None
    return float(np.sqrt(proj_plane_pixel_area(request.wcs.celestial)))


def _survey_pixel(survey: HipsSurvey, properties: HipsProperties) -> float:
    """Return the size of the pixels that the values are fluxes in, degrees."""
    if survey.pixel_scale is not None:
        return survey.pixel_scale / 3600
    return properties.survey_pixel or properties.pixel(properties.order)


def _coverage(properties: HipsProperties) -> str:
    if properties.sky_fraction is None:
        return ""
    return f" (it covers {100 * properties.sky_fraction:.3g} % of the sky)"


def _places(request: TemplateRequest) -> tuple[FloatArray, FloatArray]:
    """Return right ascension and declination of places all over the exposure, degrees."""
    assert request.wcs is not None
    ny, nx = request.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 65), np.linspace(0, ny - 1, 65))
    return to_icrs(request.wcs, x.ravel(), y.ravel())


def _overlap(grid: TangentGrid, holes: npt.NDArray[np.bool_], request: TemplateRequest) -> float:
    """Return the part of the exposure on which the template has data."""
    x, y = grid.pixels(unit_vectors(*_places(request)))
    inside = np.isfinite(x) & np.isfinite(y)
    rows, columns = np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)
    return float((~holes[rows, columns]).sum() / x.size)
