"""Tiles with a border: each is subtracted with its own PSFs, and only its centre is kept."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue

import numba
import numpy as np
import numpy.typing as npt
import scipy.fft

from core.image import FloatImage
from core.psf import PSFModel
from core.subtraction.zogy.images import KnownImage
from core.subtraction.zogy.matching import Matching
from core.subtraction.zogy.transform import (
    TileModel,
    Workspace,
    plane_of,
    spectrum_of,
    subtract_tile,
    tile_kernels,
    transfer,
)

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tile:
    """The centre of a tile: rows ``y0`` to ``y1``, columns ``x0`` to ``x1`` (exclusive)."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y)."""
        return 0.5 * (self.x0 + self.x1 - 1), 0.5 * (self.y0 + self.y1 - 1)

    @property
    def half(self) -> tuple[float, float]:
        """Half-widths along x and y, at which u and v are 1."""
        return 0.5 * (self.x1 - self.x0), 0.5 * (self.y1 - self.y0)


@dataclass(frozen=True)
class TileGrid:
    """How a frame is cut.

    Attributes
    ----------
    shape : tuple of int
        (ny, nx) of the frame.
    tiles : tuple of int
        Number of tiles along y and x.
    border : int
        Pixels around the centre of each tile that are transformed with it and thrown away.
    """

    shape: tuple[int, int]
    tiles: tuple[int, int]
    border: int

    @property
    def padded(self) -> tuple[int, int]:
        """(ny, nx) of every transformed tile: the largest, with borders, at a fast length."""
        ny, nx = (
            int(scipy.fft.next_fast_len(-(-length // n) + 2 * self.border, real=True))
            for length, n in zip(self.shape, self.tiles, strict=True)
        )
        return ny, nx

    def __iter__(self) -> Iterator[Tile]:
        rows = np.linspace(0, self.shape[0], self.tiles[0] + 1).round().astype(int)
        columns = np.linspace(0, self.shape[1], self.tiles[1] + 1).round().astype(int)
        for y0, y1 in pairwise(rows):
            for x0, x1 in pairwise(columns):
                yield Tile(int(y0), int(y1), int(x0), int(x1))

    def cut(self, plane: FloatImage, tile: Tile, factor: float, out: FloatImage) -> FloatImage:
        """Copy a tile with its border, times a factor; the frame is mirrored at its edges.

        A star that the edge cuts is then cut in both images in the same way, and its residual is
        a fraction of what zeros would leave.
        """
        rows, columns = (
            _mirrored(np.arange(start - self.border, start - self.border + n), length)
            for start, n, length in zip((tile.y0, tile.x0), out.shape, self.shape, strict=True)
        )
        _copy(plane, rows, columns, np.float32(factor), out)
        return out


def _mirrored(index: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Fold indices back into 0 to length - 1; the first and last pixel are not repeated."""
    period = max(2 * (length - 1), 1)
    folded = index % period
    return np.asarray(np.minimum(folded, period - folded) if length > 1 else np.zeros_like(index))


@numba.njit(nogil=True, cache=True)
def _copy(plane, rows, columns, factor, out):  # type: ignore[no-untyped-def] # pragma: no cover
    for j in range(rows.size):
        row = plane[rows[j]]
        for i in range(columns.size):
            out[j, i] = factor * row[columns[i]]


@dataclass(frozen=True)
class TileInputs:
    """What the tiles are cut from.

    Attributes
    ----------
    science, template : KnownImage
        Their bad pixels replaced.
    science_noise, template_noise : ndarray of float64, shape (n_tiles_y, n_tiles_x)
        Sky noise of each tile, ADU.
    matching : Matching
    """

    science: KnownImage
    template: KnownImage
    science_noise: Float64
    template_noise: Float64
    matching: Matching


@dataclass(frozen=True)
class ProperPlanes:
    """The whole frame, put together from the tiles; all ndarray of float32, shape (ny, nx).

    Attributes
    ----------
    difference : ADU of the science image
    difference_variance : ADU², photon and detector noise
    template_difference : ADU, the template's part in the difference (to be subtracted)
    flux : PSF flux of a source at every pixel, ADU
    flux_variance : ADU²
    template_flux : the template's part in ``flux``
    information : F_S, inverse variance of ``flux`` where there is nothing but sky, 1 / ADU²
    """

    difference: FloatImage
    difference_variance: FloatImage
    template_difference: FloatImage
    flux: FloatImage
    flux_variance: FloatImage
    template_flux: FloatImage
    information: FloatImage


def model_of(inputs: TileInputs, grid: TileGrid, tile: Tile, index: tuple[int, int]) -> TileModel:
    """Evaluate PSFs, flux scale and shift at a tile's centre and edges."""
    x, y = tile.centre
    hx, hy = tile.half
    matching = inputs.matching
    scale = matching.flux_scale_at([x, x - hx, x + hx, x, x], [y, y, y, y - hy, y + hy])
    shift = matching.shift_at([x, x - hx, x + hx, x, x], [y, y, y, y - hy, y + hy])
    slope = 0.5 * (shift[[2, 4]] - shift[[1, 3]])
    ratio = inputs.science_noise[index] / (scale[0] * inputs.template_noise[index])
    return TileModel(
        _with_slopes(inputs.science.psf, x, y, hx, hy),
        _with_slopes(inputs.template.psf, x, y, hx, hy),
        float(ratio),
        (
            float(0.5 * np.log(scale[2] / scale[1])),
            float(0.5 * np.log(scale[4] / scale[3])),
        ),
        (float(shift[0, 0]), float(shift[0, 1])),
        ((float(slope[0, 0]), float(slope[0, 1])), (float(slope[1, 0]), float(slope[1, 1]))),
        inputs.science.trust,
        inputs.template.trust,
    )


def _with_slopes(
    psf: PSFModel, x: float, y: float, hx: float, hy: float
) -> npt.NDArray[np.float32]:
    return np.stack(
        [
            psf.at(x, y),
            0.5 * (psf.at(x + hx, y) - psf.at(x - hx, y)),
            0.5 * (psf.at(x, y + hy) - psf.at(x, y - hy)),
        ]
    )


def subtract_tiles(inputs: TileInputs, grid: TileGrid, *, threads: int = 1) -> ProperPlanes:
    """Subtract all tiles and put their centres together.

    Parameters
    ----------
    inputs : TileInputs
    grid : TileGrid
    threads : int
        Tiles that are worked on at a time; threads of the transforms where there is one tile.
    """
    planes = ProperPlanes(*(np.empty(grid.shape, dtype=np.float32) for _ in range(7)))
    tiles = list(grid)
    workers = max(1, threads // len(tiles))
    highest = max(tile.y1 - tile.y0 for tile in tiles)
    spaces: SimpleQueue[Workspace] = SimpleQueue()
    for _ in range(min(threads, len(tiles))):
        spaces.put(Workspace(grid.padded, highest))

    def work(number: int) -> None:
        space = spaces.get()
        index = divmod(number, grid.tiles[1])
        try:
            _one_tile(inputs, grid, tiles[number], index, planes, space, workers)
        finally:
            spaces.put(space)

    if threads > 1 and len(tiles) > 1:
        with ThreadPoolExecutor(min(threads, len(tiles))) as pool:
            list(pool.map(work, range(len(tiles))))
    else:
        for number in range(len(tiles)):
            work(number)
    return planes


def _one_tile(
    inputs: TileInputs,
    grid: TileGrid,
    tile: Tile,
    index: tuple[int, int],
    planes: ProperPlanes,
    space: Workspace,
    workers: int,
) -> None:
    model = model_of(inputs, grid, tile, index)
    noise = float(inputs.science_noise[index]), float(inputs.template_noise[index])
    rows = slice(grid.border, grid.border + tile.y1 - tile.y0)
    science, template = (
        spectrum_of(grid.cut(image.data, tile, 1 / unit, space.tile), out, workers=workers)
        for image, unit, out in zip(
            (inputs.science, inputs.template), noise, space.images, strict=True
        )
    )
    result = subtract_tile(science, template, model, rows, space, workers=workers)
    difference_variance, score_variance = _variances(
        inputs, grid, tile, model, rows, noise, space, workers
    )
    _assemble(
        (tile.y0, tile.y1, tile.x0, tile.x1, grid.border), tile.half, noise[0], model.rho,
        np.array(model.log_beta_slope), np.array(result.flux_norm),
        *result.difference, *result.score, result.template_difference, result.template_score,
        difference_variance, score_variance,
        planes.difference, planes.difference_variance, planes.template_difference,
        planes.flux, planes.flux_variance, planes.template_flux, planes.information,
    )  # fmt: skip


def _variances(
    inputs: TileInputs,
    grid: TileGrid,
    tile: Tile,
    model: TileModel,
    rows: slice,
    noise: tuple[float, float],
    space: Workspace,
    workers: int,
) -> tuple[FloatImage, FloatImage]:
    """Variances of D and S: those of the images under the squared kernels (equations 26 to 29)."""
    shape = grid.padded
    size = max(inputs.science.psf.size, inputs.template.psf.size)
    small = int(scipy.fft.next_fast_len(2 * size + 1, real=True))
    small = min(small, *shape)
    squared = tile_kernels(model, (small, small)) ** 2
    half = (small - 1) // 2
    centred = np.roll(squared, (half, half), axis=(1, 2))[:, : 2 * half + 1, : 2 * half + 1]
    # the little that lies outside the stamp is given back, so that the sky keeps its noise
    centred *= (squared.sum(axis=(1, 2)) / centred.sum(axis=(1, 2)))[:, None, None]
    of_both, kernel, spectrum = space.spectra[:2], space.spectra[2], space.images[0]
    of_both[:] = 0
    for image, unit, kernels in (
        (inputs.science, noise[0], centred[[0, 2]]),
        (inputs.template, noise[1], centred[[1, 3]]),
    ):
        if image.variance is None:
            continue
        variance = grid.cut(image.variance, tile, 1 / unit**2, space.tile)
        spectrum_of(variance, spectrum, workers=workers)
        for stamp, total in zip(kernels, of_both, strict=True):
            _add_product(transfer(stamp, shape, kernel), spectrum, total)
    d, s = (
        plane_of(total, rows, out, workers=workers)
        for total, out in zip(of_both, space.planes[8:], strict=True)
    )
    return d, s


@numba.njit(nogil=True, fastmath=True, cache=True)
def _add_product(first, second, total):  # type: ignore[no-untyped-def] # pragma: no cover
    for j in range(total.shape[0]):
        for i in range(total.shape[1]):
            total[j, i] += first[j, i] * second[j, i]


@numba.njit(nogil=True, fastmath=True, cache=True)
def _assemble(  # type: ignore[no-untyped-def] # pragma: no cover
    box, half, sn, rho, log_beta, norm, d, dx, dy, s, sx, sy, dt, st, dv, sv,
    difference, difference_variance, template_difference, flux, flux_variance, template_flux,
    information,
):  # fmt: skip
    y0, y1, x0, x1, border = box
    xc, yc = 0.5 * (x0 + x1 - 1), 0.5 * (y0 + y1 - 1)
    least = np.float32(0.05)
    least_score = np.float32(0.05 * norm[0])
    width = x1 - x0
    # the square of 1 / rho is separable
    along_x = np.empty(width, dtype=np.float32)
    u = np.empty(width, dtype=np.float32)
    for x in range(width):
        u[x] = (x0 + x - xc) / half[0]
        along_x[x] = np.exp(2 * log_beta[0] * u[x]) / (rho * rho)
    sn2 = np.float32(sn * sn)
    norm_x = np.float32(norm[1] / norm[0])
    by_flux, by_variance = np.float32(sn / norm[0]), np.float32(sn * sn / norm[0] ** 2)
    by_information = np.float32(norm[0] / (sn * sn))
    for y in range(y0, y1):
        v = np.float32((y - yc) / half[1])
        j = y - y0
        along_y = np.float32(np.exp(2 * log_beta[1] * v))
        norm_y = np.float32(1 + v * norm[2] / norm[0])
        for k in range(width):
            x, i = x0 + k, k + border
            h2 = sn2 * (np.float32(1) + along_x[k] * along_y)
            h = np.sqrt(h2)
            f = norm_y + u[k] * norm_x
            to_flux = by_flux / f
            difference[y, x] = h * (d[j, i] + u[k] * dx[j, i] + v * dy[j, i])
            template_difference[y, x] = h * dt[j, i]
            difference_variance[y, x] = h2 * max(dv[j, i], least)
            flux[y, x] = to_flux * (s[j, i] + u[k] * sx[j, i] + v * sy[j, i])
            template_flux[y, x] = to_flux * st[j, i]
            flux_variance[y, x] = by_variance / f * max(sv[j, i], least_score)
            information[y, x] = by_information * f
