"""A PSF model fitted to the pixels of the stars, each with its own flux, place and sky.

`core.psf` moves stars to their centroids and averages them. ZOGY divides by the power of the PSF
and measures fluxes with its sum, so it needs a model that is true to thousandths of the peak, and
a sum that knows of the wings. Here flux and place of every star are fitted with the model itself,
every star weighs by what it knows, and the light beyond the stamp is extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft

from core.image import FloatImage
from core.polynomials import terms
from core.psf import PSFModel, fwhm_of
from core.psf_error import StarFit, flux_error, places_over
from core.stars import SourceList
from core.subtraction.sfft.stamps import Stamps, stamps_at
from core.subtraction.zogy.cut_boxes import cut_boxes
from core.subtraction.zogy.transform import FittedPSF

Float64 = npt.NDArray[np.float64]
Real = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
MOST_STARS = 300
FEWEST_STARS = 3
SEARCH = 3  # pixels around a star's expected place in which its peak is looked for
CLIP = 5.0  # sigma
PURE = 100.0  # sigma, of a star whose neighbours do not matter much
CERTAIN = 50.0  # sigma, of a star that tells the PSF by itself
PLENTY = 60  # of them, among which what is none does not matter
ALIKE = 0.12  # of the second moment, by which stars of a frame differ
EARLY = 3  # rounds
SLACKS = (
    0.3,
    0.2,
    0.15,
    0.05,
    0.02,
    0.01,
)  # of the model, what a pixel may be off beyond its noise
VARIATION = 0.04  # of its change with the width, that a PSF changes in other ways over the frame
NOISE_MARGIN = 1.5  # by which the PSF may be noisier than in the middle of the frame
LEAST_MODE_ERROR = 0.003  # of the width and the elongation of a star
NO_STAR = 0.05  # of its flux, that a source differs from the PSF by which is none
LEAST_ERROR = 0.003  # of a star's flux at every pixel, that the model is never better than
FLATTEST, STEEPEST = 1.5, 6.0  # Moffat exponents of wings that are extrapolated
MOST_CHANGE = (0.8, 1.25)  # of the sum; what differs by more is not one PSF
MOST_OUTSIDE = 0.05  # of the flux, beyond the stamp


@dataclass(frozen=True)
class _Boxes:
    """Boxes around the stars; planes of float32, shape (n, side, side)."""

    data: Real
    variance: Real
    good: Bool
    basis: Float64  # polynomial terms at each star, (n, n_terms)
    ring: Float64  # level in a ring beyond the box, (n,)
    ring_error: Float64
    ring_radius: float
    half: int

    def __len__(self) -> int:
        return len(self.data)


@dataclass
class _Fit:
    """What is fitted: one PSF for all, and flux and place of each star."""

    planes: Float64  # (n_terms, side, side)
    fwhm: float
    flux: Float64
    place: Float64  # (n, 2): dx, dy of the stamp's centre from the centre pixel
    off_centre: Float64  # (n, 2): dx, dy of the PSF's centre from the stamp's
    sky: Float64
    error: float  # of the model, relative to its value
    kept: Bool
    started: bool = False
    noise: float = 0.0  # of the PSF's transform


def seeing_of(data: FloatImage, bad: Bool, stars: SourceList, highest: float) -> float | None:
    """Measure the seeing of an image on stars that were found on another one.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Sky-subtracted.
    bad : ndarray of bool, shape (ny, nx)
        Pixels not to use.
    stars : SourceList
        Point sources; those that the image lacks do not matter while they are a minority.
    highest : float
        The largest FWHM that is looked for, pixels.

    Returns
    -------
    float or None
        FWHM, pixels, of the median of the brightest stars; None without 3 of them.
    """
    half = int(np.ceil(1.5 * highest)) + 2
    stamps = _peaks(data, stars.x, stars.y, half)
    if len(stamps) < FEWEST_STARS:
        return None
    whole = ~cut_boxes(bad, stamps, half).any(axis=(1, 2))
    stars_ = cut_boxes(data, stamps, half)[whole].astype(np.float64)
    if len(stars_) < FEWEST_STARS:
        return None
    core = _radius(half) < 3
    brightest = stars_[np.argsort(-stars_[:, core].sum(axis=1))[:50]]
    middle = np.median(brightest / brightest.max(axis=(1, 2), keepdims=True), axis=0)
    return fwhm_of(middle)


@dataclass(frozen=True)
class Wing:
    """The profile ``level (1 + r² / core2) ** -beta``."""

    level: float
    core2: float
    beta: float

    def at(self, radius: float) -> float:
        """Value at a radius, pixels."""
        return float(self.level * (1 + radius**2 / self.core2) ** -self.beta)

    def beyond(self, radius: float) -> float:
        """Light beyond a radius."""
        scale = np.pi * self.core2 / (self.beta - 1)
        return float(scale * self.level * (1 + radius**2 / self.core2) ** (1 - self.beta))


def fit_psf(
    data: FloatImage,
    variance: FloatImage,
    bad: Bool,
    stars: SourceList,
    start: PSFModel,
    shift: tuple[float, float] = (0.0, 0.0),
) -> PSFModel:
    """Refine a measured PSF model on the pixels of the stars.

    Parameters
    ----------
    data, variance : ndarray of float32, shape (ny, nx)
        Sky-subtracted image and its noise, ADU and ADU².
    bad : ndarray of bool, shape (ny, nx)
        Pixels not to use.
    stars : SourceList
        Point sources.
    start : PSFModel
        Where to start.
    shift : tuple of float
        (dx, dy): the stars are expected at x + dx, y + dy, pixels.

    Returns
    -------
    PSFModel
        Its stamp sums to the part of the flux that falls into it; ``start`` where fewer than 3
        stars are usable.
    """
    shape = (data.shape[0], data.shape[1])
    half = int(np.clip(np.ceil(4.0 * start.fwhm), 9, 40))
    place = stars.x + shift[0], stars.y + shift[1]
    boxes = _boxes(data, variance, bad, place, start.fwhm, half)
    if boxes is None:
        return start
    order = 2 if len(boxes) >= 40 else 1 if len(boxes) >= 12 else 0
    fit = _start(boxes, start, order, half)
    core = _radius(half) <= max(1.5 * start.fwhm, 3.0)
    for number, slack in enumerate(SLACKS):
        _fit_stars(boxes, fit, core)
        expected = _models(boxes, fit, placed=True)
        early = number < EARLY
        if early:  # the first model may lack the wings, and its core be another's
            expected = np.where(core, expected, _ring_medians(boxes, fit))
        centred, weight = _centred(boxes, fit, expected, slack, core if early else None)
        _fit_pixels(boxes, fit, centred, weight)
    n = int(fit.kept.sum())
    error = _flux_error(boxes, fit, centred, weight, places_over(order, shape))
    factor, error = _agreed_sum(start, fit.planes[0], error)
    return FittedPSF(
        (factor * fit.planes).astype(np.float32), order, shape, fwhm_of(fit.planes[0]), n, error,
        fit.noise,
    )  # fmt: skip


def _radius(half: int) -> Float64:
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return np.hypot(y, x)


def _boxes(
    data: FloatImage,
    variance: FloatImage,
    bad: Bool,
    place: tuple[Float64, Float64],
    fwhm: float,
    half: int,
) -> _Boxes | None:
    """Cut boxes around the brightest stars whose cores are whole."""
    shape = (data.shape[0], data.shape[1])
    outer = half + max(4, half // 2)
    stamps = _peaks(data, *place, outer)
    if len(stamps) < FEWEST_STARS:
        return None
    core = int(np.ceil(1.5 * fwhm))
    whole = ~cut_boxes(bad, stamps, core).any(axis=(1, 2))
    brightness = cut_boxes(data, stamps, core).sum(axis=(1, 2))
    noise = np.sqrt(cut_boxes(variance, stamps, core).sum(axis=(1, 2)))
    order = np.argsort(-np.where(whole, brightness, -np.inf), kind="stable")
    use = order[: min(int((whole & (brightness > 10 * noise)).sum()), MOST_STARS)]
    stamps = stamps.select(use)
    if (brightness[use] > CERTAIN * noise[use]).sum() < PLENTY:
        stamps = stamps.select(_sharpest(data, variance, stamps, fwhm))
    if len(stamps) < FEWEST_STARS:
        return None
    wide, hidden = cut_boxes(data, stamps, outer), cut_boxes(bad, stamps, outer)
    radius = _radius(outer)
    ring = (radius > half + 1) & (radius <= outer)
    inner = slice(outer - half, outer + half + 1)
    noise2 = cut_boxes(variance, stamps, half)
    sigma = np.sqrt(np.median(noise2, axis=(1, 2)))
    levels, known = ring_levels(np.where(hidden[:, ring], np.nan, wide[:, ring]), sigma)
    error = sigma / np.sqrt(np.maximum(known, 1))
    return _Boxes(
        wide[:, inner, inner], noise2, ~hidden[:, inner, inner],
        terms(2, stamps.x, stamps.y, shape), levels, error,
        float(np.mean(radius[ring])), half,
    )  # fmt: skip


def ring_levels(around: Real, sigma: Float64) -> tuple[Float64, Float64]:
    """Measure the level around each star.

    It is the mean without outliers of the same size as are left out of the PSF itself. In a crowded
    field a median lies above what neighbours leave in the box: the PSF's wings went negative, and
    its sum, and with it every flux scale, was off by 20 %.

    Parameters
    ----------
    around : ndarray of float32, shape (n, pixels)
        NaN where a pixel is bad.
    sigma : ndarray of float64, shape (n,)
        Noise of a pixel.

    Returns
    -------
    level, count : ndarray of float64, shape (n,)
        ADU, and from how many pixels; 0 where there is none.
    """
    known = np.isfinite(around)
    level = np.zeros(len(around))
    some = known.any(axis=1)
    level[some] = np.nanmedian(around[some], axis=1)
    count = known.sum(axis=1)
    for _ in range(3):
        calm = np.abs(around - level[:, None]) < CLIP * sigma[:, None]  # never where NaN
        count = calm.sum(axis=1)
        mean = np.where(calm, around, 0).sum(axis=1, dtype=np.float64) / np.maximum(count, 1)
        level = np.where(count > 0, mean, level)
    return level, count.astype(np.float64)


def _sharpest(data: FloatImage, variance: FloatImage, stamps: Stamps, fwhm: float) -> Bool:
    """Tell the stars from what is wider: among few sources most may be galaxies.

    The second moment under a Gaussian window is compared with that of the sharpest sources; one
    of them may be something else.
    """
    half = int(np.ceil(1.5 * fwhm)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    light = cut_boxes(data, stamps, half).astype(np.float64)
    noise2 = cut_boxes(variance, stamps, half).astype(np.float64)
    centre = np.zeros((len(stamps), 2))
    for _ in range(6):
        away2 = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2
        window = np.exp(-0.5 * away2 / (fwhm / 2.3548) ** 2)
        total = np.maximum((window * light).sum(axis=(1, 2)), 1e-30)
        offset = np.stack([(window * light * axis).sum(axis=(1, 2)) for axis in (x, y)], axis=1)
        centre += np.clip(2 * (offset / total[:, None] - centre), -0.5, 0.5)
    size = (window * light * away2).sum(axis=(1, 2)) / total
    spread = window * (away2 - size[:, None, None])
    error = np.sqrt((spread**2 * noise2).sum(axis=(1, 2))) / total
    certain = np.flatnonzero((error < 0.1 * size) & (size > 0))
    if certain.size < FEWEST_STARS:
        return np.zeros(len(stamps), dtype=bool)
    sharp = float(np.sort(size[certain])[1])
    for _ in range(3):
        alike = np.abs(size - sharp) < 2 * error + ALIKE * sharp
        weight = np.where(alike, 1 / (error**2 + (0.5 * ALIKE * sharp) ** 2), 0)
        sharp = float((weight * size).sum() / weight.sum())
    return np.asarray(alike & (error < 0.2 * size))


def _peaks(data: FloatImage, x: Float64, y: Float64, half: int) -> Stamps:
    """Centre stamps on the brightest pixel around each place."""
    near = stamps_at(x, y, half + SEARCH, 0, (data.shape[0], data.shape[1]))
    if len(near) == 0:
        return near
    window = cut_boxes(data, near, SEARCH + 1).astype(np.float64)
    inner = 2 * SEARCH + 1
    smooth = np.zeros((len(near), inner, inner))
    for j in range(3):
        for i in range(3):
            smooth += window[:, j : j + inner, i : i + inner]
    row, column = np.divmod(np.argmax(smooth.reshape(len(near), -1), axis=1), inner)
    return Stamps(near.x + column - SEARCH, near.y + row - SEARCH, half)


def _start(boxes: _Boxes, start: PSFModel, order: int, half: int) -> _Fit:
    n = len(boxes)
    side = 2 * half + 1
    planes = np.zeros((terms(order, 0, 0, start.shape).size, side, side))
    given = start.coefficients[: len(planes)]
    cut = min(half, start.size // 2)
    ours, theirs = slice(half - cut, half + cut + 1), start.size // 2 - cut
    stop = theirs + 2 * cut + 1
    planes[: len(given), ours, ours] = given[:, theirs:stop, theirs:stop]
    flux = np.where(boxes.good, boxes.data, 0).sum(axis=(1, 2), dtype=np.float64)
    return _Fit(
        planes, start.fwhm, np.maximum(flux, 1.0), np.zeros((n, 2)), np.zeros((n, 2)),
        np.zeros(n), 0.05,
        np.ones(n, dtype=bool),
    )  # fmt: skip


def _shifted(stamps: npt.NDArray[np.floating], place: Float64, *, slopes: bool) -> list[Float64]:
    """Move stamps by fractions of a pixel (sinc); also the slopes along x and y."""
    side = stamps.shape[-1]
    grid = int(scipy.fft.next_fast_len(side + 6, real=True))
    spectrum = scipy.fft.rfft2(stamps.astype(np.float32), s=(grid, grid))
    ky = (2j * np.pi * np.fft.fftfreq(grid)).astype(np.complex64)[None, :, None]
    kx = (2j * np.pi * np.fft.rfftfreq(grid)).astype(np.complex64)[None, None, :]
    dx = place[:, 0, None, None].astype(np.float32)
    dy = place[:, 1, None, None].astype(np.float32)
    spectrum = spectrum * (np.exp(-kx * dx) * np.exp(-ky * dy))
    wanted = [spectrum, -kx * spectrum, -ky * spectrum] if slopes else [spectrum]
    return [scipy.fft.irfft2(w, s=(grid, grid))[:, :side, :side].astype(np.float64) for w in wanted]


def _models(boxes: _Boxes, fit: _Fit, *, placed: bool = False) -> Float64:
    """The PSF at every star; as bright as the star and at its place if ``placed``."""
    n_terms = len(fit.planes)
    models: Float64 = np.tensordot(boxes.basis[:, :n_terms], fit.planes, axes=1)
    if not placed:
        return models
    return fit.flux[:, None, None] * _shifted(models, fit.place, slopes=False)[0]


def _ring_medians(boxes: _Boxes, fit: _Fit) -> Float64:
    """Every star's own profile: the median of its pixels at each radius, interpolated."""
    data = np.where(boxes.good, boxes.data - fit.sky[:, None, None], np.nan)
    radius = _radius(boxes.half)
    rings = np.rint(radius).astype(int)
    n = int(rings.max()) + 1
    medians = np.zeros((len(boxes), n))
    for number in range(n):
        values = data[:, rings == number]
        some = np.isfinite(values).any(axis=1)
        medians[some, number] = np.nanmedian(values[some], axis=1)
    low = np.minimum(radius.astype(int), n - 2)
    share = np.clip(radius - low, 0, 1)
    return np.asarray(medians[:, low] * (1 - share) + medians[:, low + 1] * share)


