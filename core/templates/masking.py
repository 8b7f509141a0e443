"""Masking what is wrong in a template that comes without a mask of its own."""

from __future__ import annotations

import logging
import os

import numpy as np
import numpy.typing as npt
import sep
from astropy.table import Table
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree

from core.celestial import from_icrs
from core.templates.linearity import LEAST_STARS, measure_linearity
from core.templates.wrong_request import WrongRequest, whole_number
from core.verbosity import Verbose, say

log = logging.getLogger(__name__)

BoolImage = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

_UNKNOWN_ERROR = 0.03  # magnitudes, for catalogues that state none
_DETECTION = 1.5  # sigma of the pixels that make up a source
_MOST_SOURCES = 2000  # the brightest; the mode is measured on all pairs of them


def mask_template(
    tmpl: npt.ArrayLike,
    cat: Table | None = None,
    cat_saturation_mag: float | None = None,
    cat_col_mag: str = "rmag",
    cat_col_mag_err: str = "e_rmag",
    cat_col_ra: str = "RAJ2000",
    cat_col_dec: str = "DEJ2000",
    cat_sr: float = 1 / 3600,
    mask_nans: bool = True,
    mask_masked: bool = True,
    mask_photometric: bool = False,
    aper: float = 2,
    sn: float = 5,
    wcs: WCS | None = None,
    dilate: int = 5,
    verbose: Verbose = False,
    _tmpdir: str | os.PathLike[str] | None = None,
) -> BoolImage:
    """Return a mask of what cannot be trusted in a template image.

    Parameters
    ----------
    tmpl : array_like, shape (ny, nx)
        The template.
    cat : Table or None
        Reference catalogue. Used only where ``wcs`` is given too.
    cat_saturation_mag : float or None
        Of stars brighter than this, the central pixel is masked.
    cat_col_mag, cat_col_mag_err, cat_col_ra, cat_col_dec : str
        Columns of the catalogue; magnitudes, and ICRS degrees. Errors need not be there.
    cat_sr : float
        Degrees within which a source of the template is a star of the catalogue.
    mask_nans : bool
        Mask pixels that are NaN (or infinite).
    mask_masked : bool
        Mask the central pixels of stars whose magnitudes are masked or NaN in the catalogue: they
        are often the brightest. Errors that are masked or NaN mask nothing; they count as 0.03 mag
        for ``mask_photometric``.
    mask_photometric : bool
        Mask the central pixels of stars that are fainter in the template than in the catalogue, as
        saturated ones are: all stars brighter than where that begins, and those up to a magnitude
        fainter that have lost light significantly (see `core.templates.linearity`).
    aper : float
        Radius of the aperture for that, pixels.
    sn : float
        Least signal-to-noise ratio of a star to be used for that.
    wcs : WCS or None
        Of the template.
    dilate : int
        Side in pixels of the square that is put onto every masked pixel (the documented "dilation
        kernel size"): 5 masks two more pixels on each side, 0 and 1 none.
    verbose : bool or callable
        Log at INFO instead of DEBUG, or hand the lines to a callable.
    _tmpdir : path or None
        Kept for callers that state it; nothing is written.

    Returns
    -------
    ndarray of bool, shape (ny, nx)
        True where masked.

    Raises
    ------
    WrongRequest
        If the image has not two dimensions, the catalogue lacks a column that is needed, or
        ``dilate`` is no size.
    """
    image = np.ma.getdata(tmpl)
    image = np.asarray(image, dtype=np.float64 if image.dtype.kind != "f" else None)
    if image.ndim != 2:
        raise WrongRequest(f"the template has {image.ndim} dimensions instead of 2")
    side = 0 if dilate is None else whole_number("dilate", dilate, 0, "a size in pixels")
    mask = np.zeros(image.shape, dtype=bool)
    holes = ~np.isfinite(image)
    if mask_nans:
        mask |= holes
        say(log, verbose, "template: %d pixels are NaN", int(mask.sum()))
    if cat is not None and wcs is not None and len(cat):
        mag = _column(cat, cat_col_mag)
        x, y = from_icrs(wcs, _column(cat, cat_col_ra), _column(cat, cat_col_dec))
        wanted = np.zeros(mag.shape, dtype=bool)
        if cat_saturation_mag is not None:
            bright = np.nan_to_num(mag, nan=np.inf) < cat_saturation_mag
            say(log, verbose, "template: %d stars above saturation", int(bright.sum()))
            wanted |= bright
        if mask_masked:
            unknown = ~np.isfinite(mag)
            say(log, verbose, "template: %d stars without magnitude", int(unknown.sum()))
            wanted |= unknown
        if mask_photometric:
            error = _errors(cat, cat_col_mag_err, mag.size)
            radius = cat_sr / float(np.mean(proj_plane_pixel_scales(wcs.celestial)))
            wanted |= _saturated(image, holes, (x, y), (mag, error), radius, aper, sn, verbose)
        _mark(mask, x[wanted], y[wanted])
    if side > 1:
        mask = binary_dilation(mask, np.ones((side, side), dtype=bool))
    return np.asarray(mask, dtype=bool)


