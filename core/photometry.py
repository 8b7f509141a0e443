"""Position, PSF flux, aperture fluxes and shape of the detections on a difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sep
from scipy import ndimage

from core.detection import CandidateFlag, Detections
from core.subtraction.difference import Difference

Column = npt.NDArray[np.float64]
APERTURE = 7.0  # pixels radius: ZTF's 14 pixel diameter
BIG_APERTURE = 9.0  # pixels radius: ZTF's 18 pixel diameter


@dataclass(frozen=True)
class PointSourceFit:
    """The PSF fit of one detection.

    Attributes
    ----------
    x, y : float
        0-based pixels.
    x_err, y_err : float
        1 sigma, pixels.
    flux, flux_err : float
        ADU, signed.
    chi2 : float
        Reduced chi-square.
    sharper, wider : float
        By how much chi-square falls when the PSF is narrowed to, or widened from, its width.
    """

    x: float
    y: float
    x_err: float
    y_err: float
    flux: float
    flux_err: float
    chi2: float
    sharper: float
    wider: float


@dataclass(frozen=True)
class Shape:
    """What the pixels around a detection look like.

    Attributes
    ----------
    a, b : float
        RMS along the axes in a Gaussian window of the seeing, corrected for it, pixels.
    fwhm : float
        ``2.355 sqrt(a b)``.
    n_negative, n_bad : int
        Pixels of the wrong sign and masked pixels in the central 5x5.
    sum_ratio : float
        Sum over sum of absolute values in the central 5x5.
    d_snr : float
        Difference over noise at the central pixel.
    """

    a: float
    b: float
    fwhm: float
    n_negative: int
    n_bad: int
    sum_ratio: float
    d_snr: float


def fit_point_source(
    difference: Difference, x: float, y: float, *, gain: float | None
) -> PointSourceFit | None:
    """Fit flux and position of the local PSF by weighted least squares.

    The source's own photon noise enters the errors through the fitted model, never through the
    noisy pixels. The positive bias of a flux whose position was fitted as well, ``1 / SNR²`` to
    first order (two more degrees of freedom in the maximum), is taken out. The error of the PSF
    (`core.psf.PSFModel.flux_error`) is not in that of the flux: like a zero point's, it is the same
    for all sources, and stands in the quality of the difference.

    Parameters
    ----------
    difference : Difference
        Of one exposure.
    x, y : float
        Where to start, 0-based pixels.
    gain : float or None
        Electrons per ADU of the difference; None leaves the source's photon noise out.

    Returns
    -------
    PointSourceFit or None
        None where too few pixels are usable.
    """
    fwhm = difference.psf.fwhm
    half = int(np.clip(np.ceil(1.6 * fwhm), 3, difference.psf.size // 2 - 2))
    ny, nx = difference.data.shape
    psf = difference.psf.at(x, y).astype(np.float64)
    spline = ndimage.spline_filter(psf, order=3)
    correlated = difference.correlation.factor(psf)
    start_x, start_y = x, y
    flux = 0.0
    for iteration in range(12):
        xi, yi = round(x), round(y)
        x0, x1 = max(0, xi - half), min(nx, xi + half + 1)
        y0, y1 = max(0, yi - half), min(ny, yi + half + 1)
        box = (slice(y0, y1), slice(x0, x1))
        good = difference.mask[box] == 0
        if good.sum() < 0.4 * (2 * half + 1) ** 2 or good.sum() < 9:
            return None
        data = difference.data[box].astype(np.float64)
        variance = difference.noise[box].astype(np.float64) ** 2
        profile, by_x, by_y = _profile(spline, x, y, x0, x1, y0, y1)
        if gain and iteration:
            variance = variance + np.maximum(flux * profile, 0) / gain
        weight = np.where(good, 1 / variance, 0)
        if iteration == 0:
            flux = float((weight * profile * data).sum() / (weight * profile**2).sum())
        basis = np.stack([profile, -flux * by_x, -flux * by_y]).reshape(3, -1)
        weighted = basis * weight.ravel()
        normal = weighted @ basis.T
        try:
            step = np.linalg.solve(normal, weighted @ (data - flux * profile).ravel())
        except np.linalg.LinAlgError:
            return None
        flux += float(step[0])
        move = np.clip(step[1:], -0.5, 0.5)
        x, y = x + float(move[0]), y + float(move[1])
        if np.hypot(x - start_x, y - start_y) > max(1.5, 0.7 * fwhm):
            x, y = start_x, start_y
            break
        if np.abs(move).max() < 1e-3:
            break
    covariance = np.linalg.pinv(normal)
    residual = data - flux * profile
    dof = max(int(good.sum()) - 3, 1)
    chi2 = float((weight * residual**2).sum())
    flux_err = correlated * float(np.sqrt(max(covariance[0, 0], 0)))
    snr2 = (flux / flux_err) ** 2 if flux_err > 0 else np.inf
    return PointSourceFit(
        x, y,
        correlated * float(np.sqrt(max(covariance[1, 1], 0))),
        correlated * float(np.sqrt(max(covariance[2, 2], 0))),
        flux * (1 - min(1 / snr2, 0.25)),
        flux_err,
        chi2 / dof,
        chi2 - _chi2_of(_resized(profile, x - x0, y - y0, 0.5), data, weight),
        chi2 - _chi2_of(ndimage.gaussian_filter(profile, 0.3 * fwhm), data, weight),
    )  # fmt: skip


def _profile(
    spline: Column, x: float, y: float, x0: int, x1: int, y0: int, y1: int
) -> tuple[Column, Column, Column]:
    """Return the PSF centred on (x, y) in a box, and its derivatives to x and y."""
    centre = spline.shape[0] // 2
    rows, cols = np.mgrid[y0:y1, x0:x1].astype(np.float64)
    at_y, at_x = rows - y + centre, cols - x + centre
    h = 0.05

    def sample(dx: float, dy: float) -> Column:
        values: Column = ndimage.map_coordinates(
            spline, [at_y + dy, at_x + dx], order=3, prefilter=False, mode="constant"
        )
        return values

    profile = sample(0, 0)
    return (
        profile,
        (sample(h, 0) - sample(-h, 0)) / (2 * h),
        (sample(0, h) - sample(0, -h)) / (2 * h),
    )


def _resized(profile: Column, cx: float, cy: float, factor: float) -> Column:
    """Shrink a profile around its centre."""
    rows, cols = np.mgrid[0 : profile.shape[0], 0 : profile.shape[1]].astype(np.float64)
    result: Column = ndimage.map_coordinates(
        profile, [cy + (rows - cy) / factor, cx + (cols - cx) / factor], order=1, mode="constant"
    )
    return result


def _chi2_of(profile: Column, data: Column, weight: Column) -> float:
    """Chi-square of the best-scaled profile."""
    power = float((weight * profile**2).sum())
    if power <= 0:
        return float((weight * data**2).sum())
    flux = float((weight * profile * data).sum()) / power
    return float((weight * (data - flux * profile) ** 2).sum())


def aperture_fluxes(
    difference: Difference, x: Column, y: Column, radius: float, *, gain: float | None
) -> tuple[Column, Column]:
    """Return fluxes and errors within a circle, ADU; masked pixels are filled by SEP's mean."""
    if len(x) == 0:
        return np.zeros(0), np.zeros(0)
    flux, error, _ = sep.sum_circle(
        difference.data, x, y, radius, err=difference.noise, mask=difference.mask != 0
    )
    half = int(np.ceil(radius))
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    disc = (np.hypot(rows, cols) <= radius).astype(np.float64)
    error = error * difference.correlation.factor(disc)
    if gain:
        error = np.sqrt(error**2 + np.maximum(flux, 0) / gain)
    return np.asarray(flux, dtype=np.float64), np.asarray(error, dtype=np.float64)


