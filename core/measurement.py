"""From detections to candidates: measured, flagged, and the bogus that needs no model left out."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from core.celestial import to_icrs
from core.cutouts import cut_out
from core.detection import CandidateFlag, Detections, SignificanceMap, place_flags
from core.exposure import Candidate, NearestSource
from core.image import Image
from core.noise import Sky
from core.photometry import (
    APERTURE,
    BIG_APERTURE,
    PointSourceFit,
    aperture_fluxes,
    dipole_partners,
    fit_point_source,
    measure_shape,
    shape_flags,
)
from core.stars import SourceList
from core.subtraction.difference import Difference

log = logging.getLogger(__name__)

UNSOUND = (
    CandidateFlag.MASKED_NEAR
    | CandidateFlag.SATURATED_NEAR
    | CandidateFlag.TEMPLATE_BAD_NEAR
    | CandidateFlag.POOR_FIT
)
MAG_PER_RELATIVE_FLUX = 2.5 / np.log(10)


@dataclass(frozen=True)
class Field:
    """All that a measurement looks at.

    Attributes
    ----------
    science : Image
        With WCS (or None when aligned) and final facts.
    template : Image
        On the science grid.
    difference : Difference
        Of the two.
    significance : SignificanceMap
        Of the difference.
    sky : Sky
        Of the science image.
    template_sources : SourceList
        Sources of the template, positions on the science grid.
    template_flux_scale : float
        Science ADU per template ADU.
    """

    science: Image
    template: Image
    difference: Difference
    significance: SignificanceMap
    sky: Sky
    template_sources: SourceList
    template_flux_scale: float


def magnitude(flux: float, zero_point: float | None) -> float | None:
    """AB magnitude of ``abs(flux)``; None without a zero point or a flux."""
    if zero_point is None or not np.isfinite(flux) or flux == 0:
        return None
    return float(zero_point - 2.5 * np.log10(abs(flux)))


def magnitude_error(flux: float, flux_err: float, zero_point: float | None) -> float | None:
    """First-order error of `magnitude`, the zero point's own error not included."""
    if zero_point is None or not np.isfinite(flux_err) or flux == 0:
        return None
    return float(MAG_PER_RELATIVE_FLUX * flux_err / abs(flux))


def measure(
    field: Field, detections: Detections, threshold: float, cutout_size: int
) -> tuple[tuple[Candidate, ...], dict[str, int]]:
    """Measure every detection and keep those that may be real.

    Left out, and counted by reason: detections whose own pixel is masked or most of whose core is
    (``masked``), dipoles (``dipole``), anything sharper than the PSF (``sharp``), anything wider
    beside unusable pixels or badly fitted (``halo``), core pixels of both signs (``structure``),
    what no PSF describes on a template source ten times brighter
    (``residual``), fits below the threshold (``faint``), and a second detection of a
    source already taken (``duplicate``).

    Returns
    -------
    candidates : tuple of Candidate
        Most significant first.
    rejected : dict of str to int
        How many were left out, by reason.
    """
    difference = field.difference
    fwhm = difference.psf.fwhm
    partners = dipole_partners(detections, fwhm)
    rejected: Counter[str] = Counter()
    kept: list[tuple[int, PointSourceFit, CandidateFlag]] = []
    order = np.argsort(-detections.peak_snr, kind="stable")
    for i in order:
        start_x, start_y = float(detections.x[i]), float(detections.y[i])
        flags = place_flags(difference.mask, start_x, start_y, fwhm)
        if flags & CandidateFlag.CENTRE_MASKED:
            rejected["masked"] += 1
            continue
        fit = fit_point_source(difference, start_x, start_y, gain=difference.gain)
        if fit is None:
            rejected["masked"] += 1
            continue
        snr = abs(fit.flux) / fit.flux_err
        flags |= shape_flags(fit, snr)
        if detections.blended[i]:
            flags |= CandidateFlag.BLENDED
        if partners[i]:
            flags |= CandidateFlag.DIPOLE
        reason = _reason_to_reject(
            field, fit, flags, int(detections.sign[i]), float(detections.peak_snr[i]), threshold
        )
        if reason is None and any(
            np.hypot(fit.x - other.x, fit.y - other.y) < 0.5 * fwhm for _, other, _ in kept
        ):
            reason = "duplicate"
        if reason is not None:
            rejected[reason] += 1
            continue
        kept.append((int(i), fit, flags))
    candidates = _build(field, detections, kept, cutout_size)
    return candidates, dict(rejected)


def _reason_to_reject(
    field: Field,
    fit: PointSourceFit,
    flags: CandidateFlag,
    sign: int,
    peak_snr: float,
    threshold: float,
) -> str | None:
    if flags & CandidateFlag.DIPOLE:
        return "dipole"
    if flags & CandidateFlag.SHARP:
        return "sharp"
    if flags & CandidateFlag.EXTENDED and flags & UNSOUND:
        return "halo"
    if flags & CandidateFlag.POOR_FIT and _outshone(field.difference, fit):
        return "residual"
    if np.sign(fit.flux) != sign or abs(fit.flux) < 0.8 * threshold * fit.flux_err:
        return "faint"
    shape = measure_shape(field.difference, fit.x, fit.y, sign)
    if shape.n_bad > 8:
        return "masked"
    if shape.sum_ratio < min(0.3, 0.06 * peak_snr):
        return "structure"
    return None