def _column(cat: Table, name: str) -> FloatArray:
    """Return a column as floats, masked values as NaN."""
    if name not in cat.colnames:
        raise WrongRequest(
            f"the catalogue has no column {name!r}; it has {', '.join(cat.colnames[:20])}"
        )
    values = np.ma.asarray(getattr(cat[name], "value", cat[name]))  # of a QTable, without unit
    return np.where(np.ma.getmaskarray(values), np.nan, np.ma.getdata(values).astype(np.float64))


def _errors(cat: Table, name: str, size: int) -> FloatArray:
    if name not in cat.colnames:
        return np.full(size, _UNKNOWN_ERROR)
    errors = _column(cat, name)
    return np.where(np.isfinite(errors) & (errors > 0), errors, _UNKNOWN_ERROR)


def _mark(mask: BoolImage, x: FloatArray, y: FloatArray) -> None:
    """Mask the pixels at some places, as far as they are on the image."""
    ny, nx = mask.shape
    fine = np.isfinite(x) & np.isfinite(y)
    column, row = np.rint(x[fine]).astype(np.int64), np.rint(y[fine]).astype(np.int64)
    inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
    mask[row[inside], column[inside]] = True


def _saturated(
    image: npt.NDArray[np.floating],
    holes: BoolImage,
    places: tuple[FloatArray, FloatArray],
    magnitudes: tuple[FloatArray, FloatArray],
    radius: float,
    aper: float,
    sn: float,
    verbose: Verbose,
) -> BoolImage:
    """Return which stars of the catalogue are saturated on the image."""
    mag, mag_error = magnitudes
    flux, flux_error = _fluxes(image, holes, places, radius, aper)
    with np.errstate(divide="ignore", invalid="ignore"):
        instrumental = -2.5 * np.log10(flux)
        error = np.hypot(1.0857 * flux_error / flux, mag_error)
        measured = np.isfinite(instrumental) & np.isfinite(mag) & (flux > sn * flux_error)
    brightest = np.flatnonzero(measured)[np.argsort(mag[measured])][:_MOST_SOURCES]
    found = measure_linearity(mag[brightest], instrumental[brightest], error[brightest])
    if found is None:
        say(
            log, verbose, "template: %d stars are too few to see saturation (%d are needed)",
            brightest.size, LEAST_STARS,
        )  # fmt: skip
        return np.zeros(mag.shape, dtype=bool)
    saturated = found.saturated(mag, instrumental, error)
    say(
        log, verbose, "template: zero point %.3f +- %.3f, saturated from magnitude %s: %d stars",
        found.zero_point, found.scatter,
        "(none)" if found.turnover is None else f"{found.turnover:.2f}", int(saturated.sum()),
    )  # fmt: skip
    return saturated


def _fluxes(
    image: npt.NDArray[np.floating],
    holes: BoolImage,
    places: tuple[FloatArray, FloatArray],
    radius: float,
    aper: float,
) -> tuple[FloatArray, FloatArray]:
    """Return flux and error of each star of the catalogue, NaN where no source is there."""
    data = np.ascontiguousarray(np.where(holes, 0.0, image), dtype=np.float64)
    sky = sep.Background(data, mask=holes)
    data -= sky.back()
    sources = sep.extract(data, _DETECTION, err=sky.rms(), mask=holes)
    flux = np.full(places[0].shape, np.nan)
    flux_error = flux.copy()
    if len(sources) == 0:
        return flux, flux_error
    tree = cKDTree(np.column_stack([sources["x"], sources["y"]]))
    fine = np.flatnonzero(np.isfinite(places[0]) & np.isfinite(places[1]))
    distance, nearest = tree.query(np.column_stack([places[0][fine], places[1][fine]]))
    matched = distance <= radius
    stars, index = fine[matched], nearest[matched]
    measured, errors, flags = sep.sum_circle(
        data, sources["x"][index], sources["y"][index], aper, err=sky.rms(), mask=holes
    )
    whole = (flags & (sep.APER_TRUNC | sep.APER_HASMASKED | sep.APER_ALLMASKED)) == 0
    flux[stars[whole]], flux_error[stars[whole]] = measured[whole], errors[whole]
    return flux, flux_error
