"""Registering frames on their stars and averaging them: a template out of a series."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import sep
from scipy.spatial import cKDTree

from core.errors import QualityRejected
from core.image import ExposureFacts, FloatImage, Image, MaskBit, MaskImage
from core.noise import Sky, measure_sky, with_noise
from core.resample import resample_affine
from core.stars import SourceList, StarList, find_sources, select_stars

log = logging.getLogger(__name__)

Matrix = npt.NDArray[np.float64]

CLIP = 5.0  # sigma
RELATIVE_SCATTER = 0.15  # of the signal: frames of other seeing differ so much at a star's core
LEAST_SHARE = 0.5  # of the weights that must be left in a pixel


@dataclass(frozen=True)
class Frame:
    """One frame of a series, measured on its own grid.

    Attributes
    ----------
    image : Image
        Sky-subtracted, with variance.
    sky : Sky
        What was subtracted.
    sources : SourceList
        All sources.
    stars : StarList
        The point sources among them.
    """

    image: Image
    sky: Sky
    sources: SourceList
    stars: StarList


@dataclass(frozen=True)
class Alignment:
    """How a frame lies against the reference.

    Attributes
    ----------
    matrix : ndarray of float64, shape (2, 3)
        ``(frame x, frame y) = matrix @ (reference x, reference y, 1)``, what
        `core.resample.resample_affine` takes.
    rms : float
        Scatter of the stars around it, pixels per axis.
    matched : int
        Stars it was fitted to.
    flux_ratio : float
        Flux in the frame over flux in the reference, median over the stars.
    """

    matrix: Matrix
    rms: float
    matched: int
    flux_ratio: float


def measure_frame(image: Image) -> Frame:
    """Measure sky, noise and stars of a frame.

    Raises
    ------
    core.errors.QualityRejected
        If no star is found.
    """
    sky = measure_sky(image)
    noisy = with_noise(image, sky)
    clean = replace(noisy, data=noisy.data - sky.level)
    sources = find_sources(clean.data, sky.rms, clean.mask)
    stars = select_stars(sources)
    if len(stars) == 0:
        raise QualityRejected(f"{image.name}: no star was found to register on")
    facts = replace(clean.facts, fwhm=stars.fwhm)
    return Frame(replace(clean, facts=facts), sky, sources, stars)


def align(frame: Frame, reference: Frame, start: Matrix) -> Alignment:
    """Refine an affine transformation between two frames on all the stars that they share.

    Parameters
    ----------
    frame, reference : Frame
        Measured frames.
    start : ndarray of float64, shape (2, 3)
        A first guess of the matrix, right to within a seeing or so.

    Raises
    ------
    core.errors.QualityRejected
        If fewer than 6 stars fit, or they scatter by more than half a pixel.
    """
    ours, theirs = _bright(frame), _bright(reference)
    matrix = np.asarray(start, dtype=np.float64)
    tree = cKDTree(np.column_stack([ours.x, ours.y]))
    places = np.column_stack([theirs.x, theirs.y, np.ones(len(theirs))])
    fwhm = max(frame.stars.fwhm, reference.stars.fwhm)
    residual = np.zeros((0, 2))
    index = pairs = np.zeros(0, dtype=np.int64)
    for reach in (1.0 * fwhm, 0.5 * fwhm, 0.35 * fwhm, 0.35 * fwhm):
        distance, near = tree.query(places @ matrix.T, distance_upper_bound=reach)
        pairs = np.flatnonzero(np.isfinite(distance))
        index = near[pairs]
        if pairs.size < 6:
            break
        keep = np.ones(pairs.size, dtype=bool)
        for _ in range(4):
            target = np.column_stack([ours.x[index], ours.y[index]])
            fit = np.linalg.lstsq(places[pairs[keep]], target[keep], rcond=None)[0]
            residual = target - places[pairs] @ fit
            spread = 1.4826 * np.median(np.abs(residual[keep]), axis=0)
            refined = (np.abs(residual) < 3.5 * np.maximum(spread, 0.01)).all(axis=1)
            if refined.sum() < 6 or (refined == keep).all():
                break
            keep = refined
        matrix = fit.T
        pairs, index, residual = pairs[keep], index[keep], residual[keep]
    if pairs.size < 6:
        raise QualityRejected(
            f"{frame.image.name}: only {pairs.size} stars agree with {reference.image.name}"
        )
    rms = float(np.sqrt(np.mean(residual**2)))
    if rms > 0.5:
        raise QualityRejected(
            f"{frame.image.name}: the stars scatter by {rms:.2f} pixels around the registration"
        )
    ratio = _flux_ratio(frame, reference, ours.select(index), theirs.select(pairs), 1.5 * fwhm)
    return Alignment(matrix, rms, int(pairs.size), ratio)


def _bright(frame: Frame, limit: int = 800) -> SourceList:
    """Return the brightest clean sources; in a crowded field the stellar ones are too few."""
    sources = frame.sources
    ny, nx = frame.image.shape
    inside = (sources.x > 5) & (sources.y > 5) & (sources.x < nx - 6) & (sources.y < ny - 6)
    good = np.flatnonzero((sources.snr > 15) & (sources.elongation < 2) & inside)
    return sources.select(good[np.argsort(-sources.flux[good])][:limit])


def _flux_ratio(
    frame: Frame, reference: Frame, ours: SourceList, theirs: SourceList, radius: float
) -> float:
    """Return the median ratio of aperture fluxes of the brightest shared stars."""
    brightest = np.argsort(-theirs.flux)[:100]
    fluxes = []
    for one, sources in ((frame, ours), (reference, theirs)):
        flux, _, _ = sep.sum_circle(
            one.image.data, sources.x[brightest], sources.y[brightest], radius,
            mask=one.image.bad, bkgann=(2 * radius, 3 * radius),
        )  # fmt: skip
        fluxes.append(flux)
    good = (fluxes[0] > 0) & (fluxes[1] > 0)
    if not good.any():
        raise QualityRejected(f"{frame.image.name}: no star has a positive flux in both frames")
    return float(np.median(fluxes[0][good] / fluxes[1][good]))


def coadd(
    frames: Sequence[Frame],
    alignments: Sequence[Alignment],
    shape: tuple[int, int],
    *,
    threads: int = 1,
) -> Image:
    """Average registered frames, weighted, with outliers left out.

    Every frame has one weight, the inverse of its sky variance on the common flux scale times its
    seeing squared, so that the PSF of the average is the same everywhere; a weight for every
    pixel would give stars and sky another PSF.

    Parameters
    ----------
    frames : sequence of Frame
        At least one.
    alignments : sequence of Alignment
        Of every frame against the common grid.
    shape : tuple of int
        (ny, nx) of the common grid.
    threads : int
        Threads for the projection.

    Returns
    -------
    Image
        Sky-subtracted, on the flux scale of the reference; no WCS. A pixel that is saturated in
        any frame is `MaskBit.SATURATED`; one where less than half of the weight is left is
        `MaskBit.NO_DATA`.

    Raises
    ------
    ValueError
        If there are no frames, or not as many alignments.
    """
    if not frames or len(frames) != len(alignments):
        raise ValueError(f"{len(frames)} frames and {len(alignments)} alignments")
    data = np.empty((len(frames), *shape), dtype=np.float32)
    variance = np.empty_like(data)
    good = np.empty(data.shape, dtype=bool)
    saturated = np.zeros(shape, dtype=bool)
    weights = np.empty(len(frames))
    for i, (frame, alignment) in enumerate(zip(frames, alignments, strict=True)):
        on_grid = resample_affine(frame.image, alignment.matrix, shape, threads=threads)
        assert on_grid.variance is not None  # `measure_frame` made one
        scale = np.float32(1 / alignment.flux_ratio)
        data[i] = on_grid.data * scale
        variance[i] = on_grid.variance * scale**2
        good[i] = ~on_grid.bad
        saturated |= (on_grid.mask & MaskBit.SATURATED) != 0
        weights[i] = 1 / ((frame.sky.median_rms * scale * frame.stars.fwhm) ** 2)
    weights /= weights.sum()
    good &= ~_outliers(data, variance, good)
    return _average(frames, data, variance, good, saturated, weights.astype(np.float32))


def _outliers(
    data: FloatImage, variance: FloatImage, good: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Tell which pixels lie far from the median of the frames: cosmic rays, satellites."""
    if len(data) < 3:
        return np.zeros(data.shape, dtype=bool)
    values = np.where(good, data, np.float32(np.nan))
    values[:, ~good.any(axis=0)] = 0
    middle = np.nanmedian(values, axis=0)
    tolerance = np.sqrt(variance) * CLIP + RELATIVE_SCATTER * np.abs(middle)
    return np.abs(data - middle) > tolerance


