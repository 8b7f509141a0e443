"""Noise maps as the documented functions take them: given, asked for, or left out."""

from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
import numpy.typing as npt

from core.image import ExposureFacts, Image, MaskBit
from core.noise import Sky, measure_sky, with_noise
from core.subtraction.difference import Difference

NoiseArgument = npt.NDArray[np.floating] | bool | None


def as_image(
    data: npt.ArrayLike, mask: npt.ArrayLike | None, gain: float | None, name: str
) -> Image:
    """Wrap loose arrays as an `Image`.

    Parameters
    ----------
    data : array_like, shape (ny, nx)
        Any numeric type and byte order.
    mask : array_like of bool, shape (ny, nx), or None
        True = bad. Pixels that are not finite are masked as well.
    gain : float or None
        Electrons per ADU.
    name : str
        For messages.

    Raises
    ------
    ValueError
        If the array is not two-dimensional or the mask has another shape.
    """
    pixels = np.ascontiguousarray(data, dtype=np.float32)
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"{name} must be a two-dimensional image, not of shape {pixels.shape}")
    flags = np.zeros(pixels.shape, dtype=np.uint16)
    if mask is not None:
        bad = np.asarray(mask, dtype=bool)
        if bad.shape != pixels.shape:
            raise ValueError(f"the mask of {name} has shape {bad.shape}, not {pixels.shape}")
        flags[bad] |= np.uint16(MaskBit.BAD)
    # the sum is finite only where every pixel is (or in the rare overflow): no plane is built
    if not np.isfinite(pixels.sum(dtype=np.float64)):
        missing = ~np.isfinite(pixels)
        pixels = pixels.copy()
        flags[missing] |= np.uint16(MaskBit.NO_DATA)
        pixels[missing] = np.median(pixels[~missing]) if not missing.all() else 0
    return Image(pixels, flags, facts=ExposureFacts(gain=gain), name=name)


def with_noise_argument(image: Image, err: NoiseArgument) -> tuple[Image, Sky | None]:
    """Give an image the variance that an ``err`` argument means.

    Parameters
    ----------
    image : Image
        As `as_image` makes it.
    err : ndarray, bool or None
        Per-pixel RMS; True builds it from the background's RMS and, with a gain, from the photon
        noise of the sources; None and False leave the image without a variance.

    Returns
    -------
    Image
        With its variance, or None for one.
    Sky or None
        The measured sky, where it was measured.
    """
    if err is None or err is False:
        return image, None
    if err is True:
        sky = measure_sky(image)
        return with_noise(image, sky), sky
    rms = np.asarray(err, dtype=np.float32)
    if rms.shape != image.shape:
        raise ValueError(f"the noise map of {image.name} has shape {rms.shape}, not {image.shape}")
    variance, n_bad = _squared(rms)
    mask = image.mask
    if n_bad:
        bad = variance <= 0
        mask = mask.copy()
        mask[bad] |= np.uint16(MaskBit.NO_DATA)
        variance[bad] = np.median(variance[~bad]) if n_bad < bad.size else 1.0
    return replace(image, mask=mask, variance=variance), None


@numba.njit(parallel=True, cache=True)
def _squared(rms):  # type: ignore[no-untyped-def] # pragma: no cover
    """Variance, zero where the RMS is not finite and positive; and how often it is not."""
    ny, nx = rms.shape
    out = np.empty((ny, nx), dtype=np.float32)
    n_bad = 0
    for y in numba.prange(ny):
        for x in range(nx):
            v = rms[y, x] * rms[y, x]
            if not (np.isfinite(v) and rms[y, x] != 0):
                v = np.float32(0)
                n_bad += 1
            out[y, x] = v
    return out, n_bad


def with_photons_of_new_sources(difference: Difference) -> Difference:
    """Add the photon noise of what is only in the science image to the noise of a difference.

    The noise of the known sources comes from the matched template, so that the noise of a pixel
    does not choose its own weight. What is new is not in it; the pipeline adds its photons when
    it measures the source, and whoever takes the noise as a plane needs them in the plane. They
    are taken where the mean of 3x3 pixels stands out by six sigma: the sky stays as it is.

    Returns
    -------
    Difference
        The same one where there is nothing to add. ``noise`` and ``scaled`` are changed in place.
    """
    if difference.gain:
        per_gain = np.float32(1 / difference.gain)
        _add_photons(difference.data, per_gain, difference.noise, difference.scaled)
    return replace(difference, gain=None)


@numba.njit(parallel=True, cache=True)
def _add_photons(data, per_gain, noise, scaled):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = data.shape
    for y in numba.prange(1, ny - 1):
        for x in range(1, nx - 1):
            if data[y, x] <= 0:
                continue
            mean = np.float32(0)
            for row in range(y - 1, y + 2):
                mean += data[row, x - 1] + data[row, x] + data[row, x + 1]
            mean /= np.float32(9)
            if mean > np.float32(2) * noise[y, x]:
                noise[y, x] = np.sqrt(noise[y, x] ** 2 + mean * per_gain)
                scaled[y, x] = data[y, x] / noise[y, x]
