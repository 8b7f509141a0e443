"""Sky background and per-pixel variance of one image."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numba
import numpy as np
import sep

from core.errors import QualityRejected
from core.image import FloatImage, Image
from core.noise_power import measure_noise_power
from core.white_noise import difference_noise, sample_step

log = logging.getLogger(__name__)

CLIPPED_SCATTER = 0.98485  # of Gaussian noise clipped at 3 sigma until it converges, as SEP does


@dataclass(frozen=True)
class Sky:
    """The smooth sky of an image.

    Attributes
    ----------
    level : ndarray of float32, shape (ny, nx)
        Background, ADU.
    rms : ndarray of float32, shape (ny, nx)
        Per-pixel noise of the background, ADU; positive.
    median_level, median_rms : float
        Over the frame.
    """

    level: FloatImage
    rms: FloatImage
    median_level: float
    median_rms: float


def measure_sky(image: Image, *, mesh: int | None = None) -> Sky:
    """Measure background and noise on a mesh, sources clipped.

    The clipped scatter still holds faint stars, half of it in a crowded field. Where the noise is
    white (second differences of neighbouring pixels scatter like those of pixels further apart)
    its level is therefore taken from the differences, which stars hardly touch, and only its shape
    over the frame from the mesh. Where pixels are correlated, as after resampling, differences
    would say too little and the mesh is believed; unless they say just what the photons of the sky
    make, the gain being known.

    Parameters
    ----------
    image : Image
        Masked pixels are left out.
    mesh : int, optional
        Mesh size in pixels; an eighth of the frame, between 64 and 256, when not given:
        a smaller mesh follows the stars and takes some of their light.

    Raises
    ------
    core.errors.QualityRejected
        If the noise is zero or not finite.
    """
    ny, nx = image.shape
    if mesh is None:
        mesh = int(np.clip(min(ny, nx) // 8, 64, 256))
    fitted = sep.Background(
        image.data, mask=image.bad, bw=mesh, bh=mesh, fw=3, fh=3, maskthresh=0.0
    )
    level = fitted.back(dtype=np.float32)
    rms = fitted.rms(dtype=np.float32)
    rms /= np.float32(CLIPPED_SCATTER)
    # splines over meshes of at least 64 pixels: every eighth pixel says it all
    typical, middle = float(np.median(rms[4::8, 4::8])), float(np.median(level[4::8, 4::8]))
    rows = np.s_[:: sample_step(image.data)]
    flat, bad = image.data[rows] - level[rows], image.bad[rows]
    noise = difference_noise(flat, bad)
    wider = difference_noise(flat, bad, lag=2)
    photons = _photon_noise(image, middle)
    white = np.isfinite(noise) and (0.93 * wider < noise or abs(noise - photons) < 0.15 * photons)
    if white and 0 < noise < typical:
        rms *= np.float32(noise / typical)
        typical = noise
    if not np.isfinite(typical) or typical <= 0:
        raise QualityRejected(
            f"{image.name}: the sky has no measurable noise (RMS {typical:g} ADU), so nothing "
            "can be called significant; give a variance or weight image"
        )
    np.maximum(rms, np.float32(0.2 * typical), out=rms)
    return Sky(level, rms, middle, typical)


def _photon_noise(image: Image, level: float) -> float:
    """Noise of a sky level as the gain and the read noise have it; NaN where they are unknown."""
    gain = image.facts.gain
    if not gain or level <= 0:
        return float("nan")
    return float(np.sqrt(level / gain + ((image.facts.read_noise or 0.0) / gain) ** 2))


def estimate_gain(image: Image, sky: Sky) -> float | None:
    """Estimate electrons per ADU from the sky's own Poisson noise.

    Valid where the sky was not subtracted and its photons dominate the noise:
    ``gain = level / rms²`` (read noise neglected). None where the level is not that of a sky.
    """
    if sky.median_level < 10 * sky.median_rms:
        return None
    gain = sky.median_level / sky.median_rms**2
    return float(gain) if 0.01 < gain < 1000 else None


def with_noise(image: Image, sky: Sky) -> Image:
    """Return the image with a variance and a gain, both estimated where nobody gave them.

    The variance of the sky is the measured one; sources add their photon noise
    ``max(smoothed source, 0) / gain``, smoothed because a pixel's own noise in its own variance
    would bias every weighted flux low.

    Notes
    -----
    A variance that was given is trusted for its shape, but scaled to the measured noise of the
    sky, since weight maps are often relative. What is measured is the scatter of single pixels;
    where an interpolation has tied neighbours together, sums over them scatter more, and it is
    that which the variance is to say (`core.image.Image.noise_power`).
    """
    facts = image.facts
    power = image.noise_power
    if power > 1:
        power = measure_noise_power(image.data - sky.level, image.bad, least=power)
        boost = float(np.sqrt(power))
        sky = replace(sky, rms=sky.rms * np.float32(boost), median_rms=sky.median_rms * boost)
    if facts.gain is None or facts.gain <= 0:
        gain = estimate_gain(image, sky)
        if gain is not None:
            facts = replace(facts, gain=None).with_estimate(gain=gain)
    variance = _rescaled(image, sky, power) if image.variance is not None else sky.rms**2
    if facts.gain and not (image.variance is not None and _holds_sources(image, sky)):
        variance = _with_source_noise(
            image.data, sky.level, sky.rms, variance, np.float32(1 / facts.gain)
        )
    return replace(image, variance=np.ascontiguousarray(variance, dtype=np.float32), facts=facts)


def sky_variance(image: Image, sky: Sky) -> FloatImage | None:
    """Return the variance without the photon noise of the sources.

    Parameters
    ----------
    image : Image
        As `with_noise` returned it.
    sky : Sky
        Of that image.

    Returns
    -------
    ndarray of float32 or None
        None where a variance was given that holds the sources' noise and cannot be split.
    """
    if image.variance is None or not image.facts.gain:
        return None
    rest: FloatImage = _with_source_noise(
        image.data, sky.level, sky.rms, image.variance, np.float32(-1 / image.facts.gain)
    )
    return rest if _hold_above(rest, image.variance, image.mask, np.float32(1e-3)) else None


@numba.njit(parallel=True, cache=True)
def _with_source_noise(data, level, rms, variance, factor):  # type: ignore[no-untyped-def] # pragma: no cover
    """Variance plus ``factor`` times what stands above the sky, smoothed over 3x3 pixels."""
    ny, nx = data.shape
    out = np.empty((ny, nx), dtype=np.float32)
    for y in numba.prange(ny):
        below, above = max(y - 1, 0), min(y + 1, ny - 1)
        column = np.empty(nx, dtype=np.float32)
        for x in range(nx):
            column[x] = (
                (data[below, x] - level[below, x])
                + (data[y, x] - level[y, x])
                + (data[above, x] - level[above, x])
            )
        for x in range(nx):
            total = column[max(x - 1, 0)] + column[x] + column[min(x + 1, nx - 1)]
            source = total / np.float32(9)
            extra = source * factor if source > np.float32(0.5) * rms[y, x] else np.float32(0)
            out[y, x] = variance[y, x] + extra
    return out


@numba.njit(parallel=True, cache=True)
def _hold_above(rest, variance, mask, share):  # type: ignore[no-untyped-def] # pragma: no cover
    """Hold ``rest`` above a share of the variance; tell whether no good pixel fell to zero."""
    ny, nx = rest.shape
    wrong = 0
    for y in numba.prange(ny):
        for x in range(nx):
            if mask[y, x] == 0 and rest[y, x] <= 0:
                wrong += 1
            rest[y, x] = max(rest[y, x], share * variance[y, x])
    return wrong == 0


def _rescaled(image: Image, sky: Sky, power: float) -> FloatImage:
    """Scale a given variance so that its median on the sky is the measured one.

    What is measured has bounds: the clipped scatter holds faint stars, and the differences of
    neighbours lack what is correlated. A variance between the two is believed as it is.
    """
    assert image.variance is not None
    good = ~image.bad & (image.variance > 0) & (np.abs(image.data - sky.level) < 3 * sky.rms)
    if good.sum() < 100:
        return sky.rms**2
    highest = float(np.median(sky.rms[good] ** 2 / image.variance[good]))
    noise = difference_noise(image.data - sky.level, image.bad) * np.sqrt(power)
    least = highest * (noise / sky.median_rms) ** 2
    factor = float(np.clip(1.0, min(least, highest), highest)) if np.isfinite(least) else highest
    if not 0.5 < factor < 2.0:
        log.info("%s: given variance scaled by %.3g to the noise of its sky", image.name, factor)
    filled = np.where(image.variance > 0, image.variance * np.float32(factor), sky.rms**2)
    return filled.astype(np.float32)


def _holds_sources(image: Image, sky: Sky) -> bool:
    """Tell whether a given variance already rises under bright sources."""
    assert image.variance is not None
    excess = (image.data - sky.level) / sky.rms
    bright = ~image.bad & (excess > 30) & (image.variance > 0)
    blank = ~image.bad & (np.abs(excess) < 2) & (image.variance > 0)
    if bright.sum() < 20 or blank.sum() < 20:
        return True
    return bool(np.median(image.variance[bright]) > 1.2 * np.median(image.variance[blank]))
