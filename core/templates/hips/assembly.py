"""The pixels of a HiPS around an exposure: from its tiles, or from hips2fits."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from core.celestial import pixel_size, to_icrs
from core.deadline import Deadline
from core.errors import NoTemplate
from core.image import FloatImage, MaskBit, MaskImage
from core.tangent import FloatArray, TangentGrid, unit_vectors
from core.templates.epochs import Epochs
from core.templates.hips.averages import average_tiles, block_means, finer_keys
from core.templates.hips.healpix import IntArray, nested_number
from core.templates.hips.hips2fits import Hips2Fits
from core.templates.hips.projection import project_tiles, tiles_at, tiles_under
from core.templates.hips.properties import HipsProperties
from core.templates.hips.stack import stack_tiles
from core.templates.hips.survey import HipsSurvey, are_linear, linear_fluxes
from core.templates.hips.tree import HipsTree, read_tiles
from core.templates.template import TemplateRequest

# Quintic splines at one scale: 1 / (mean over all phases of the sum of the squared weights)². What
# made the tiles, and what hips2fits does, comes on top; it is measured later.
SPLINE_NOISE_POWER = 1.187
INTERPOLATED = 1.001  # by how much is to be measured
_MOST_FINER = 4
_FINER = 2.0  # a survey with pixels coarser than the exposure's is not asked for finer ones


class NotCovered(NoTemplate):
    """The survey is there, and does not cover the exposure."""


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
class SurveyPixels:
    """A survey around an exposure, on a plane.

    Attributes
    ----------
    data : ndarray of float32, shape grid.shape
        Fluxes in the pixels of the grid, in units of the survey; NaN where there is nothing.
    mask : ndarray of uint16, shape grid.shape
        `MaskBit` NO_DATA and SATURATED.
    grid : TangentGrid
        The plane.
    source : str
        Where they came from.
    identity : tuple of str
        All that determines them, but the grid.
    noise_power : float
        The least by which their noise is tied together (`core.image.Image.noise_power`).
    epochs : Epochs or None
        Of the survey, where that is known.
    """

    data: FloatImage
    mask: MaskImage
    grid: TangentGrid
    source: str
    identity: tuple[str, ...]
    noise_power: float = SPLINE_NOISE_POWER
    epochs: Epochs | None = None

    @property
    def holes(self) -> npt.NDArray[np.bool_]:
        """Where there is nothing, shape grid.shape."""
        return (self.mask & MaskBit.NO_DATA) != 0

    def overlap(self, request: TemplateRequest) -> float:
        """Return the part of the exposure on which there is data."""
        x, y = self.grid.pixels(unit_vectors(*_places(request)))
        inside = np.isfinite(x) & np.isfinite(y)
        rows, columns = np.rint(y[inside]).astype(int), np.rint(x[inside]).astype(int)
        return float((~self.holes[rows, columns]).sum() / x.size)


@dataclass(frozen=True)
class TilePlan:
    """Which tiles are to be read for an exposure.

    Attributes
    ----------
    survey, tree, properties
        Whose tiles.
    order : int
        In whose pixels the exposure's are to be made.
    deeper : int
        How many orders further down the tiles are that are read.
    grid : TangentGrid
        The plane they are put onto.
    keys : ndarray of int64
        Tiles of ``order`` under it.
    """

    survey: HipsSurvey
    tree: HipsTree
    properties: HipsProperties
    order: int
    deeper: int
    grid: TangentGrid
    keys: IntArray

    @classmethod
    def of(
        cls,
        survey: HipsSurvey,
        tree: HipsTree,
        request: TemplateRequest,
        limits: HipsLimits,
        deadline: Deadline,
    ) -> TilePlan:
        """Return the plan for a request, after a look at what the HiPS says that it covers.

        Raises
        ------
        NoTemplate
            If there is no HiPS that can give templates, or it does not cover the exposure.
        core.errors.InputUnavailable
            If it cannot be read now.
        """
        properties = tree.properties(deadline)
        order = properties.order_for(_pixel_scale(request))
        grid = _grid(request, properties.pixel(order), limits, shared=False)
        coverage = tree.coverage(properties, deadline)
        if coverage is not None and not coverage.covers(*_places(request)).any():
            raise NotCovered(
                f"{survey.label}: its coverage map has nothing at RA {grid.ra:.4f} Dec "
                f"{grid.dec:+.4f}{_part_of_sky(properties)}"
            )
        keys = tiles_under(grid, order, properties.rotation)
        deeper = 0
        if survey.asinh_scale(properties.title) is not None:
            while (
                order + deeper < properties.order
                and keys.size * 4 ** (deeper + 1) <= limits.max_tiles
            ):
                deeper += 1
        return cls(survey, tree, properties, order, deeper, grid, keys)

    @property
    def identity(self) -> tuple[str, ...]:
        """All that determines the pixels, but the grid."""
        return (
            *_identity(self.survey),
            self.tree.place,
            self.properties.release,
            f"order {self.order} + {self.deeper}",
            self.tree.state(self.order + self.deeper, self._wanted()),
        )

    def read(self, limits: HipsLimits, deadline: Deadline) -> SurveyPixels:
        """Read the tiles and put them onto the plane.

        Raises
        ------
        NotCovered
            If none of them is there.
        core.errors.InputUnavailable
            If one of them cannot be read now.
        """
        identity = self.identity
        tiles = read_tiles(
            self.tree, self.properties, self.order + self.deeper, self._wanted(), deadline
        )
        if not tiles:
            raise NotCovered(
                f"{self.survey.label}: none of its {self.keys.size} tiles of order {self.order} "
                f"around RA {self.grid.ra:.4f} Dec {self.grid.dec:+.4f} is there"
                f"{_part_of_sky(self.properties)}"
            )
        scale = self.survey.asinh_scale(self.properties.title)
        if scale is not None:
            if self.survey.asinh or not are_linear(tiles.values()):
                tiles = {key: linear_fluxes(scale, tile) for key, tile in tiles.items()}
            tiles = average_tiles(tiles, self.order, self.deeper)
        data, mask = project_tiles(
            stack_tiles(tiles, self.order, self.properties.tile_width),
            self.grid,
            self.properties.rotation,
            pixel_area=_survey_pixel(self.survey, self.properties) ** 2,
            saturation=np.inf if self.survey.saturation is None else self.survey.saturation,
            threads=limits.threads,
        )
        return SurveyPixels(
            data, mask, self.grid, self.tree.place, identity, epochs=self.properties.epochs
        )

    def is_whole(self, request: TemplateRequest, deadline: Deadline) -> bool:
        """Return whether there is a tile at every place of an exposure.

        All tiles, those around the exposure as well, are made sure to be here first.

        Raises
        ------
        core.errors.InputUnavailable
            If one of them cannot be fetched now.
        """
        order = self.order + self.deeper
        holes = [
            key
            for key in self._wanted()
            if not self.tree.has_tile(
                self.properties, order, int(nested_number(key, order)), deadline
            )
        ]
        if not holes:
            return True
        needed = tiles_at(unit_vectors(*_places(request)), order, self.properties.rotation)
        return not np.isin(holes, needed).any()

    def _wanted(self) -> list[int]:
        return finer_keys(self.keys, self.order, self.deeper).tolist()


def pixels_from_service(
    survey: HipsSurvey,
    service: Hips2Fits,
    request: TemplateRequest,
    limits: HipsLimits,
    deadline: Deadline,
) -> SurveyPixels:
    """Ask hips2fits for the pixels of a survey around an exposure.

    Raises
    ------
    NoTemplate
        If the service does not know the survey.
    core.errors.InputUnavailable
        If it cannot be reached.
    """
    assert survey.hips is not None
    wanted = _pixel_scale(request)
    own = wanted if survey.pixel_scale is None else survey.pixel_scale / 3600
    grid = _grid(request, max(wanted, own / _FINER), limits, shared=True)
    scale = survey.asinh_scale()
    # As with tiles: asinh-scaled values are asked for as fine as they are, made linear, and
    # averaged then.
    finer = 1 if scale is None else min(_MOST_FINER, max(1, round(grid.scale / own)))
    while finer > 1 and grid.shape[0] * grid.shape[1] * finer**2 > limits.max_pixels:
        finer -= 1
    fine = grid.finer(finer)
    data = service.image(survey.hips, fine.wcs, fine.shape, deadline)
    if scale is not None:
        if survey.asinh or not are_linear([data]):
            data = linear_fluxes(scale, data)
        data = block_means(data, finer)
    mask = np.where(np.isfinite(data), 0, MaskBit.NO_DATA).astype(np.uint16)
    if survey.saturation is not None:
        with np.errstate(invalid="ignore"):
            mask[data >= survey.saturation] |= np.uint16(MaskBit.SATURATED)
    # The service leaves the values alone; without a pixel size their unit is that of the grid.
    unit = grid.scale if survey.pixel_scale is None else own
    data *= grid.pixel_areas() / np.float32(unit**2)
    return SurveyPixels(
        data, mask, grid, survey.hips, service_identity(survey), noise_power=INTERPOLATED
    )


def service_identity(survey: HipsSurvey) -> tuple[str, ...]:
    """Return all that determines the pixels of a survey from hips2fits, but the grid."""
    return (*_identity(survey), "hips2fits")


def _identity(survey: HipsSurvey) -> tuple[str, ...]:
    return ("hips", *(repr(value) for value in astuple(survey)))


def _pixel_scale(request: TemplateRequest) -> float:
    """Return the size of the exposure's pixels, degrees."""
    assert request.wcs is not None
    return pixel_size(request.wcs)


