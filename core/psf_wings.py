"""The wings of a point spread function: how bright they are, and saturated stars that show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage
from core.stars import SourceList

Float64 = npt.NDArray[np.float64]
MARGIN = 3  # pixels around a stamp, so that a spline is not cut off at its rim
MODEL_ERROR = 0.01  # of a pixel's light, that no PSF is known better than
CLIP = 5.0  # sigma of a pixel: neighbours
FEWEST = 0.3  # of a stamp's pixels must be usable, and not of a neighbour
FEWEST_WINGS = 8  # stars
BRIGHTEST = 40  # stars, whose wings stand out of the sky's errors
FALLS = 5.0  # exponent of the wings of a Moffat profile of 2.5
FAR = 1.5  # radius of the sky's ring, relative to that of the wings
RING_CLIP = 3.0  # sigma of a pixel
KNOWN = 0.05  # relative error of a star's flux, beyond which its wings say nothing


@dataclass(frozen=True)
class RoughPSF:
    """The PSF as whole stars have it.

    Attributes
    ----------
    at : callable
        Returns the stamp at a place (x, y), of shape (side, side).
    error : ndarray of float64, shape (side, side)
        1 sigma of its pixels.
    """

    at: Callable[[float, float], Float64]
    error: Float64


def shifted(stamp: npt.NDArray[np.floating], dx: float, dy: float) -> Float64:
    """Move a stamp's centre by a fraction of a pixel (quintic spline)."""
    return ndimage.shift(stamp.astype(np.float64), (dy, dx), order=5, mode="constant")


def wing_stamps(
    data: FloatImage,
    rms: FloatImage,
    bad: npt.NDArray[np.bool_],
    stars: SourceList,
    psf: RoughPSF,
) -> tuple[Float64, Float64, Float64, Float64]:
    """Return what is good of stars with saturated cores, as stamps of unit flux.

    Whole stars tell the core of a PSF and, where all bright ones are saturated, next to nothing of
    its wings: a hundredth of the light that a saturated star shows a hundred times better. Its flux
    is fitted, and its place, where the PSF is known best, which is as close to the core as there
    are good pixels.

    Parameters
    ----------
    data, rms : ndarray of float32, shape (ny, nx)
        Background-subtracted, and the noise.
    bad : ndarray of bool, shape (ny, nx)
        Pixels not to use; the saturated ones among them.
    stars : SourceList
        Of which the cores are bad.
    psf : RoughPSF

    Returns
    -------
    stamps, noise : ndarray of float64, shape (n, side²)
        Centred, NaN where bad; as `core.psf` takes them.
    x, y : ndarray of float64, shape (n,)
        Places.
    """
    ny, nx = data.shape
    side = psf.error.shape[0]
    half = side // 2
    pad = half + MARGIN
    found: list[tuple[Float64, Float64, float, float]] = []
    for x, y in zip(stars.x, stars.y, strict=True):
        xi, yi = round(float(x)), round(float(y))
        if xi < pad or yi < pad or xi >= nx - pad or yi >= ny - pad:
            continue
        box = (slice(yi - pad, yi + pad + 1), slice(xi - pad, xi + pad + 1))
        usable = ~ndimage.binary_dilation(bad[box], np.ones((3, 3)))
        pixels = data[box].astype(np.float64)
        inner = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
        noise = rms[box][inner].astype(np.float64)
        model = psf.at(float(x), float(y))
        fit = _fit_star(
            pixels[inner], noise, usable[inner], model, psf.error, float(x) - xi, float(y) - yi
        )
        if fit is None:
            continue
        flux, dx, dy = fit
        if max(abs(dx), abs(dy)) > 1.0:
            continue
        inside = np.zeros_like(pixels)
        inside[inner] = flux * shifted(model, dx, dy)
        stamp = shifted(np.where(usable, pixels, inside), -dx, -dy)[inner] / flux
        stamp[~usable[inner]] = np.nan
        found.append((stamp.ravel(), (noise / flux).ravel(), xi + dx, yi + dy))
    columns = zip(*found, strict=True) if found else ((), (), (), ())
    stamps, noises, xs, ys = (np.array(column, dtype=np.float64) for column in columns)
    return stamps.reshape(-1, side * side), noises.reshape(-1, side * side), xs, ys


