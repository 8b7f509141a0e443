"""A gnomonic (TAN) pixel grid: the flat grid around an exposure that survey data are put onto."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS

from core.celestial import to_icrs
from core.errors import UnusableInput

FloatArray = npt.NDArray[np.float64]

_WIDEST = 0.5  # cosine: a tangent plane is not stretched over more than 60 degrees from its centre
_EDGE_POINTS = 33


@dataclass(frozen=True)
class TangentGrid:
    """A pixel grid on the plane that touches the sphere at one point.

    Attributes
    ----------
    ra, dec : float
        ICRS position of the tangent point, degrees.
    scale : float
        Size of a pixel at the tangent point, degrees.
    angle : float
        Position angle of the y axis there, degrees from north through east. At 0, north is up and
        east is left; the grid is never mirrored.
    shape : tuple of int
        (ny, nx).
    centre : tuple of float
        0-based pixel (x, y) of the tangent point.
    """

    ra: float
    dec: float
    scale: float
    angle: float
    shape: tuple[int, int]
    centre: tuple[float, float]

    @property
    def wcs(self) -> WCS:
        """The grid as a WCS."""
        sine, cosine = np.sin(np.radians(self.angle)), np.cos(np.radians(self.angle))
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.crval = [self.ra, self.dec]
        wcs.wcs.crpix = [self.centre[0] + 1, self.centre[1] + 1]
        wcs.wcs.cd = self.scale * np.array([[-cosine, sine], [sine, cosine]])
        wcs.wcs.lonpole = 180.0  # also at the pole, where the default is 0
        wcs.wcs.radesys = "ICRS"
        wcs.pixel_shape = (self.shape[1], self.shape[0])
        wcs.wcs.set()
        return wcs

    @property
    def axes(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The tangent point as a unit vector, and the steps of one pixel in x and in y.

        The direction of a pixel is ``point + (x - centre x) step_x + (y - centre y) step_y``, not
        normalised.
        """
        point, east, north = _basis(self.ra, self.dec)
        step = np.radians(self.scale)
        sine, cosine = np.sin(np.radians(self.angle)), np.cos(np.radians(self.angle))
        return (
            point,
            step * (sine * north - cosine * east),
            step * (cosine * north + sine * east),
        )

    @classmethod
    def around(
        cls,
        wcs: WCS,
        shape: tuple[int, int],
        scale: float,
        *,
        margin: int = 60,
        shared: bool = False,
    ) -> TangentGrid:
        """Return a grid along the axes of an exposure that contains it.

        Parameters
        ----------
        wcs : WCS
            Celestial WCS of the exposure; rotated, mirrored, at a pole: all the same.
        shape : tuple of int
            Its (ny, nx).
        scale : float
            Degrees.
        margin : int
            Pixels around it, at least.
        shared : bool
            Round place, angle and size of the grid (to about an eighth of the frame and to 15
            degrees), so that the exposures of one field mostly have the same grid.

        Raises
        ------
        UnusableInput
            If the exposure is not on the sky, or is wider than a tangent plane can be.
        """
        ny, nx = shape
        cx, cy = 0.5 * (nx - 1), 0.5 * (ny - 1)
        up = max(1.0, 0.01 * ny)
        ra, dec = to_icrs(wcs, [cx, cx], [cy, cy + up])
        if not np.isfinite([ra, dec]).all():
            raise UnusableInput("the WCS of the exposure puts its centre nowhere on the sky")
        _, east, north = _basis(ra[0], dec[0])
        towards = unit_vectors(ra[1:], dec[1:])[0]
        angle = float(np.degrees(np.arctan2(towards @ east, towards @ north)))
        place, step = (float(ra[0]), float(dec[0])), 1
        outline = unit_vectors(*to_icrs(wcs, *_outline(shape)))
        if shared:
            step = _power_of_two(max(shape) / 8)
            place, angle = _rounded(*place, scale * step), 15.0 * round(angle / 15)
        flat = cls(*place, scale, angle, (1, 1), (0.0, 0.0))
        x, y = flat.pixels(outline)
        if not (np.isfinite(x) & np.isfinite(y)).all():
            raise UnusableInput(
                "the exposure does not fit onto a tangent plane: it spans more than 60 degrees, "
                "or its WCS puts a part of it nowhere on the sky"
            )
        (x0, nx), (y0, ny) = (_span(v, margin, step) for v in (x, y))
        return cls(*place, scale, angle, (ny, nx), (float(-x0), float(-y0)))

    def pixels(self, directions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the 0-based pixels of unit vectors; NaN farther than 60 degrees away.

        Parameters
        ----------
        directions : ndarray of float64, shape (n, 3)
            ICRS.
        """
        point, step_x, step_y = self.axes
        depth = directions @ point
        # Written so that NaN is outside.
        depth = np.where(depth > _WIDEST, depth, np.nan)
        step2 = np.radians(self.scale) ** 2
        return (
            self.centre[0] + directions @ step_x / depth / step2,
            self.centre[1] + directions @ step_y / depth / step2,
        )

    def finer(self, times: int) -> TangentGrid:
        """Return the grid whose blocks of ``times`` x ``times`` pixels are this one's pixels."""
        middle = 0.5 * (times - 1)
        return replace(
            self,
            scale=self.scale / times,
            shape=(self.shape[0] * times, self.shape[1] * times),
            centre=(self.centre[0] * times + middle, self.centre[1] * times + middle),
        )

    def pixel_areas(self) -> npt.NDArray[np.float32]:
        """Return the area of every pixel on the sky, square degrees, shape ``shape``.

        It falls with the cube of the cosine of the distance from the tangent point.
        """
        step = np.radians(self.scale)
        x = step * (np.arange(self.shape[1]) - self.centre[0])
        y = step * (np.arange(self.shape[0]) - self.centre[1])
        squared = 1 + x[None, :] ** 2 + y[:, None] ** 2
        return np.asarray(self.scale**2 / (squared * np.sqrt(squared)), dtype=np.float32)


def unit_vectors(lon: npt.ArrayLike, lat: npt.ArrayLike) -> FloatArray:
    """Return directions as unit vectors.

    Parameters
    ----------
    lon, lat : array_like, shape (n,)
        Degrees.

    Returns
    -------
    ndarray of float64, shape (n, 3)
    """
    lon, lat = np.radians(np.asarray(lon, float)), np.radians(np.asarray(lat, float))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _basis(ra: float, dec: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return a direction, and east and north there."""
    a, d = np.radians(ra), np.radians(dec)
    return (
        np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)]),
        np.array([-np.sin(a), np.cos(a), 0.0]),
        np.array([-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a), np.cos(d)]),
    )


def _outline(shape: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Return pixels along the edges of an image."""
    ny, nx = shape
    x = np.linspace(-0.5, nx - 0.5, _EDGE_POINTS)
    y = np.linspace(-0.5, ny - 0.5, _EDGE_POINTS)
    low, right, top = np.full(x.size, -0.5), np.full(y.size, nx - 0.5), np.full(x.size, ny - 0.5)
    return np.concatenate([x, x, low, right]), np.concatenate([low, top, y, y])


def _span(values: FloatArray, margin: int, step: int) -> tuple[int, int]:
    """Return where a row of pixels around some places begins, and its length."""
    first = int(np.floor((values.min() - margin) / step)) * step
    last = int(np.ceil((values.max() + margin) / step)) * step
    return first, last - first + 1


def _power_of_two(value: float) -> int:
    return int(2 ** max(0, round(np.log2(value))))


def _rounded(ra: float, dec: float, step: float) -> tuple[float, float]:
    """Return the nearest of a set of places on the sky that are about ``step`` degrees apart."""
    rows = max(1, round(180 / step))
    row = round((dec + 90) / 180 * rows)
    dec = 180 * row / rows - 90
    columns = max(1, round(360 * np.cos(np.radians(dec)) / step))
    return 360 * (round(ra / 360 * columns) % columns) / columns, dec
