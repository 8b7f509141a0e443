"""Where a pixel of one grid lies on another, fast and with a bounded error.

A WCS with distortions costs microseconds a point, and a frame has millions of points; so the exact
mapping is evaluated on a coarse control grid and interpolated by cubic polynomials. The error is
measured in the middle of every cell, where it is largest, and the grid refined until it is small.
So is that of the Jacobian, at places all over the frame: fluxes are multiplied with it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from numba import njit

from core.celestial import celestial_frame, change_frame, to_pixels, to_sky

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

TOLERANCE = 1e-3  # source pixels; the promise to callers is 0.01
JACOBIAN_TOLERANCE = 1e-4  # relative: it is an error of fluxes
_STEPS = (64, 32, 16, 8)
_LOOKS = 9  # cells along each axis, whose Jacobian is looked at
_RINGS = 2  # nodes around the frame, for the interpolation and for the derivatives
_MARGIN = 8.0  # source pixels: nothing further outside can contribute


class PixelMapping(Protocol):
    """From target pixels to source pixels, both 0-based at pixel centres."""

    def rows(self, first: int, last: int, samples: int = 1) -> FloatArray:
        """Return source x, source y and Jacobian for some rows of the target.

        Parameters
        ----------
        first, last : int
            Rows ``first`` to ``last - 1`` of the target.
        samples : int
            Each target pixel is divided into ``samples`` x ``samples``, and the centres of the
            parts are mapped.

        Returns
        -------
        ndarray of float64, shape (3, (last - first) * samples, nx * samples)
            x, y, and the area of the *whole* target pixel in source pixels. NaN where the mapping
            is not defined.
        """
        ...


@dataclass(frozen=True)
class GridMapping:
    """A mapping interpolated on control nodes.

    Attributes
    ----------
    nodes : ndarray of float64, shape (3, my, mx)
        Source x, source y and Jacobian at the nodes.
    step : float
        Distance of the nodes in target pixels; node 0 lies at ``-2 step`` in both axes.
    nx : int
        Width of the target.
    """

    nodes: FloatArray
    step: float
    nx: int

    def rows(self, first: int, last: int, samples: int = 1) -> FloatArray:
        """See `PixelMapping.rows`."""
        out = np.empty((3, (last - first) * samples, self.nx * samples))
        _interpolate(self.nodes, float(self.step), first, samples, out)
        return out


@dataclass(frozen=True)
class SkyMapping:
    """The exact mapping, every pixel through both WCS; also the way to the nodes.

    Attributes
    ----------
    target, source : WCS
        Celestial WCS of both grids.
    nx : int
        Width of the target.
    """

    target: WCS
    source: WCS
    nx: int

    def __call__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the source pixels of some target pixels; NaN where there is none.

        A polynomial distortion folds back far outside its image, and a point of another part of
        the sky seems to lie on it: a point that does not come back to where it was is not mapped.
        """
        x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
        with np.errstate(all="ignore"):
            lon, lat = to_sky(self.target, x.ravel(), y.ravel())
            lon, lat = change_frame(
                lon, lat, celestial_frame(self.target), celestial_frame(self.source)
            )
            sx, sy = to_pixels(self.source, lon, lat)
            back_lon, back_lat = to_sky(self.source, sx, sy)
            apart = _separation(lon, lat, back_lon, back_lat)
            scale = float(np.mean(proj_plane_pixel_scales(self.source.celestial)))
            lost = ~(apart < 0.01 * scale)
        sx[lost] = np.nan
        sy[lost] = np.nan
        return sx.reshape(x.shape), sy.reshape(x.shape)

    def rows(self, first: int, last: int, samples: int = 1) -> FloatArray:
        """See `PixelMapping.rows`."""
        # One sample more on each side, for the derivatives.
        x = (np.arange(-1, self.nx * samples + 1) + 0.5) / samples - 0.5
        y = first + (np.arange(-1, (last - first) * samples + 1) + 0.5) / samples - 0.5
        sx, sy = self(x[None, :], y[:, None])
        out = np.empty((3, y.size - 2, x.size - 2))
        out[0], out[1] = sx[1:-1, 1:-1], sy[1:-1, 1:-1]
        half = samples / 2
        xx, xy = (sx[1:-1, 2:] - sx[1:-1, :-2]) * half, (sx[2:, 1:-1] - sx[:-2, 1:-1]) * half
        yx, yy = (sy[1:-1, 2:] - sy[1:-1, :-2]) * half, (sy[2:, 1:-1] - sy[:-2, 1:-1]) * half
        out[2] = np.abs(xx * yy - xy * yx)
        return out