def _grid(
    request: TemplateRequest, scale: float, limits: HipsLimits, *, shared: bool
) -> TangentGrid:
    assert request.wcs is not None
    grid = TangentGrid.around(request.wcs, request.shape, scale, shared=shared)
    if grid.shape[0] * grid.shape[1] > limits.max_pixels:
        raise NoTemplate(
            f"a template of {grid.shape[1]} x {grid.shape[0]} pixels of {3600 * scale:.3g} "
            f"arcsec is larger than the limit of {limits.max_pixels}"
        )
    return grid


def _survey_pixel(survey: HipsSurvey, properties: HipsProperties) -> float:
    """Return the size of the pixels that the values are fluxes in, degrees."""
    if survey.pixel_scale is not None:
        return survey.pixel_scale / 3600
    return properties.survey_pixel or properties.pixel(properties.order)


def _part_of_sky(properties: HipsProperties) -> str:
    if properties.sky_fraction is None:
        return ""
    return f" (it covers {100 * properties.sky_fraction:.3g} % of the sky)"


def _places(request: TemplateRequest) -> tuple[FloatArray, FloatArray]:
    """Return right ascension and declination of places all over the exposure, degrees."""
    assert request.wcs is not None
    ny, nx = request.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 65), np.linspace(0, ny - 1, 65))
    return to_icrs(request.wcs, x.ravel(), y.ravel())
