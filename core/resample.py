"""Projecting an image, its variance and its mask onto another pixel grid, with six by six pixels.

**Interpolation.** Lanczos-3 with corrected moments (`core.lanczos`) where the pixels of both grids
are the same to 2 % and along the same axes to 6 degrees; quintic B-splines (`core.spline`)
elsewhere, where Lanczos-3 makes ripples of up to a per cent in the fluxes of single stars.

**Flux.** Pixels hold flux: a target pixel that covers ``J`` source pixels holds ``J`` times the
interpolated value, ``J`` being the local Jacobian of the mapping. (``flux="surface_brightness"``
leaves the values alone.) A flat sky stays flat, a slope a slope and the flux of every star its
flux: to 1e-4 where it has a FWHM of 2.5 pixels or more of the coarser grid. At a FWHM of 2 pixels
the grid of the source itself does not quite tell a star from its images, and the sum of the samples
ripples by up to 2e-4. Where a target pixel is coarser than 1.15 source pixels, the mean of several
samples within it is taken, as a detector would do: point samples would skip flux and let noise
alias.

**Variance.** Interpolation correlates neighbouring pixels and lowers their individual variance, but
not the variance of sums over several pixels; and everything that follows (the matching kernel, PSF
photometry) sums over pixels. So the variance that is carried is that of the white noise with the
same power on large scales. ``J`` source pixels of variance ``v`` make up a target pixel, so it is
``J v`` for fluxes and ``v / J`` for surface brightness; ``v`` is interpolated with weights that sum
to one (linear ones: they are never negative), not with their squares.

**Mask.** A flagged source pixel never enters the sum. If its part in the sum of the absolute
weights (of all samples of the target pixel) is small, the others make up for it; if it is not, the
target pixel takes over its flags. Saturated pixels have values so far from their neighbours that a
hundredth is already too much.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS
from numba import njit

from core.errors import UnusableInput
from core.image import ExposureFacts, FloatImage, Image, MaskBit, MaskImage
from core.lanczos import lanczos_table, row_weights, window_sum
from core.pixel_mapping import (
    FloatArray,
    GridMapping,
    PixelMapping,
    affine_mapping,
    sky_mapping,
)
from core.spline import spline_coefficients, spline_table

FluxUnit = Literal["pixel", "surface_brightness"]

_ROWS = 32  # target rows at a time: their coordinates stay in the cache
_COARSE = 1.15  # source pixels per target pixel, from which on several samples are averaged
_ALIKE = 0.0215  # from whole frequencies: there Lanczos-3 makes ripples below 1e-4
_TURN = 0.1  # and with axes that are turned by no more than that
_MOST_SAMPLES = 64
_INTEGER_SHIFT = 1e-4  # pixels; a mapping that is closer to whole pixels copies them

_BAD_SHARE = 0.1  # of the absolute weights
_SATURATED_SHARE = 0.01

_NO_DATA = int(MaskBit.NO_DATA)
_SATURATED = int(MaskBit.SATURATED)


def resample(
    image: Image,
    wcs: WCS,
    shape: tuple[int, int],
    *,
    threads: int = 1,
    offset: tuple[float, float] | npt.ArrayLike | None = None,
    flux: FluxUnit = "pixel",
) -> Image:
    """Project an image onto the pixel grid of another, through the sky.

    Parameters
    ----------
    image : Image
        With a WCS; its data must be finite.
    wcs : WCS
        Celestial WCS of the target grid.
    shape : tuple of int
        (ny, nx) of the target grid.
    threads : int
        Threads to work with.
    offset : (float, float) or array_like of shape (2, 3), or None
        Correction of the astrometry in *source* pixels: a target pixel that the two WCS put at
        source pixel ``p`` is taken from ``p + offset`` (or from ``A @ (px, py, 1)``).
    flux : {'pixel', 'surface_brightness'}
        What the values are: flux in a pixel (conserved), or flux per area (left as it is).

    Returns
    -------
    Image
        On the target grid, without PSF. Outside the source `MaskBit.NO_DATA` is set and the data
        are the source's median. Saturation and FWHM are scaled with the pixels.

    Raises
    ------
    UnusableInput
        If the image has no WCS.
    """
    if image.wcs is None:
        raise UnusableInput(f"{image.name}: has no WCS and cannot be projected onto another grid")
    affine = None if offset is None else _as_affine(offset)
    mapping = sky_mapping(wcs, shape, image.wcs, image.shape, affine)
    return replace(resample_onto(image, mapping, shape, threads=threads, flux=flux), wcs=wcs)


def resample_affine(
    image: Image,
    matrix: npt.ArrayLike,
    shape: tuple[int, int],
    *,
    threads: int = 1,
    flux: FluxUnit = "pixel",
) -> Image:
    """Resample an image by an affine transformation of its pixels; no WCS needed.

    Parameters
    ----------
    matrix : array_like, shape (2, 3)
        ``(source x, source y) = matrix @ (target x, target y, 1)``.
    image, shape, threads, flux
        As `resample`. The result has no WCS.
    """
    mapping = affine_mapping(matrix, shape)
    return replace(resample_onto(image, mapping, shape, threads=threads, flux=flux), wcs=None)


def shift_image(image: Image, dx: float, dy: float, *, threads: int = 1) -> Image:
    """Move an image by a fraction of a pixel, or more: what was at (x, y) is at (x+dx, y+dy) then.

    The WCS stays as it is: the shift is meant to correct it.
    """
    matrix = [[1.0, 0.0, -dx], [0.0, 1.0, -dy]]
    moved = resample_onto(image, affine_mapping(matrix, image.shape), image.shape, threads=threads)
    return replace(moved, wcs=image.wcs)


def resample_onto(
    image: Image,
    mapping: PixelMapping,
    shape: tuple[int, int],
    *,
    threads: int = 1,
    flux: FluxUnit = "pixel",
) -> Image:
    """Resample an image by any mapping from target to source pixels; the common end of all above.

    Parameters
    ----------
    mapping : PixelMapping
        Where each target pixel lies on the source.
    image, shape, threads, flux
        As `resample`. The result keeps the image's WCS; the caller puts the right one in.
    """
    shift = _whole_shift(mapping, shape)
    if shift is not None:
        return _copied(image, shape, *shift)
    steps = _steps(mapping, shape)
    source, middle = _source(image, mapping, shape, alike=_alike(steps), threads=threads)
    scale = float(np.sqrt(middle)) if np.isfinite(middle) and middle > 0 else 1.0
    samples = _samples(steps)

    data = np.empty(shape, dtype=np.float32)
    mask = np.empty(shape, dtype=np.uint16)
    variance = np.empty(shape if image.variance is not None else (0, 0), dtype=np.float32)

    def work(first: int) -> None:
        last = min(first + _ROWS, shape[0])
        _sample_rows(
            source,
            mapping.rows(first, last, samples),
            samples,
            flux == "pixel",
            data[first:last],
            variance[first:last] if variance.size else variance,
            mask[first:last],
        )

    starts = range(0, shape[0], _ROWS)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, starts))
    else:
        for first in starts:
            work(first)
    return replace(
        image,
        data=data,
        mask=mask,
        variance=variance if image.variance is not None else None,
        psf=None,
        facts=_scaled(image.facts, scale, flux),
    )


@dataclass(frozen=True)
class _Source:
    """The part of the image that matters, ready for compiled code."""

    data: FloatImage
    variance: FloatImage  # shape (0, 0) where there is none
    mask: MaskImage
    coefficients: FloatImage  # of what interpolates where all pixels are good; data for Lanczos-3
    touched: npt.NDArray[np.uint8]  # 1 where the window of a point holds a flagged pixel
    x0: int  # where it begins on the whole image
    y0: int
    fill: float
    fill_variance: float
    table: npt.NDArray[np.float32]  # the weights of the coefficients
    lanczos: npt.NDArray[np.float32]  # those of pixels, where some of them are bad


def _as_affine(offset: npt.ArrayLike) -> FloatArray:
    values = np.asarray(offset, dtype=float)
    if values.shape == (2,):
        return np.array([[1.0, 0.0, values[0]], [0.0, 1.0, values[1]]])
    if values.shape == (2, 3):
        return values
    raise ValueError(f"offset must have the shape (2,) or (2, 3), not {values.shape}")


def _whole_shift(mapping: PixelMapping, shape: tuple[int, int]) -> tuple[int, int] | None:
    """Return (dx, dy) where source = target + (dx, dy) in whole pixels, else None."""
    if not isinstance(mapping, GridMapping):
        return None
    my, mx = mapping.nodes.shape[1:]
    x, y = ((np.arange(m) - 2) * mapping.step for m in (mx, my))
    dx, dy = mapping.nodes[0] - x[None, :], mapping.nodes[1] - y[:, None]
    whole = round(float(dx[my // 2, mx // 2])), round(float(dy[my // 2, mx // 2]))
    if max(np.abs(dx - whole[0]).max(), np.abs(dy - whole[1]).max()) < _INTEGER_SHIFT:
        return whole
    return None


def _copied(image: Image, shape: tuple[int, int], dx: int, dy: int) -> Image:
    ny, nx = image.shape
    rows = slice(max(0, -dy), max(0, min(shape[0], ny - dy)))
    columns = slice(max(0, -dx), max(0, min(shape[1], nx - dx)))
    inside = rows.stop > rows.start and columns.stop > columns.start
    fill, fill_variance = _fill_values(image.data, image.variance)
    from_rows, from_columns = (
        slice(rows.start + dy, rows.stop + dy),
        slice(columns.start + dx, columns.stop + dx),
    )

    def moved(plane: npt.NDArray[Any], value: float) -> npt.NDArray[Any]:
        out = np.full(shape, value, dtype=plane.dtype)
        if inside:
            out[rows, columns] = plane[from_rows, from_columns]
        return out

    return replace(
        image,
        data=moved(image.data, fill),
        mask=moved(image.mask, _NO_DATA),
        variance=None if image.variance is None else moved(image.variance, fill_variance),
        psf=image.psf if (dx, dy) == (0, 0) and shape == image.shape else None,
    )


def _fill_values(data: FloatImage, variance: FloatImage | None) -> tuple[float, float]:
    def middle(plane: FloatImage) -> float:
        flat = plane.ravel()
        return float(np.median(flat[:: max(1, flat.size // 100_000)])) if flat.size else 0.0

    return middle(data), 0.0 if variance is None else middle(variance)


def _steps(mapping: PixelMapping, shape: tuple[int, int]) -> FloatArray:
    """Return the source pixels per target pixel, shape (2 source axes, 2 target axes, n places)."""
    if isinstance(mapping, GridMapping):
        x, y = mapping.nodes[0], mapping.nodes[1]
        edge = slice(1, -1)
        steps = np.array([np.gradient(plane)[::-1] for plane in (x, y)]) / mapping.step
        return np.asarray(steps[..., edge, edge].reshape(2, 2, -1))
    first = max(0, shape[0] // 2 - 1)
    x, y, _ = mapping.rows(first, min(first + 2, shape[0]))
    if min(x.shape) < 2:
        return np.full((2, 2, 1), np.nan)
    steps = np.array([[p[:-1, 1:] - p[:-1, :-1], p[1:, :-1] - p[:-1, :-1]] for p in (x, y)])
    return np.asarray(steps.reshape(2, 2, -1))


def _samples(steps: FloatArray) -> int:
    """Return how many samples along each axis of a target pixel are averaged."""
    lengths = np.hypot(*steps)
    known = np.isfinite(lengths).all(axis=0)
    if not known.any():
        return 1
    coarse = float(np.median(lengths[:, known], axis=1).max())
    return min(int(np.ceil(coarse - 0.01)), _MOST_SAMPLES) if coarse >= _COARSE else 1


def _alike(steps: FloatArray) -> bool:
    """Return whether both grids have so nearly the same pixels that Lanczos-3 makes no ripples."""
    a, b, c, d = steps[0, 0], steps[0, 1], steps[1, 0], steps[1, 1]
    with np.errstate(all="ignore"):
        # The sampling frequencies of the target, per source pixel: the inverse, transposed.
        frequencies = np.abs(np.array([[d, -b], [-c, a]]) / (a * d - b * c))
        along, across = frequencies.max(axis=0), frequencies.min(axis=0)
        return bool(((np.abs(along - 1) <= _ALIKE) & (across <= _TURN)).all())


def _source(
    image: Image, mapping: PixelMapping, shape: tuple[int, int], *, alike: bool, threads: int
) -> tuple[_Source, float]:
    """Return the part of the image under the target, and the median Jacobian."""
    ny, nx = image.shape
    if isinstance(mapping, GridMapping):
        x, y, _ = mapping.nodes.reshape(3, -1)
        # Nodes lie around the target too; cells are smooth, so nothing sticks out of their hull
        # by more than a pixel or two.
        x0, x1 = _span(x, nx)
        y0, y1 = _span(y, ny)
        middle = float(np.median(mapping.nodes[2, 1:-1, 1:-1]))
    else:
        x0, x1, y0, y1 = 0, nx, 0, ny
        rows = mapping.rows(shape[0] // 2, shape[0] // 2 + 1)
        middle = float(np.nanmedian(rows[2])) if np.isfinite(rows[2]).any() else 1.0
    cut = slice(y0, y1), slice(x0, x1)
    mask = np.ascontiguousarray(image.mask[cut])
    variance = np.zeros((0, 0), np.float32) if image.variance is None else image.variance[cut]
    fill, fill_variance = _fill_values(image.data, image.variance)
    data = np.ascontiguousarray(image.data[cut])
    lanczos = lanczos_table()
    # The smallest windows are all slow: nothing is filtered for them.
    alike = alike or min(data.shape) < 6
    return (
        _Source(
            data=data,
            coefficients=(
                data if alike else spline_coefficients(data, mask, fill, threads=threads)
            ),
            variance=np.ascontiguousarray(variance),
            mask=mask,
            touched=_touched(mask),
            x0=x0,
            y0=y0,
            fill=fill,
            fill_variance=fill_variance,
            table=lanczos if alike else spline_table(),
            lanczos=lanczos,
        ),
        middle,
    )


def _span(nodes: FloatArray, length: int) -> tuple[int, int]:
    low = int(np.clip(np.floor(nodes.min()) - 8, 0, length))
    high = int(np.clip(np.ceil(nodes.max()) + 9, 0, length))
    return low, max(low, high)


def _scaled(facts: ExposureFacts, scale: float, flux: FluxUnit) -> ExposureFacts:
    area = scale * scale if flux == "pixel" else 1.0
    return replace(
        facts,
        saturation=None if facts.saturation is None else facts.saturation * area,
        fwhm=None if facts.fwhm is None else facts.fwhm / scale,
    )


def _sample_rows(
    source: _Source,
    rows: FloatArray,
    samples: int,
    conserve: bool,
    data: FloatImage,
    variance: FloatImage,
    mask: MaskImage,
) -> None:
    """Fill some rows of the target."""
    arguments = (
        source.data,
        source.coefficients,
        source.variance,
        source.mask,
        source.touched,
        source.table,
        source.lanczos,
        rows,
        float(source.x0),
        float(source.y0),
        np.float32(source.fill),
        np.float32(source.fill_variance),
        conserve,
        data,
        variance,
        mask,
    )
    if samples > 1:
        _average(samples, *arguments)
    else:
        _sample(*arguments)


@njit(cache=True, nogil=True)
def _touched(mask):  # type: ignore[no-untyped-def]
    """1 where the window of six by six pixels around a point holds a flagged pixel.

    The window of a point between pixels i and i+1 is i-2 ... i+3; it belongs to pixel i.
    """
    ny, nx = mask.shape
    across = np.zeros((ny, nx), dtype=np.uint8)
    for j in range(ny):
        row = mask[j]
        any_flag = False
        for i in range(nx):
            if row[i] != 0:
                any_flag = True
                break
        if any_flag:
            for i in range(nx):
                if row[i] != 0:
                    for k in range(max(0, i - 3), min(nx, i + 3)):
                        across[j, k] = 1
    result = np.zeros((ny, nx), dtype=np.uint8)
    for j in range(ny):
        for k in range(max(0, j - 2), min(ny, j + 4)):
            for i in range(nx):
                result[j, i] |= across[k, i]
    return result


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"})
def _sample(  # type: ignore[no-untyped-def]
    data,
    coefficients,
    variance,
    mask,
    touched,
    table,
    lanczos,
    rows,
    x0,
    y0,
    fill,
    fill_variance,
    conserve,
    out_data,
    out_variance,
    out_mask,
):
    """One sample at every point of ``rows``; the fast way where all 36 pixels are good."""
    ny, nx = data.shape
    with_variance = variance.size > 0
    flat = coefficients.ravel()
    width = np.uint64(nx)
    steps = table.shape[0] - 1
    taps = table.ravel()
    one = np.float32(1.0)
    for r in range(rows.shape[1]):
        for c in range(rows.shape[2]):
            sx = rows[0, r, c] - x0
            sy = rows[1, r, c] - y0
            # Written so that NaN is outside.
            if not (-0.5 <= sx <= nx - 0.5 and -0.5 <= sy <= ny - 0.5):
                out_data[r, c] = fill
                out_mask[r, c] = _NO_DATA
                if with_variance:
                    out_variance[r, c] = fill_variance
                continue
            jacobian = np.float32(rows[2, r, c])
            factor = jacobian if conserve else one
            ix = int(np.floor(sx))
            iy = int(np.floor(sy))
            fx = (sx - ix) * steps
            fy = (sy - iy) * steps
            kx = min(int(fx), steps - 1)
            ky = min(int(fy), steps - 1)
            ty = np.float32(fy - ky)
            b = np.uint64(6 * ky)
            if 2 <= ix < nx - 3 and 2 <= iy < ny - 3 and touched[iy, ix] == 0:
                wx = row_weights(taps, np.uint64(6 * kx), np.float32(fx - kx))
                p = np.uint64((iy - 2) * nx + ix - 2)
                total = window_sum(flat, p, width, wx, taps, b, ty)
                out_data[r, c] = factor * total
                out_mask[r, c] = 0
            else:
                part = _good_part(data, mask, lanczos, sx, sy)
                total, weight, everything, lost, lost_saturated, flags = part
                if _enough(everything, lost, lost_saturated):
                    out_data[r, c] = factor * total / weight
                    out_mask[r, c] = 0
                else:
                    # Flagged, but not ugly: linear interpolation does not ring.
                    out_data[r, c] = factor * _linear(data, sx, sy)
                    out_mask[r, c] = flags
            if with_variance:
                white = jacobian if conserve else one / jacobian
                out_variance[r, c] = white * _linear(variance, sx, sy)


@njit(cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"})
def _average(  # type: ignore[no-untyped-def] # pragma: no cover
    samples,
    data,
    coefficients,
    variance,
    mask,
    touched,
    table,
    lanczos,
    rows,
    x0,
    y0,
    fill,
    fill_variance,
    conserve,
    out_data,
    out_variance,
    out_mask,
):
    """Mean of ``samples`` x ``samples`` points of ``rows`` in every target pixel.

    What is lost of a target pixel is what is lost of all its samples together, so that a single bad
    pixel among many is made up for.
    """
    ny, nx = data.shape
    with_variance = variance.size > 0
    flat = coefficients.ravel()
    width = np.uint64(nx)
    steps = table.shape[0] - 1
    taps = table.ravel()
    one = np.float32(1.0)
    for r in range(out_data.shape[0]):
        for c in range(out_data.shape[1]):
            total = np.float32(0.0)
            weight = np.float32(0.0)
            everything = np.float32(0.0)
            lost = np.float32(0.0)
            lost_saturated = np.float32(0.0)
            noise = np.float32(0.0)
            noise_weight = np.float32(0.0)
            area = 0.0
            inside = 0
            flags = 0
            for j in range(r * samples, (r + 1) * samples):
                for i in range(c * samples, (c + 1) * samples):
                    sx = rows[0, j, i] - x0
                    sy = rows[1, j, i] - y0
                    # Written so that NaN is outside.
                    if not (-0.5 <= sx <= nx - 0.5 and -0.5 <= sy <= ny - 0.5):
                        flags |= _NO_DATA
                        everything += one
                        lost += one
                        continue
                    inside += 1
                    area += rows[2, j, i]
                    ix = int(np.floor(sx))
                    iy = int(np.floor(sy))
                    if 2 <= ix < nx - 3 and 2 <= iy < ny - 3 and touched[iy, ix] == 0:
                        fx = (sx - ix) * steps
                        fy = (sy - iy) * steps
                        kx = min(int(fx), steps - 1)
                        ky = min(int(fy), steps - 1)
                        b = np.uint64(6 * ky)
                        wx = row_weights(taps, np.uint64(6 * kx), np.float32(fx - kx))
                        p = np.uint64((iy - 2) * nx + ix - 2)
                        total += window_sum(flat, p, width, wx, taps, b, np.float32(fy - ky))
                        weight += one
                        everything += one
                        if with_variance:
                            noise += _linear(variance, sx, sy)
                            noise_weight += one
                    else:
                        part = _good_part(data, mask, lanczos, sx, sy)
                        total += part[0]
                        weight += part[1]
                        everything += one
                        lost += part[3] / part[2]
                        lost_saturated += part[4] / part[2]
                        flags |= part[5]
                        nearest_x = min(max(int(np.rint(sx)), 0), nx - 1)
                        nearest_y = min(max(int(np.rint(sy)), 0), ny - 1)
                        if with_variance and mask[nearest_y, nearest_x] == 0:
                            noise += variance[nearest_y, nearest_x]
                            noise_weight += one
            if inside == 0:
                out_data[r, c] = fill
                out_mask[r, c] = _NO_DATA
                if with_variance:
                    out_variance[r, c] = fill_variance
                continue
            jacobian = np.float32(area / inside)
            factor = jacobian if conserve else one
            if _enough(everything, lost, lost_saturated):
                out_data[r, c] = factor * total / weight
                out_mask[r, c] = 0
            else:
                plain = np.float32(0.0)
                for j in range(r * samples, (r + 1) * samples):
                    for i in range(c * samples, (c + 1) * samples):
                        sx = rows[0, j, i] - x0
                        sy = rows[1, j, i] - y0
                        if -0.5 <= sx <= nx - 0.5 and -0.5 <= sy <= ny - 0.5:
                            plain += _linear(data, sx, sy)
                out_data[r, c] = factor * plain / inside
                out_mask[r, c] = flags
            if with_variance:
                white = jacobian if conserve else one / jacobian
                # As many pixels fewer make up the value.
                white *= everything / max(everything - lost, np.float32(0.5) * everything)
                out_variance[r, c] = (
                    white * noise / noise_weight if noise_weight > 0 else white * fill_variance
                )


@njit(cache=True, nogil=True, inline="always")
def _enough(everything, lost, lost_saturated):  # type: ignore[no-untyped-def] # pragma: no cover
    """Whether the good pixels can make up for the others."""
    return lost <= _BAD_SHARE * everything and lost_saturated <= _SATURATED_SHARE * everything


@njit(cache=True, nogil=True)
def _good_part(data, mask, lanczos, sx, sy):  # type: ignore[no-untyped-def] # pragma: no cover
    """Lanczos-3 with the good pixels alone.

    Returns their weighted sum, the sum of their weights, the sums of the absolute weights of all
    pixels, of the bad ones and of the saturated ones, and the flags of the bad ones.
    """
    ny, nx = data.shape
    steps = lanczos.shape[0] - 1
    taps = lanczos.ravel()
    ix = int(np.floor(sx))
    iy = int(np.floor(sy))
    fx = (sx - ix) * steps
    fy = (sy - iy) * steps
    kx = min(int(fx), steps - 1)
    ky = min(int(fy), steps - 1)
    wx = row_weights(taps, np.uint64(6 * kx), np.float32(fx - kx))
    wy = row_weights(taps, np.uint64(6 * ky), np.float32(fy - ky))
    total = np.float32(0.0)
    weight = np.float32(0.0)
    everything = np.float32(0.0)
    lost = np.float32(0.0)
    lost_saturated = np.float32(0.0)
    flags = 0
    for j in range(6):
        y = iy - 2 + j
        for i in range(6):
            share = wy[j] * wx[i]
            if share == 0.0:
                continue
            everything += abs(share)
            x = ix - 2 + i
            flag = _NO_DATA
            if 0 <= x < nx and 0 <= y < ny:
                flag = int(mask[y, x])
            if flag == 0:
                total += share * data[y, x]
                weight += share
            else:
                flags |= flag
                lost += abs(share)
                if flag & _SATURATED:
                    lost_saturated += abs(share)
    return total, weight, everything, lost, lost_saturated, flags


@njit(cache=True, nogil=True, inline="always")
def _linear(plane, sx, sy):  # type: ignore[no-untyped-def]
    """Linear interpolation, at the edge the nearest pixel."""
    ny, nx = plane.shape
    ix = min(max(int(np.floor(sx)), 0), max(nx - 2, 0))
    iy = min(max(int(np.floor(sy)), 0), max(ny - 2, 0))
    tx = np.float32(min(max(sx - ix, 0.0), 1.0))
    ty = np.float32(min(max(sy - iy, 0.0), 1.0))
    jx = min(ix + 1, nx - 1)
    jy = min(iy + 1, ny - 1)
    low = plane[iy, ix] + tx * (plane[iy, jx] - plane[iy, ix])
    high = plane[jy, ix] + tx * (plane[jy, jx] - plane[jy, ix])
    return low + ty * (high - low)