def _fit_star(
    pixels: Float64,
    noise: Float64,
    usable: npt.NDArray[np.bool_],
    model: Float64,
    error: Float64,
    dx: float,
    dy: float,
) -> tuple[float, float, float] | None:
    """Fit flux and place to the usable pixels; None where they do not tell them."""
    flux = 0.0
    good = usable
    relative = float("inf")
    for _ in range(6):
        here = shifted(model, dx, dy)
        variance = noise**2 + flux**2 * (error**2 + (MODEL_ERROR * here) ** 2)
        by_y, by_x = np.gradient(here)
        basis = np.stack([here, -flux * by_x, -flux * by_y])[:, good]
        if flux == 0:
            basis = basis[:1]
        if basis.shape[1] < FEWEST * usable.size:
            return None
        weighted = basis / variance[good]
        normal = weighted @ basis.T
        residual = pixels - flux * here
        inverse = np.linalg.pinv(normal)
        step = inverse @ (weighted @ residual[good])
        flux += float(step[0])
        if flux <= 0:
            return None
        relative = float(np.sqrt(inverse[0, 0])) / flux
        if len(step) > 1:
            dx, dy = (
                d + float(np.clip(s, -0.3, 0.3)) for d, s in zip((dx, dy), step[1:], strict=True)
            )
            good = usable & (np.abs(residual) < CLIP * np.sqrt(variance))
    return (flux, dx, dy) if relative < KNOWN else None


def wing_level(
    data: FloatImage,
    rms: FloatImage,
    bad: npt.NDArray[np.bool_],
    places: tuple[Float64, Float64, Float64],
    ring: npt.NDArray[np.bool_],
) -> float:
    """Return how bright the wings of stars are in a ring, relative to their flux.

    The sky is that of a wider ring around it. Of the pixels of either those are left out that
    neighbours stand in; faint neighbours are as frequent in both. The brightest stars tell most,
    and their weighted median is not moved by the few that have a galaxy or a bright star nearby.
    What is not significant is shrunk towards nothing (James and Stein 1961).

    Parameters
    ----------
    data, rms : ndarray of float32, shape (ny, nx)
        Background-subtracted, and the noise.
    bad : ndarray of bool, shape (ny, nx)
    places : tuple of ndarray of float64
        x, y and flux of stars; the brightest are taken.
    ring : ndarray of bool, shape (side, side)
        The pixels of a stamp in which the level is wanted.

    Returns
    -------
    float
        A pixel; 0 where too few stars can be measured.
    """
    ny, nx = data.shape
    inner = ring.shape[0] // 2
    half = int(np.ceil(FAR * np.sqrt(2.0) * inner))
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    away = np.hypot(rows, cols)
    near = np.pad(ring, half - inner)
    far = (away > np.sqrt(2.0) * inner + 1) & (away <= half)
    levels: list[float] = []
    weights: list[float] = []
    brightest = np.argsort(-places[2])[:BRIGHTEST]
    for x, y, flux in zip(*(column[brightest] for column in places), strict=True):
        xi, yi = round(float(x)), round(float(y))
        if xi < half or yi < half or xi >= nx - half or yi >= ny - half:
            continue
        box = (slice(yi - half, yi + half + 1), slice(xi - half, xi + half + 1))
        pixels, sigma, good = data[box], float(np.median(rms[box])), ~bad[box]
        told = flux > 0 and sigma > 0  # not in a frame without noise
        if told and min(good[near].mean(), good[far].mean()) > 0.5:
            means = [_clipped_mean(pixels[part & good], sigma) for part in (near, far)]
            levels.append((means[0] - means[1]) / flux)
            weights.append(flux / sigma)
    if len(levels) < FEWEST_WINGS:
        return 0.0
    level, weight = np.array(levels), np.array(weights)
    order = np.argsort(level)
    share = np.cumsum(weight[order])
    usual = float(level[order][np.searchsorted(share, 0.5 * share[-1])])
    scatter = 1.4826 * float(np.median(weight * np.abs(level - usual)))
    error = 1.25 * scatter * float(np.sqrt(len(weight))) / float(weight.sum())
    if usual <= error:
        return 0.0
    own = (np.median(away[far]) / np.median(away[near])) ** -FALLS  # of the sky's ring
    return float((usual - error**2 / usual) / (1 - own))


def _clipped_mean(pixels: npt.NDArray[np.floating], sigma: float) -> float:
    """Return the mean of what is within a few sigma of it, from the median on."""
    level = float(np.median(pixels))
    for _ in range(3):
        calm = np.abs(pixels - level) < RING_CLIP * sigma
        if not calm.any():
            break
        level = float(pixels[calm].mean())
    return level