def measure_shape(difference: Difference, x: float, y: float, sign: int) -> Shape:
    """Measure second moments in a Gaussian window, and count pixels in the central 5x5."""
    fwhm = difference.psf.fwhm
    sigma = fwhm / 2.3548
    half = max(3, int(np.ceil(1.5 * fwhm)))
    ny, nx = difference.data.shape
    xi, yi = round(x), round(y)
    box = (slice(max(0, yi - half), yi + half + 1), slice(max(0, xi - half), xi + half + 1))
    rows, cols = np.mgrid[box[0].start : min(ny, box[0].stop), box[1].start : min(nx, box[1].stop)]
    good = difference.mask[box] == 0
    dx, dy = cols - x, rows - y
    window = np.exp(-0.5 * (dx**2 + dy**2) / sigma**2) * good
    light = sign * difference.data[box].astype(np.float64) * window
    total = light.sum()
    if total > 0:
        xx, yy, xy = (light * dx**2).sum(), (light * dy**2).sum(), (light * dx * dy).sum()
        middle, split = 0.5 * (xx + yy) / total, np.hypot(0.5 * (xx - yy), xy) / total
        a, b = _unwindowed(middle + split, sigma), _unwindowed(middle - split, sigma)
    else:
        a = b = sigma
    five = (slice(max(0, yi - 2), yi + 3), slice(max(0, xi - 2), xi + 3))
    values = sign * difference.data[five].astype(np.float64)
    cy, cx = min(max(yi, 0), ny - 1), min(max(xi, 0), nx - 1)
    return Shape(
        a,
        b,
        2.3548 * float(np.sqrt(a * b)),
        int((values < 0).sum()),
        int((difference.mask[five] != 0).sum()),
        float(values.sum() / max(np.abs(values).sum(), 1e-30)),
        float(sign * difference.scaled[cy, cx]),
    )


def _unwindowed(second_moment: float, sigma: float) -> float:
    """Take a Gaussian window of width sigma out of a second moment; bounded to (0.3, 4) sigma."""
    low, high = (0.3 * sigma) ** 2, (4 * sigma) ** 2
    inverse = 1 / max(second_moment, 1e-6) - 1 / sigma**2
    own = 1 / inverse if inverse > 0 else high
    return float(np.sqrt(np.clip(own, low, high)))


def shape_flags(fit: PointSourceFit, snr: float) -> CandidateFlag:
    """Judge the fit: sharper or wider than a point source, or badly described by one."""
    flags = CandidateFlag(0)
    if fit.sharper > max(9.0, 0.02 * snr**2):
        flags |= CandidateFlag.SHARP
    elif fit.wider > max(9.0, 0.02 * snr**2):
        flags |= CandidateFlag.EXTENDED
    if fit.chi2 > 2.5 + (0.05 * snr) ** 2:
        flags |= CandidateFlag.POOR_FIT
    return flags


def dipole_partners(
    detections: Detections, fwhm: float, *, reach: float = 1.5, share: float = 0.5
) -> npt.NDArray[np.bool_]:
    """Tell which detections have one of the other sign near, of comparable significance.

    Parameters
    ----------
    detections : Detections
        Both signs.
    fwhm : float
        Seeing, pixels.
    reach : float
        How near, in seeings.
    share : float
        The partner's S/N must be at least this part of the detection's own.
    """
    n = len(detections)
    partner = np.zeros(n, dtype=bool)
    for i in range(n):
        near = np.hypot(detections.x - detections.x[i], detections.y - detections.y[i]) < (
            reach * fwhm
        )
        other = near & (detections.sign != detections.sign[i])
        partner[i] = bool((detections.peak_snr[other] > share * detections.peak_snr[i]).any())
    return partner