def _outshone(difference: Difference, fit: PointSourceFit) -> bool:
    """Tell whether the template is more than ten times brighter here than the candidate."""
    reach = max(2, round(difference.psf.fwhm))
    yi, xi = round(fit.y), round(fit.x)
    box = np.s_[max(0, yi - reach) : yi + reach + 1, max(0, xi - reach) : xi + reach + 1]
    beneath = difference.convolved[box]
    if beneath.size == 0:
        return False
    peak = abs(fit.flux) * float(difference.psf.at(fit.x, fit.y).max())
    return bool(beneath.max() > 10 * peak)


def _build(
    field: Field,
    detections: Detections,
    kept: list[tuple[int, PointSourceFit, CandidateFlag]],
    cutout_size: int,
) -> tuple[Candidate, ...]:
    difference, science = field.difference, field.science
    facts = science.facts
    zero_point = facts.zero_point
    xs = np.array([fit.x for _, fit, _ in kept], dtype=np.float64)
    ys = np.array([fit.y for _, fit, _ in kept], dtype=np.float64)
    small, small_err = aperture_fluxes(difference, xs, ys, APERTURE, gain=difference.gain)
    big, big_err = aperture_fluxes(difference, xs, ys, BIG_APERTURE, gain=difference.gain)
    ny, nx = science.shape
    if science.wcs is not None and len(kept):
        ras, decs = to_icrs(science.wcs, xs, ys)
    else:
        ras = decs = np.full(len(kept), np.nan)
    nearest = _nearest_sources(field, xs, ys)
    candidates = []
    for n, (i, fit, flags) in enumerate(kept):
        shape = measure_shape(difference, fit.x, fit.y, int(detections.sign[i]))
        yi = int(np.clip(round(fit.y), 0, ny - 1))
        xi = int(np.clip(round(fit.x), 0, nx - 1))
        place_err = float(field.significance.flux_err[yi, xi])
        has_sky = np.isfinite(ras[n]) and np.isfinite(decs[n])
        candidates.append(
            Candidate(
                x=fit.x, y=fit.y, x_err=fit.x_err, y_err=fit.y_err,
                ra=float(ras[n]) % 360.0 if has_sky else None,
                dec=float(decs[n]) if has_sky else None,
                sign=int(detections.sign[i]),
                snr=abs(fit.flux) / fit.flux_err,
                peak_snr=float(detections.peak_snr[i]),
                flux=fit.flux, flux_err=fit.flux_err,
                mag=magnitude(fit.flux, zero_point),
                mag_err=magnitude_error(fit.flux, fit.flux_err, zero_point),
                chi2=fit.chi2,
                aperture_flux=float(small[n]), aperture_flux_err=float(small_err[n]),
                aperture_mag=magnitude(float(small[n]), zero_point),
                aperture_mag_err=magnitude_error(float(small[n]), float(small_err[n]), zero_point),
                big_aperture_flux=float(big[n]), big_aperture_flux_err=float(big_err[n]),
                big_aperture_mag=magnitude(float(big[n]), zero_point),
                big_aperture_mag_err=magnitude_error(float(big[n]), float(big_err[n]), zero_point),
                sky=float(field.sky.level[yi, xi]),
                fwhm=shape.fwhm, a=shape.a, b=shape.b, elongation=shape.a / shape.b,
                n_negative=shape.n_negative, n_bad=shape.n_bad, sum_ratio=shape.sum_ratio,
                d_snr=shape.d_snr,
                edge_distance=float(min(fit.x, fit.y, nx - 1 - fit.x, ny - 1 - fit.y)),
                limiting_mag=magnitude(5 * place_err, zero_point),
                nearest=nearest[n],
                flags=int(flags),
                rb=None,
                cutouts=cut_out(
                    science, field.template, difference, fit.x, fit.y, cutout_size
                ),
            )
        )  # fmt: skip
    return tuple(candidates)


def _nearest_sources(field: Field, xs: np.ndarray, ys: np.ndarray) -> list[NearestSource | None]:
    """Find the template source nearest to each place."""
    sources = field.template_sources
    if len(sources) == 0 or len(xs) == 0:
        return [None] * len(xs)
    tree = cKDTree(np.column_stack([sources.x, sources.y]))
    distance, index = tree.query(np.column_stack([xs, ys]))
    if field.science.wcs is not None:
        ra, dec = to_icrs(field.science.wcs, sources.x[index], sources.y[index])
    else:
        ra = dec = np.full(len(xs), np.nan)
    zero_point = field.science.facts.zero_point
    result: list[NearestSource | None] = []
    for n, k in enumerate(index):
        flux = float(sources.flux[k]) * field.template_flux_scale
        error = abs(flux) / max(float(sources.snr[k]), 1e-3)
        has_sky = np.isfinite(ra[n]) and np.isfinite(dec[n])
        result.append(
            NearestSource(
                float(distance[n]),
                float(ra[n]) % 360.0 if has_sky else None,
                float(dec[n]) if has_sky else None,
                magnitude(flux, zero_point) if flux > 0 else None,
                magnitude_error(flux, error, zero_point) if flux > 0 else None,
            )
        )
    return result