def affine_mapping(matrix: npt.ArrayLike, shape: tuple[int, int]) -> GridMapping:
    """Return the mapping ``source = matrix @ (x, y, 1)``.

    Parameters
    ----------
    matrix : array_like, shape (2, 3)
        Source pixel from target pixel.
    shape : tuple of int
        (ny, nx) of the target.
    """
    matrix = np.asarray(matrix, dtype=float)
    ny, nx = shape
    step = float(max(ny, nx, 2))
    x, y = (_coordinates(length, step) for length in (nx, ny))
    nodes = np.empty((3, y.size, x.size))
    for axis in (0, 1):
        a, b, c = matrix[axis]
        nodes[axis] = a * x[None, :] + b * y[:, None] + c
    nodes[2] = abs(np.linalg.det(matrix[:, :2]))
    return GridMapping(nodes, step, nx)


def sky_mapping(
    target: WCS,
    shape: tuple[int, int],
    source: WCS,
    source_shape: tuple[int, int],
    affine: npt.ArrayLike | None = None,
) -> PixelMapping:
    """Return the mapping of a pixel grid through the sky onto another, to 0.01 pixels.

    Parameters
    ----------
    target : WCS
        Celestial WCS of the grid that is to be filled.
    shape : tuple of int
        Its (ny, nx).
    source : WCS
        Celestial WCS of the image that the pixels come from: TAN, TPV, SIP, anything of astropy.
    source_shape : tuple of int
        Its (ny, nx); what lies outside need not be exact.
    affine : array_like of shape (2, 3), or None
        Applied to the source pixels: a residual of the registration.

    Returns
    -------
    PixelMapping
        An interpolated one; the exact one where no grid is fine enough (a discontinuity of the
        projection inside the frame).
    """
    exact = SkyMapping(target, source, shape[1])
    best: GridMapping | None = None
    for step in _STEPS:
        found = _grid(exact, shape, float(step))
        if found is None:
            break
        error = _worst_error(found, exact, shape, source_shape)
        if error <= TOLERANCE:
            area_error = _worst_jacobian_error(found, exact, shape, source_shape)
            logger.debug(
                "control grid of %d px: %.2g px and %.2g of the area at worst",
                step,
                error,
                area_error,
            )
            best = found
            if area_error <= JACOBIAN_TOLERANCE:
                break
    if best is not None:
        # Where even the finest grid has errors in the area, the distortions of the WCS are rough;
        # its positions are right, and mapping every pixel exactly would take minutes.
        return best if affine is None else _adjusted(best, np.asarray(affine, float))
    logger.info("no control grid is fine enough; every pixel is mapped exactly")
    return exact if affine is None else _Adjusted(exact, np.asarray(affine, float))


@dataclass(frozen=True)
class _Adjusted:
    mapping: PixelMapping
    affine: FloatArray

    def rows(self, first: int, last: int, samples: int = 1) -> FloatArray:
        return _apply(self.affine, self.mapping.rows(first, last, samples))


def _adjusted(mapping: GridMapping, affine: FloatArray) -> GridMapping:
    return GridMapping(_apply(affine, mapping.nodes), mapping.step, mapping.nx)


def _apply(affine: FloatArray, rows: FloatArray) -> FloatArray:
    x, y, jacobian = rows
    return np.stack(
        [
            affine[0, 0] * x + affine[0, 1] * y + affine[0, 2],
            affine[1, 0] * x + affine[1, 1] * y + affine[1, 2],
            jacobian * abs(np.linalg.det(affine[:, :2])),
        ]
    )