def _fit_stars(boxes: _Boxes, fit: _Fit, core: Bool) -> None:
    """Fit flux and place of every star with the current PSF, and how good that is."""
    models = _models(boxes, fit)
    for step in range(3):
        unit, by_x, by_y = (plane[:, core] for plane in _shifted(models, fit.place, slopes=True))
        data = boxes.data[:, core].astype(np.float64) - fit.sky[:, None]
        model = fit.flux[:, None] * unit
        noise2 = boxes.variance[:, core] + (fit.error * model) ** 2
        off = np.abs(data - model) > CLIP * np.sqrt(noise2) + 0.3 * np.abs(model)
        off &= fit.started or step > 0  # the first flux is a guess
        weight = np.where(boxes.good[:, core] & ~off, 1 / noise2, 0)
        basis = np.stack([unit, by_x, by_y], axis=1)
        norm = np.sqrt(np.einsum("scp,sp,scp->sc", basis, weight, basis)) + 1e-30
        basis /= norm[:, :, None]
        weighted = basis * weight[:, None, :]
        normal = weighted @ basis.transpose(0, 2, 1) + 1e-9 * np.eye(3)
        solution = np.linalg.solve(normal, weighted @ data[:, :, None])[:, :, 0] / norm
        flux = np.maximum(solution[:, 0], 1e-3 * np.abs(fit.flux) + 1e-30)
        fit.place += np.clip(solution[:, 1:] / flux[:, None], -0.5, 0.5)
        fit.flux = flux
    fit.place = np.clip(fit.place, -1.5, 1.5)
    fit.started = True
    used = weight > 0
    residual2 = np.where(used, (data - fit.flux[:, None] * unit) ** 2, 0).sum(axis=1)
    photons = np.where(used, boxes.variance[:, core], 0).sum(axis=1)
    signal2 = np.where(used, (fit.flux[:, None] * unit) ** 2, 0).sum(axis=1)
    scatter2 = (residual2 - photons) / np.maximum(signal2, 1e-30)
    telling = signal2 > 400 * photons
    if telling.sum() < FEWEST_STARS:
        telling = signal2 >= np.sort(signal2)[-FEWEST_STARS]
    middle = float(np.median(scatter2[telling]))
    fit.error = float(np.clip(np.sqrt(max(middle, 0)), LEAST_ERROR, 0.1))
    # the brightest star shows best what is still wrong with the model: it must not go for that
    allowed = photons + max(3 * fit.error, NO_STAR) ** 2 * signal2
    chi2 = residual2 / np.maximum(allowed, 1e-30)
    lost = 1 - used.mean(axis=1)
    kept = (chi2 < 4 * max(float(np.median(chi2)), 0.5)) & (lost < 0.3)
    fit.kept = kept if kept.sum() >= FEWEST_STARS else np.ones_like(kept)