def _average(
    frames: Sequence[Frame],
    data: FloatImage,
    variance: FloatImage,
    good: npt.NDArray[np.bool_],
    saturated: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float32],
) -> Image:
    """Sum up what is left, and describe it."""
    share = np.einsum("n,nyx->yx", weights, good.astype(np.float32))
    used = np.maximum(share, np.float32(1e-6))
    mean = np.einsum("n,nyx->yx", weights, np.where(good, data, 0)) / used
    noise = np.einsum("n,nyx->yx", weights**2, np.where(good, variance, 0)) / used**2
    mask: MaskImage = np.zeros(mean.shape, dtype=np.uint16)
    mask[saturated] |= np.uint16(MaskBit.SATURATED)
    empty = share < LEAST_SHARE
    mask[empty] |= np.uint16(MaskBit.NO_DATA)
    covered = ~empty
    mean[empty] = np.median(mean[covered]) if covered.any() else 0
    noise[empty] = np.median(noise[covered]) if covered.any() else 1
    facts = [frame.image.facts for frame in frames]
    log.info("averaged %d frames", len(frames))
    return Image(
        data=np.ascontiguousarray(mean, dtype=np.float32),
        mask=mask,
        variance=np.ascontiguousarray(noise, dtype=np.float32),
        facts=ExposureFacts(
            gain=_effective_gain(facts, weights),
            exposure_time=facts[0].exposure_time,
            mjd_mid=float(np.mean([f.mjd_mid for f in facts if f.mjd_mid is not None] or [0.0]))
            or None,
            band=facts[0].band,
        ),
        name=f"average of {len(frames)} frames",
    )


def _effective_gain(
    facts: Sequence[ExposureFacts], weights: npt.NDArray[np.float32]
) -> float | None:
    """Electrons per ADU of the average: a source's variance falls with the sum of weights²."""
    gains = [f.gain for f in facts if f.gain]
    if len(gains) < len(facts):
        return None
    return float(1 / np.sum(weights**2 / np.array(gains)))
