"""The bright stars of a frame that has many, found in a twentieth of the time of a full search.

To measure PSFs, flux scale and shift some hundreds of bright, isolated stars are enough. A full
search (`core.stars.find_sources`) outlines and splits every source down to the noise for them, in
one thread. Here local maxima are taken, and the shape of the brightest is measured around them.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskBit, MaskImage
from core.stars import CONTAMINATION, SourceList, StarList, contamination, select_stars

Float64 = npt.NDArray[np.float64]
ENOUGH = 600  # stars, below which faint and blended ones are needed as well
MOST = 4000  # places that are measured
DETECTED = 5.0  # sigma of the smoothed image
SMOOTHED = 0.375  # noise of the smoothed image, relative to that of a pixel
SAMPLE = 200  # places that tell the seeing
WIDEST = 8  # pixels, half-size of the boxes that tell the seeing
STEPS = 8  # of the centroid


def bright_stars(data: FloatImage, rms: FloatImage, mask: MaskImage) -> StarList | None:
    """Find bright, isolated point sources.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Background-subtracted.
    rms : ndarray of float32, shape (ny, nx)
        Per-pixel noise of the background.
    mask : ndarray of uint16, shape (ny, nx)
        `core.image.MaskBit` flags.

    Returns
    -------
    StarList or None
        None where there are fewer than some hundreds: then they are worth a full search.
    """
    hard = np.uint16(0xFFFF & ~int(MaskBit.SATURATED))
    rows = _peaks(data, rms, mask, hard, np.float32(DETECTED * SMOOTHED))
    x, y = rows[:, 0], rows[:, 1]
    if len(x) < ENOUGH:
        return None
    peak = data[y, x].astype(np.float64)
    height = peak / rms[y, x]
    order = np.argsort(-height, kind="stable")
    sigma = float(np.median(_widths(data, x[order[:SAMPLE]], y[order[:SAMPLE]], WIDEST))) / 2.3548
    isolated = contamination(x.astype(np.float64), y.astype(np.float64), peak, sigma)
    chosen = order[isolated[order] < CONTAMINATION][:MOST]
    half = int(np.ceil(4 * sigma)) + 1
    found = _measure(data, rms, mask, x[chosen], y[chosen], sigma, half)
    half_light = 1.1774 * found[:, 4]
    sources = SourceList(
        found[:, 0], found[:, 1], found[:, 2], found[:, 3], half_light, found[:, 5],
        peak[chosen], found[:, 6] > 0,
    )  # fmt: skip
    stars = select_stars(sources)
    return stars if len(stars) >= ENOUGH else None


def _peaks(
    data: FloatImage, rms: FloatImage, mask: MaskImage, hard: np.uint16, least: np.float32
) -> npt.NDArray[np.int64]:
    """Return (x, y) of the local maxima of the smoothed image, row by row; shape (n, 2)."""
    flat = np.flatnonzero(_are_peaks(data, rms, mask, hard, least))
    y, x = np.divmod(flat, data.shape[1])
    return np.stack([x, y], axis=1)


@numba.njit(inline="always")
def _smooth(data, y, x):  # type: ignore[no-untyped-def] # pragma: no cover
    edges = data[y - 1, x] + data[y + 1, x] + data[y, x - 1] + data[y, x + 1]
    corners = (
        data[y - 1, x - 1] + data[y - 1, x + 1] + data[y + 1, x - 1] + data[y + 1, x + 1]
    )  # fmt: skip
    return np.float32(0.0625) * (np.float32(4) * data[y, x] + np.float32(2) * edges + corners)


@numba.njit(parallel=True, cache=True)
def _are_peaks(data, rms, mask, hard, least):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = data.shape
    found = np.zeros((ny, nx), dtype=np.bool_)
    for y in numba.prange(3, ny - 3):
        for x in range(3, nx - 3):
            limit = least * rms[y, x]
            # no maximum of the smoothed image is much brighter than its own pixel
            if data[y, x] < limit or (mask[y, x] & hard) != 0:
                continue
            here = _smooth(data, y, x)
            if here < limit:
                continue
            highest = True
            for j in range(-2, 3):
                for i in range(-2, 3):
                    if i == 0 and j == 0:
                        continue
                    other = _smooth(data, y + j, x + i)
                    if other > here or (other == here and (j < 0 or (j == 0 and i < 0))):
                        highest = False
                        break
                if not highest:
                    break
            found[y, x] = highest
    return found


@numba.njit(cache=True)
def _widths(data, x, y, half):  # type: ignore[no-untyped-def] # pragma: no cover
    """FWHM from the area above half of the peak, in a box around it."""
    out = np.empty(x.size)
    ny, nx = data.shape
    for n in range(x.size):
        count = 0
        level = 0.5 * data[y[n], x[n]]
        for row in range(max(0, y[n] - half), min(ny, y[n] + half + 1)):
            for column in range(max(0, x[n] - half), min(nx, x[n] + half + 1)):
                if data[row, column] > level:
                    count += 1
        out[n] = 2 * np.sqrt(count / np.pi)
    return out


@numba.njit(parallel=True, cache=True)
def _measure(data, rms, mask, x, y, sigma, half):  # type: ignore[no-untyped-def] # pragma: no cover
    """Centroid, flux, S/N, Gaussian width and elongation under a Gaussian window; 1 if clean.

    The moments under the window are those of the product of both Gaussians, so that the inverse
    of the source's own is the difference of two inverses.
    """
    ny, nx = data.shape
    out = np.zeros((x.size, 7))
    for n in numba.prange(x.size):
        cx, cy = float(x[n]), float(y[n])
        out[n, 0], out[n, 1], out[n, 4], out[n, 5] = cx, cy, np.nan, np.inf
        if x[n] < half or y[n] < half or x[n] >= nx - half or y[n] >= ny - half:
            continue
        clean = True
        xx = yy = xy = total = 0.0
        for step in range(STEPS):
            total = sx = sy = xx = yy = xy = 0.0
            for row in range(y[n] - half, y[n] + half + 1):
                dy = row - cy
                for column in range(x[n] - half, x[n] + half + 1):
                    if mask[row, column] != 0:
                        clean = False
                    dx = column - cx
                    v = data[row, column] * np.exp(-0.5 * (dx * dx + dy * dy) / (sigma * sigma))
                    total += v
                    sx += v * dx
                    sy += v * dy
                    xx += v * dx * dx
                    yy += v * dy * dy
                    xy += v * dx * dy
            if total <= 0 or not clean:
                break
            if step < STEPS - 1:
                cx += 2 * sx / total
                cy += 2 * sy / total
        if total <= 0 or not clean or np.hypot(cx - x[n], cy - y[n]) > 1.5:
            continue
        xx, yy, xy = xx / total, yy / total, xy / total
        determinant = xx * yy - xy * xy
        if determinant <= 0:
            continue
        a = yy / determinant - 1 / (sigma * sigma)
        b = xx / determinant - 1 / (sigma * sigma)
        c = -xy / determinant
        if a <= 0 or b <= 0 or a * b <= c * c:
            continue
        middle, apart = 0.5 * (a + b), np.hypot(0.5 * (a - b), c)
        out[n, 0], out[n, 1] = cx, cy
        # the flux of the Gaussian that has this product with the window
        area = np.sqrt(a * b - c * c)
        out[n, 2] = total * np.sqrt(determinant) ** -1 / area
        out[n, 3] = total / (rms[y[n], x[n]] * np.sqrt(np.pi) * sigma)
        out[n, 4] = (a * b - c * c) ** -0.25
        out[n, 5] = np.sqrt((middle + apart) / (middle - apart))
        out[n, 6] = 1.0
    return out
