"""A result of the pipeline made by hand, for tests of what comes after the pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from astropy.wcs import WCS

from core.exposure import (
    Candidate,
    Cutouts,
    Exposure,
    ExposureResult,
    NearestSource,
    TemplateFacts,
)
from core.image import ExposureFacts
from core.subtraction.difference import SubtractionQuality

SHAPE = (400, 500)


def tan_wcs(ra: float = 150.0, dec: float = 30.0, scale: float = 1.0, angle: float = 20.0) -> WCS:
    """A tangent-plane WCS of `SHAPE`: ``scale`` in arcsec, rotated by ``angle`` degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [SHAPE[1] / 2 + 0.5, SHAPE[0] / 2 + 0.5]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    wcs.wcs.cd = scale / 3600.0 * np.array([[-c, s], [s, c]])
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs


def made_cutouts(x: float, y: float, seed: int, size: int = 63) -> Cutouts:
    rng = np.random.default_rng(seed)
    science, template, difference = rng.normal(0, 3, (3, size, size)).astype(np.float32)
    difference[size // 2, size // 2] = 100.0
    return Cutouts(science, template, difference, round(x) - size // 2, round(y) - size // 2)


def made_candidate(x: float, y: float, wcs: WCS | None, seed: int = 0, **changes: Any) -> Candidate:
    if wcs is not None:
        sky = wcs.pixel_to_world(x, y).icrs
        ra, dec = float(sky.ra.deg), float(sky.dec.deg)
        near = wcs.pixel_to_world(x + 1.0, y).icrs
        near_ra, near_dec = float(near.ra.deg), float(near.dec.deg)
    else:
        ra = dec = near_ra = near_dec = None
    candidate = Candidate(
        x=x, y=y, x_err=0.1, y_err=0.2, ra=ra, dec=dec, sign=1, snr=20.0, peak_snr=19.0,
        flux=2000.0, flux_err=100.0, mag=19.0, mag_err=0.054, chi2=1.1,
        aperture_flux=1990.0, aperture_flux_err=150.0, aperture_mag=19.01, aperture_mag_err=0.08,
        big_aperture_flux=2010.0, big_aperture_flux_err=200.0,
        big_aperture_mag=18.99, big_aperture_mag_err=0.11,
        sky=1.5, fwhm=2.5, a=1.1, b=1.0, elongation=1.1, n_negative=1, n_bad=0, sum_ratio=0.98,
        d_snr=8.0, edge_distance=min(x, y), limiting_mag=21.4,
        nearest=NearestSource(1.0, near_ra, near_dec, 18.0, 0.01),
        flags=0, rb=None, cutouts=made_cutouts(x, y, seed),
    )  # fmt: skip
    return replace(candidate, **changes)


def made_result(wcs: WCS | None = None, aligned: bool = False, **changes: Any) -> ExposureResult:
    """A published result of three candidates: bright, faded, and at the edge."""
    wcs = None if aligned else (wcs or tan_wcs())
    exposure = Exposure(
        "night7/ccd 3", "science.fits", band="r", mjd_mid=61000.25, exposure_time=60.0,
        instrument="cam", field="505", detector="c13q3", program="survey",
    )  # fmt: skip
    result = ExposureResult(
        exposure=exposure,
        outcome="published",
        candidates=(
            made_candidate(250.2, 199.7, wcs, 1),
            made_candidate(100.6, 300.4, wcs, 2, sign=-1, flux=-2000.0),
            made_candidate(3.0, 396.0, wcs, 3),
        ),
        facts=ExposureFacts(
            gain=1.5, exposure_time=60.0, mjd_mid=61000.25, band="r", zero_point=27.25,
            zero_point_err=0.02, zero_point_origin="template", fwhm=3.0, estimated=("gain",),
        ),
        template=TemplateFacts("directory", "deep-505-r", "r", 30.0, 0.98, 58000.0, 58100.0, 15),
        quality=SubtractionQuality(
            engine="sfft", kernel_sum=0.5, kernel_sum_spread=0.01, star_chi2=1.02, sky_chi2=1.0,
            sky_mean=0.01, shift=(0.1, -0.2), shift_rms=0.05, stars_used=300, stars_clipped=4,
            kernel_shape=(13, 13), convolved="template", seconds=1.0, psf_error=0.012,
        ),
        counts={"stars": 304, "detections": 5, "candidates": 3},
        seconds={"read": 0.1, "subtract": 1.0},
        wcs=wcs,
        shape=SHAPE,
        limiting_mag=21.5,
    )  # fmt: skip
    return replace(result, **changes)