def _coordinates(length: int, step: float) -> FloatArray:
    cells = max(1, int(np.ceil((length - 0.5) / step)))
    return np.asarray((np.arange(cells + 1 + 2 * _RINGS) - _RINGS) * step, dtype=np.float64)


def _grid(exact: SkyMapping, shape: tuple[int, int], step: float) -> GridMapping | None:
    """Return the control grid; None where no node is on the source's sky."""
    y, x = (_coordinates(length, step) for length in shape)
    sx, sy = exact(x[None, :], y[:, None])
    known = np.isfinite(sx)
    if known.sum() < 4:
        return None
    if not known.all():
        # Far outside the source; any smooth continuation will do, and the error is checked.
        design = np.stack(np.broadcast_arrays(x[None, :], y[:, None], np.ones(sx.shape)), axis=-1)
        for plane in (sx, sy):
            plane[~known] = design[~known] @ np.linalg.lstsq(design[known], plane[known])[0]
    nodes = np.empty((3, y.size, x.size))
    nodes[0], nodes[1] = sx, sy
    nodes[2] = np.abs(
        _derivative(sx, 1) * _derivative(sy, 0) - _derivative(sx, 0) * _derivative(sy, 1)
    ) / (step * step)
    return GridMapping(nodes, step, shape[1])


def _derivative(nodes: FloatArray, axis: int) -> FloatArray:
    """Return the derivative per node; of fourth order, but of first on the outermost ring."""
    result = np.gradient(nodes, axis=axis)
    f = np.moveaxis(nodes, axis, 0)
    if f.shape[0] >= 5:
        inner = (f[:-4] - 8 * f[1:-3] + 8 * f[3:-1] - f[4:]) / 12
        moved = np.moveaxis(result, axis, 0)
        moved[2:-2] = inner
        # One ring further out the same from one side: the first cells of the frame need it.
        moved[1] = (-3 * f[0] - 10 * f[1] + 18 * f[2] - 6 * f[3] + f[4]) / 12
        moved[-2] = (3 * f[-1] + 10 * f[-2] - 18 * f[-3] + 6 * f[-4] - f[-5]) / 12
    return result


def _worst_error(
    grid: GridMapping, exact: SkyMapping, shape: tuple[int, int], source_shape: tuple[int, int]
) -> float:
    """Return the largest error in the middle of the cells that touch the source, its pixels."""
    ny, nx = shape
    y, x = (
        np.clip(np.arange(grid.step / 2, length + grid.step / 2, grid.step), 0, length - 1)
        for length in (ny, nx)
    )
    sx, sy = exact(x[None, :], y[:, None])
    found = np.empty((3, y.size, x.size))
    _interpolate_at(grid.nodes, float(grid.step), x, y, found)
    with np.errstate(invalid="ignore"):
        error = np.hypot(found[0] - sx, found[1] - sy)
    error = np.where(np.isfinite(error), error, np.inf)
    error = error[_touching(found, sx, sy, grid.step, source_shape)]
    return float(error.max()) if error.size else 0.0


def _worst_jacobian_error(
    grid: GridMapping, exact: SkyMapping, shape: tuple[int, int], source_shape: tuple[int, int]
) -> float:
    """Return the largest relative error of the Jacobian, in the middle of some cells and beside."""
    y, x = (_looks(length, grid.step) for length in shape)
    found = np.empty((3, y.size, x.size))
    _interpolate_at(grid.nodes, float(grid.step), x, y, found)
    half = 0.5
    east, west = exact(x[None, :] + half, y[:, None]), exact(x[None, :] - half, y[:, None])
    north, south = exact(x[None, :], y[:, None] + half), exact(x[None, :], y[:, None] - half)
    with np.errstate(invalid="ignore"):
        true = np.abs(
            (east[0] - west[0]) * (north[1] - south[1])
            - (north[0] - south[0]) * (east[1] - west[1])
        )
        error = np.abs(found[2] / true - 1)
        sx, sy = 0.5 * (east[0] + west[0]), 0.5 * (east[1] + west[1])
    inside = _touching(found, sx, sy, 0.0, source_shape) & np.isfinite(error)
    return float(error[inside].max()) if inside.any() else 0.0