def _centred(
    boxes: _Boxes, fit: _Fit, expected: Float64, slack: float, trusted: Bool | None
) -> tuple[Float64, Float64]:
    """Bring every star to the centre and to unit flux; a neighbour gives way to the model.

    Returns
    -------
    centred, weight : ndarray of float64, shape (n, side, side)
    """
    data = boxes.data - fit.sky[:, None, None]
    noise2 = boxes.variance + (fit.error * expected) ** 2
    off = np.abs(data - expected) > CLIP * np.sqrt(noise2) + slack * np.abs(expected)
    if trusted is not None:
        off[:, trusted] = False
    use = boxes.good & ~off
    filled = np.where(use, data, expected)
    centred = _shifted(filled, -(fit.place + fit.off_centre), slopes=False)[0]
    flux = fit.flux[:, None, None]
    weight = np.where(use & fit.kept[:, None, None], flux**2 / noise2, 0)
    # what faint sources are blended with, or sit on, is a larger part of them
    snr2 = (expected**2 / boxes.variance).sum(axis=(1, 2))
    weight *= (snr2 / (snr2 + PURE**2))[:, None, None]
    return centred / flux, weight


def _fit_pixels(boxes: _Boxes, fit: _Fit, centred: Float64, weight: Float64) -> None:
    """Solve for the PSF's pixels, and give it the sum that the light within the stamp has."""
    n_terms, side, _ = fit.planes.shape
    basis = boxes.basis[:, :n_terms]
    w = weight.reshape(len(boxes), -1)
    products = (basis[:, :, None] * basis[:, None, :]).reshape(len(boxes), -1)
    normal = (w.T @ products).reshape(-1, n_terms, n_terms)
    modes = _modes(fit.planes[0]).reshape(3, -1)
    varying = _mode_terms(boxes, fit, centred, weight, modes) @ modes
    # what is left of the change over the frame is small, and between few stars it would be noise
    profile = _profile(fit.planes[0]).ravel()
    likely = np.maximum(VARIATION * (np.abs(modes[0]) + profile), 1e-5 * profile.max())
    for t in range(1, n_terms):
        normal[:, t, t] += 1 / (likely if t < 3 else 0.5 * likely) ** 2
    normal[:, 0, 0] += 1e-6 / np.maximum(profile, 1e-4 * profile.max()) ** 2
    rest = centred.reshape(len(boxes), -1) - basis @ varying
    right = np.stack([(w * basis[:, t, None] * rest).sum(axis=0) for t in range(n_terms)], axis=1)
    solved = np.linalg.solve(normal, right[:, :, None])[:, :, 0].T + varying
    planes = solved.reshape(n_terms, side, side)
    half = boxes.half
    radius = _radius(half)
    planes = planes * _window(half)
    error2 = 1 / np.maximum(w.sum(axis=0).reshape(side, side), 1e-30)
    wing = _wing(planes[0], error2, radius, half, fit.fwhm)
    sums = planes.sum(axis=(1, 2))
    outside = 0.0 if wing is None else min(wing.beyond(half - 0.5), MOST_OUTSIDE * sums[0])
    total = sums[0] + outside
    fit.planes = np.stack(
        [planes[0] / total, *((p - s * planes[0] / sums[0]) / total
                              for p, s in zip(planes[1:], sums[1:], strict=True))]
    )  # fmt: skip
    # the wings are smoothed before they are used (`core.subtraction.zogy.psf`)
    seen = radius < 1.5 * fit.fwhm
    fit.noise = float(NOISE_MARGIN * np.sqrt(error2[seen].sum()) / total)
    fit.sky = _sky(boxes, fit, 0.0 if wing is None else wing.at(boxes.ring_radius) / total)
    fit.off_centre = _off_centre(boxes, fit)