def _looks(length: int, step: float) -> FloatArray:
    """Return the middles of some cells from the first to the last, and what is beside them."""
    cells = np.unique(np.linspace(0, max(0.0, np.ceil(length / step) - 1), _LOOKS).round())
    places = np.concatenate([cells, cells + 0.5, [(length - 1) / step]]) * step
    return np.asarray(np.unique(np.clip(places, 0, length - 1)), dtype=np.float64)


def _touching(
    found: FloatArray, sx: FloatArray, sy: FloatArray, reach: float, source_shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Return which places, exact or as found, are within ``reach`` target pixels of the source."""
    result = np.zeros(sx.shape, dtype=bool)
    with np.errstate(invalid="ignore"):
        margin = _MARGIN + reach * np.sqrt(found[2])
        for px, py in ((sx, sy), (found[0], found[1])):
            result |= (
                (px > -margin)
                & (px < source_shape[1] + margin)
                & (py > -margin)
                & (py < source_shape[0] + margin)
            )
    return result


def _separation(lon: FloatArray, lat: FloatArray, lon2: FloatArray, lat2: FloatArray) -> FloatArray:
    """Return the small angle between two places in degrees (haversine)."""
    a, b = np.radians(lat), np.radians(lat2)
    h = np.sin((b - a) / 2) ** 2 + np.cos(a) * np.cos(b) * np.sin(np.radians(lon2 - lon) / 2) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(h, 0, 1)))), dtype=np.float64)


@njit(cache=True, nogil=True)
def _interpolate(nodes, step, first, samples, out):  # type: ignore[no-untyped-def]
    n_rows, n_columns = out.shape[1], out.shape[2]
    x = (np.arange(n_columns) + 0.5) / samples - 0.5
    y = first + (np.arange(n_rows) + 0.5) / samples - 0.5
    _interpolate_at(nodes, step, x, y, out)


@njit(cache=True, nogil=True)
def _interpolate_at(nodes, step, x, y, out):  # type: ignore[no-untyped-def]
    """Cubic Lagrange interpolation through four nodes in each axis; y first, then x."""
    mx = nodes.shape[2]
    row = np.empty((3, mx))
    coefficients = np.empty((3, 4))
    for r in range(y.size):
        v = y[r] / step + 2.0
        k = min(max(int(np.floor(v)), 1), nodes.shape[1] - 3)
        t = v - k
        c0 = -t * (t - 1.0) * (t - 2.0) / 6.0
        c1 = (t + 1.0) * (t - 1.0) * (t - 2.0) / 2.0
        c2 = -(t + 1.0) * t * (t - 2.0) / 2.0
        c3 = (t + 1.0) * t * (t - 1.0) / 6.0
        for q in range(3):
            for m in range(mx):
                row[q, m] = (
                    c0 * nodes[q, k - 1, m]
                    + c1 * nodes[q, k, m]
                    + c2 * nodes[q, k + 1, m]
                    + c3 * nodes[q, k + 2, m]
                )
        cell = -1
        for i in range(x.size):
            u = x[i] / step + 2.0
            m = min(max(int(np.floor(u)), 1), mx - 3)
            if m != cell:
                cell = m
                for q in range(3):
                    f0, f1 = row[q, m - 1], row[q, m]
                    f2, f3 = row[q, m + 1], row[q, m + 2]
                    coefficients[q, 0] = f1
                    coefficients[q, 1] = -f0 / 3.0 - f1 / 2.0 + f2 - f3 / 6.0
                    coefficients[q, 2] = (f0 + f2) / 2.0 - f1
                    coefficients[q, 3] = (f3 - f0) / 6.0 + (f1 - f2) / 2.0
            u -= m
            for q in range(3):
                out[q, r, i] = coefficients[q, 0] + u * (
                    coefficients[q, 1] + u * (coefficients[q, 2] + u * coefficients[q, 3])
                )