def _flux_error(
    boxes: _Boxes, fit: _Fit, centred: Float64, weight: Float64, places: Float64
) -> float:
    """Estimate what the PSF brings into all fluxes, from how the stars scatter around it."""
    n, n_terms = len(boxes), len(fit.planes)
    mean = fit.planes[0].ravel()
    model = _models(boxes, fit).reshape(n, -1)
    residual = np.where(weight > 0, centred.reshape(weight.shape), 0).reshape(n, -1)
    residual -= np.where(weight.reshape(n, -1) > 0, model, 0)
    used = fit.kept & (weight.reshape(n, -1).sum(axis=1) > 0)
    stars = StarFit(boxes.basis[:, :n_terms], model, residual, weight.reshape(n, -1), used)
    return flux_error(stars, mean / mean.sum(), _window(boxes.half).ravel(), places)


def _agreed_sum(start: PSFModel, plane: Float64, error: float) -> tuple[float, float]:
    """Agree with the model that was measured before upon the sum, each as sure as it says.

    Both see the same stars, but tell their wings from the sky in other ways: fluxes measured with
    the one or the other differ by up to 2 %, and either may be the better one.

    Parameters
    ----------
    start : PSFModel
    plane : ndarray of float64, shape (side, side)
        The fitted PSF in the middle of the frame.
    error : float
        Relative error of fluxes measured with it.

    Returns
    -------
    factor : float
        What the fitted PSF is to be multiplied with.
    error : float
        Of fluxes then; the two errors are taken for one and the same.
    """
    if not (start.flux_error > 0 and error > 0):
        return 1.0, error
    ny, nx = start.shape
    given = start.at(0.5 * (nx - 1), 0.5 * (ny - 1)).astype(np.float64)
    cut = min(given.shape[0], plane.shape[0]) // 2
    ours, theirs = (
        stamp[middle - cut : middle + cut + 1, middle - cut : middle + cut + 1]
        for stamp, middle in ((plane, plane.shape[0] // 2), (given, given.shape[0] // 2))
    )
    flux = float((ours * theirs).sum() / (ours**2).sum())
    share = error**2 / (error**2 + start.flux_error**2)
    factor = float(np.clip(flux, *MOST_CHANGE)) ** share
    return factor, share * start.flux_error + (1 - share) * error


def _window(half: int) -> Float64:
    """Return the taper: 1 in the stamp, and 0 from its rim on."""
    return np.clip((half + 0.5 - _radius(half)) / 2.0, 0, 1)


def _modes(plane: Float64) -> Float64:
    """How a PSF changes when it grows wider, and when it is drawn out along x or the diagonal."""
    half = plane.shape[0] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    slope_y, slope_x = np.gradient(plane)
    return -np.stack(
        [2 * plane + x * slope_x + y * slope_y, x * slope_x - y * slope_y,
         x * slope_y + y * slope_x]
    )  # fmt: skip


def _mode_terms(
    boxes: _Boxes, fit: _Fit, centred: Float64, weight: Float64, modes: Float64
) -> Float64:
    """Fit width and elongation of every star, and how they change over the frame.

    Returns
    -------
    ndarray of float64, shape (n_terms, 3)
        Polynomials of the three modes, without their constants: these are in the mean PSF.
    """
    n, n_terms = len(boxes), len(fit.planes)
    out = np.zeros((n_terms, 3))
    if n_terms == 1:
        return out
    mean = fit.planes[0].ravel()
    own = np.broadcast_to(np.vstack([mean, modes]), (n, 4, mean.size))
    weighted = own * weight.reshape(n, 1, -1)
    normal = weighted @ own.transpose(0, 2, 1)
    scale = 1 / np.sqrt(np.maximum(np.einsum("scc->sc", normal), 1e-30))
    normal = normal * scale[:, :, None] * scale[:, None, :] + 1e-9 * np.eye(4)
    inverse = np.linalg.inv(normal)
    right = (weighted @ centred.reshape(n, -1, 1))[:, :, 0] * scale
    found = np.einsum("scd,sd->sc", inverse, right) * scale
    error = np.sqrt(np.einsum("scc->sc", inverse)) * scale
    basis = boxes.basis[:, :n_terms]
    for mode in range(3):
        value = found[:, 1 + mode] / np.where(np.abs(found[:, 0]) > 0.1, found[:, 0], np.inf)
        sigma = np.hypot(error[:, 1 + mode], LEAST_MODE_ERROR)
        keep = fit.kept & (weight.reshape(n, -1).sum(axis=1) > 0)
        for _ in range(4):
            strength = np.where(keep, 1 / sigma, 0)[:, None]
            solution = np.linalg.lstsq(basis * strength, value * strength[:, 0], rcond=None)[0]
            pull = np.abs(value - basis @ solution) / sigma
            limit = 4 * max(1.4826 * float(np.median(pull[keep])), 1.0) if keep.any() else 0.0
            keep &= pull < limit
        if keep.sum() >= 2 * n_terms:
            out[1:, mode] = np.clip(solution[1:], -0.5, 0.5)
    return out


def _off_centre(boxes: _Boxes, fit: _Fit) -> Float64:
    """Where the PSF's centre lies at every star: stars' places and it could move together."""
    half = boxes.half
    axis = np.arange(-half, half + 1.0)
    sigma = fit.fwhm / 2.3548
    window = np.exp(-0.5 * (axis[:, None] ** 2 + axis[None, :] ** 2) / sigma**2)
    models = _models(boxes, fit)
    weighted = models * window
    light = weighted.sum(axis=(1, 2))
    centre = np.stack(
        [(weighted * axis[None, :]).sum(axis=(1, 2)), (weighted * axis[:, None]).sum(axis=(1, 2))],
        axis=1,
    )  # fmt: skip
    slope_y, slope_x = np.gradient(fit.planes[0])
    middle = (fit.planes[0] * window).sum()
    moves = np.array(
        [-(slope_x * window * axis[None, :]).sum(), -(slope_y * window * axis[:, None]).sum()]
    )
    return np.clip(centre / light[:, None] / (moves / middle), -1.0, 1.0)


def _profile(plane: Float64) -> Float64:
    """Mean of a centred stamp over rings, at every pixel."""
    rings = np.rint(_radius(plane.shape[0] // 2)).astype(int)
    mean = np.bincount(rings.ravel(), weights=plane.ravel()) / np.bincount(rings.ravel())
    return np.asarray(np.abs(mean)[rings])


def _wing(plane: Float64, error2: Float64, radius: Float64, half: int, fwhm: float) -> Wing | None:
    """Moffat profile through the outer rings of a stamp; None where no light is seen there."""
    means = []
    for near, far in ((0.5, 0.7), (0.7, 0.9)):
        ring = (radius > near * half) & (radius <= far * half)
        weight = 1 / error2[ring]
        means.append((float((plane[ring] * weight).sum() / weight.sum()), float(weight.sum())))
    (inner, _), (outer, weight_) = means
    if not (outer > 5 / np.sqrt(weight_) and inner > outer):
        return None
    slope = np.log(inner / outer) / np.log(0.8 / 0.6)
    between = (0.7 * half) ** 2
    beta = 0.5 * slope
    for _ in range(10):
        beta = float(np.clip(beta, FLATTEST, STEEPEST))
        core2 = fwhm**2 / (4 * (2 ** (1 / beta) - 1))
        beta = 0.5 * slope * (core2 + between) / between
    beta = float(np.clip(beta, FLATTEST, STEEPEST))
    return Wing(outer * (1 + (0.8 * half) ** 2 / core2) ** beta, core2, beta)


def _sky(boxes: _Boxes, fit: _Fit, wing: float) -> Float64:
    """Level under every star: that of the ring around it, as far as the rings really differ."""
    level = boxes.ring - fit.flux * max(wing, 0.0)
    weight = 1 / boxes.ring_error**2
    middle = float((level * weight).sum() / weight.sum())
    spread2 = (1.4826 * float(np.median(np.abs(level - np.median(level))))) ** 2
    real = max(spread2 - float(np.median(boxes.ring_error)) ** 2, 0.0)
    return middle + (level - middle) * real / (real + boxes.ring_error**2)
