"""Reading an image: from FITS files to an `Image`, and nothing half-read ever gets further."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyError
from astropy.wcs import WCS

from core.asinh import AsinhScale
from core.errors import InvalidEvent, QualityRejected, UnusableInput
from core.exposure import Exposure
from core.fitsfile import FitsFile, Hdu, card, open_fits
from core.headerfacts import event_facts, read_facts
from core.image import FloatImage, Image, MaskBit, MaskImage
from core.masks import decode_mask, scheme_of
from core.quiet import quiet

logger = logging.getLogger(__name__)

HeaderValue = str | float | int | bool

_MASK_NAMES = frozenset({"MASK", "DQ", "BPM", "MSK", "FLAGS", "FLAG", "QUALITY", "MASKBITS"})
_WEIGHT_NAMES = frozenset({"WEIGHT", "WHT", "WGT", "IVAR", "INVVAR", "INVVARIANCE"})
_VARIANCE_NAMES = frozenset({"VAR", "VARIANCE"})
_ERROR_NAMES = frozenset({"ERR", "ERROR", "SIGMA", "RMS", "NOISE", "STDDEV", "UNCERT"})
_SIDE_NAMES = _MASK_NAMES | _WEIGHT_NAMES | _VARIANCE_NAMES | _ERROR_NAMES
_STRUCTURE = frozenset(
    {"SIMPLE", "XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "PCOUNT", "GCOUNT", "END"}
    | {"BSCALE", "BZERO", "BLANK", "EXTEND", "GROUPS", "TFIELDS"}
)


def read_exposure(exposure: Exposure, *, max_pixels: int, need_wcs: bool = True) -> Image:
    """Read the image that an exposure event announces.

    What the event states wins over the header.

    Parameters
    ----------
    exposure : Exposure
        Files and facts.
    max_pixels : int
        A larger image is refused from its header, before any allocation.
    need_wcs : bool
        Refuse an image without a celestial WCS.

    Returns
    -------
    Image

    Raises
    ------
    InputUnavailable
        If a file is missing or cannot be opened.
    InvalidEvent
        If ``header_overrides`` are no FITS cards.
    UnusableInput
        If a file is no image that can be processed.
    QualityRejected
        If no good pixel is in it, or all are equal.
    """
    return read_image(
        exposure.science,
        mask=exposure.mask,
        weight=exposure.weight,
        variance=exposure.variance,
        hdu=exposure.hdu,
        max_pixels=max_pixels,
        need_wcs=need_wcs,
        header_overrides=exposure.header_overrides,
        gain=exposure.gain,
        read_noise=exposure.read_noise,
        saturation=exposure.saturation,
        exposure_time=exposure.exposure_time,
        mjd_mid=exposure.mjd_mid,
        band=exposure.band,
        zero_point=exposure.zero_point,
    )


def read_image(
    path: str | os.PathLike[str],
    *,
    mask: str | os.PathLike[str] | None = None,
    weight: str | os.PathLike[str] | None = None,
    variance: str | os.PathLike[str] | None = None,
    hdu: int | str | None = None,
    max_pixels: int,
    need_wcs: bool = True,
    header_overrides: Mapping[str, HeaderValue] | None = None,
    **facts: float | str | None,
) -> Image:
    """Read an image with its mask, its variance, its WCS and its facts.

    Without ``hdu`` the first two-dimensional image is taken, one named ``SCI`` before others.
    A mask, weight or variance extension of the same file is used where no separate file is given
    and its shape fits; if its shape does not fit it is left alone, and a note says so.

    Parameters
    ----------
    path : path
        FITS file: plain, gzipped, bzipped, tile-compressed, of one or several HDUs.
    mask : path or None
        Separate mask file; zero is good, see `core.masks` for what else is understood.
    weight : path or None
        Separate inverse variance, 1/ADU². Zero, negative or NaN is no data.
    variance : path or None
        Separate variance, ADU²; used rather than ``weight`` when both are given.
    hdu : int or str or None
        0-based number, or EXTNAME (``"SCI"``; ``"SCI,2"`` names its EXTVER too).
    max_pixels : int
        A larger image is refused from its header, before any allocation.
    need_wcs : bool
        Refuse an image without a celestial WCS.
    header_overrides : mapping or None
        Cards that replace those of the header before anything but the pixels is read from it.
    **facts
        Fields of `ExposureFacts` that win over the header; None means not stated.

    Returns
    -------
    Image
        Pixels that are NaN, infinite or of no weight are `MaskBit.NO_DATA` and hold the median of
        the others; their variance is the median variance. Without a saturation level in event or
        header, one is estimated if the bright pixels pile up at one, and noted as estimated.

    Raises
    ------
    InputUnavailable, InvalidEvent, UnusableInput, QualityRejected
        As `read_exposure`.
    """
    name = os.fspath(path)
    file = open_fits(name, max_pixels=max_pixels)
    science = choose_hdu(file, hdu)
    _check_size(name, science, max_pixels)
    header = with_overrides(science.header, header_overrides or {}, name)
    headers = (header,) if science.index == 0 else (header, file.primary)
    wcs = read_wcs(header, name, required=need_wcs)

    said = read_facts(headers)
    known = event_facts(said.facts, facts)
    notes = list(said.notes)

    stored = file.pixels(science)
    flags = np.zeros(science.shape, dtype=np.uint16)
    for source, side in _sides(file, science, notes, mask=mask, weight=weight, variance=variance):
        _check_size(side[0].path, side[1], max_pixels)
        if source == "mask":
            scheme = scheme_of(side[1].header, side[0].primary)
            flags |= decode_mask(side[0].pixels(side[1]), scheme)
        else:
            plane = _linear(side[0].pixels(side[1]), side[1].header).astype(np.float32)
            noise = _variance_from(source, plane)
            break
    else:
        noise = None

    stored = _linear(stored, header)
    data = stored.astype(np.float32, order="C", copy=False)
    holes = ~np.isfinite(data)
    if noise is not None:
        holes |= ~np.isfinite(noise)
    flags[holes] |= np.uint16(MaskBit.NO_DATA)

    if known.saturation is None:
        level = estimate_saturation(stored, flags)
        if level is not None:
            known = known.with_estimate(saturation=level)
    if known.saturation is not None:
        with np.errstate(invalid="ignore"):
            flags[data >= known.saturation] |= np.uint16(MaskBit.SATURATED)

    _fill(data, noise, flags, name)
    for note in notes:
        logger.info("%s: %s", name, note)
    return Image(
        data=data,
        mask=flags,
        variance=noise,
        wcs=wcs,
        facts=known,
        name=os.path.basename(name),
        notes=tuple(notes),
    )


def is_side_extension(hdu: Hdu) -> bool:
    """Return whether an extension is named like the mask, weight or variance of an image."""
    return hdu.name in _SIDE_NAMES


def read_wcs(header: Header, name: str, *, required: bool = True) -> WCS | None:
    """Return the celestial WCS of an image's header; TAN, TPV, SIP and all that astropy knows.

    Parameters
    ----------
    header : Header
        Of the image's own HDU.
    name : str
        For messages.
    required : bool
        If False, None is returned where there is no WCS.

    Raises
    ------
    UnusableInput
        If one is required and there is none, or it is not usable.
    """
    try:
        # wcslib has errors of many types for the many ways in which cards can contradict.
        with quiet():
            wcs = WCS(header, naxis=2)
            if not wcs.has_celestial:
                raise UnusableInput(
                    f"{name}: has no celestial WCS; calibrate its astrometry first, or say that "
                    "the images are aligned"
                )
            axes = [
                card(header, f"NAXIS{axis}") or card(header, f"ZNAXIS{axis}") for axis in (1, 2)
            ]
            centre = [axis / 2 for axis in axes if isinstance(axis, int)]
            sky = np.array(wcs.all_pix2world(*(centre if len(centre) == 2 else (0.0, 0.0)), 0))
            if not np.isfinite(sky).all():
                raise ValueError("its centre is not on the sky")
    except UnusableInput:
        if required:
            raise
        return None
    except Exception as error:
        if required:
            reason = " ".join(str(error).split())[:200]
            raise UnusableInput(f"{name}: its WCS cannot be used ({reason})") from error
        logger.warning("%s: its WCS cannot be used and was left alone: %s", name, error)
        return None
    return wcs


def estimate_saturation(stored: npt.NDArray[Any], flags: MaskImage) -> float | None:
    """Return the level at which the bright pixels pile up, None where they do not.

    The top 0.1 % of the range holds a few pixels of the brightest star where nothing saturates;
    ten times the density of the range below it (0.9 to 0.999 of the top) is a pile-up. Integers
    that reach the end of their type are saturated whatever their number.

    Parameters
    ----------
    stored : ndarray of int or float, shape (ny, nx)
        Pixels as stored, before they were made float.
    flags : ndarray of uint16, shape (ny, nx)
        Pixels with any flag are left out.

    Returns
    -------
    float or None
        ADU.
    """
    with np.errstate(invalid="ignore"):
        top = float(np.max(stored, where=np.isfinite(stored), initial=0))
        if stored.dtype.kind in "iu" and top in (65535.0, 32767.0):
            return top
        bright = np.flatnonzero(stored > 0.5 * top)
    values = stored.ravel()[bright]
    values = values[np.isfinite(values) & (flags.ravel()[bright] == 0)].astype(np.float64)
    # Where half of the pixels are that bright there are no stars above them: this is the sky.
    if top <= 0 or values.size == 0 or bright.size > 0.5 * stored.size:
        return None
    top = float(values.max())
    edge = 0.999 * top
    at_top = int((values >= edge).sum())
    below = int(((values >= 0.9 * top) & (values < edge)).sum())
    if at_top >= 10 and at_top / 0.001 > 10 * max(below, 1) / 0.099:
        return float(values[values >= edge].min())
    return None


def choose_hdu(file: FitsFile, wanted: int | str | None) -> Hdu:
    """Return the image that is wanted; without a wish the first, one named ``SCI`` before others.

    Raises
    ------
    UnusableInput
        If there is no such HDU, or no two-dimensional image.
    """
    if wanted is not None:
        chosen = _named(file, wanted)
        if not chosen.is_image:
            raise UnusableInput(f"{file.path}: {chosen.label} {_what_it_is(chosen)}")
        return chosen
    images = [hdu for hdu in file.hdus if hdu.is_image]
    science = [hdu for hdu in images if hdu.name == "SCI"]
    others = [hdu for hdu in images if hdu.name not in _SIDE_NAMES]
    for candidates in (science, others, images):
        if candidates:
            return candidates[0]
    nearest = next((hdu for hdu in file.hdus if hdu.axes), file.hdus[0])
    raise UnusableInput(
        f"{file.path}: holds no two-dimensional image: {nearest.label} {_what_it_is(nearest)}"
    )


def _named(file: FitsFile, wanted: int | str) -> Hdu:
    text = str(wanted).strip()
    if text.lstrip("-").isdigit():
        number = int(text)
        if 0 <= number < len(file.hdus):
            return file.hdus[number]
    else:
        name, _, version = text.upper().partition(",")
        for hdu in file.hdus:
            if hdu.name == name.strip() and (not version or version.strip() == str(hdu.version)):
                return hdu
    have = ", ".join(f"{hdu.index} {hdu.name}".strip() for hdu in file.hdus[:12])
    raise UnusableInput(f"{file.path}: has no HDU {wanted}; it has {have}")


def _what_it_is(hdu: Hdu) -> str:
    if not hdu.axes:
        return "has no image data"
    if min(hdu.axes) == 0:
        return f"has zero size ({' x '.join(map(str, hdu.axes))})"
    return f"has {len(hdu.axes)} dimensions ({' x '.join(map(str, hdu.axes))}); give a plane of it"


def _check_size(path: str, hdu: Hdu, max_pixels: int) -> None:
    ny, nx = hdu.shape
    if ny * nx > max_pixels:
        raise UnusableInput(
            f"{path}: {hdu.label} has {nx} x {ny} pixels, more than the limit of {max_pixels}; "
            "raise the limit if this is meant"
        )


def with_overrides(header: Header, overrides: Mapping[str, HeaderValue], path: str) -> Header:
    """Return a header in which an event's cards replace those of the file.

    Raises
    ------
    InvalidEvent
        If they are no FITS cards, or describe how the pixels are stored.
    """
    if not overrides:
        return header
    changed = header.copy()
    with quiet():
        for keyword, value in overrides.items():
            if keyword.strip().upper() in _STRUCTURE:
                raise InvalidEvent(
                    f"header_overrides: {keyword} describes how {path} is stored and cannot be "
                    "overridden"
                )
            try:
                changed[keyword] = value
                changed.tostring()
            except (ValueError, VerifyError, TypeError, KeyError, AttributeError) as error:
                raise InvalidEvent(
                    f"header_overrides: {keyword} = {value!r} is no FITS card ({error})"
                ) from error
    return changed


_Side = tuple[str, tuple[FitsFile, Hdu]]


def _sides(
    file: FitsFile,
    science: Hdu,
    notes: list[str],
    *,
    mask: str | os.PathLike[str] | None,
    weight: str | os.PathLike[str] | None,
    variance: str | os.PathLike[str] | None,
) -> list[_Side]:
    """Return mask, then at most one source of the variance, each with the file it is in."""
    sides: list[_Side] = []
    if mask is not None:
        sides.append(("mask", _companion(os.fspath(mask), science, file.path, "mask")))
    else:
        sides += _internal("mask", _MASK_NAMES, file, science, notes)
    if variance is not None:
        sides.append(("variance", _companion(os.fspath(variance), science, file.path, "variance")))
    elif weight is not None:
        sides.append(("weight", _companion(os.fspath(weight), science, file.path, "weight")))
    else:
        for source, names in (
            ("variance", _VARIANCE_NAMES),
            ("weight", _WEIGHT_NAMES),
            ("error", _ERROR_NAMES),
        ):
            found = _internal(source, names, file, science, notes)
            if found:
                return sides + found
    return sides


def _internal(
    source: str, names: frozenset[str], file: FitsFile, science: Hdu, notes: list[str]
) -> list[_Side]:
    found = [
        hdu
        for hdu in file.hdus
        if hdu.name in names and hdu.is_image and hdu.index != science.index
    ]
    # Several detectors in one file: the extension version tells which mask is whose.
    same = [hdu for hdu in found if hdu.version == science.version] or found
    if not same:
        return []
    if same[0].shape != science.shape:
        notes.append(
            f"{source} in {same[0].label} has the shape {_size(same[0])}, the image "
            f"{_size(science)}; it was not used"
        )
        return []
    return [(source, (file, same[0]))]


def _companion(path: str, science: Hdu, science_path: str, role: str) -> tuple[FitsFile, Hdu]:
    file = open_fits(path, max_pixels=science.shape[0] * science.shape[1])
    images = [hdu for hdu in file.hdus if hdu.is_image]
    if not images:
        raise UnusableInput(f"{path}: the {role} file holds no two-dimensional image")
    by_name = [hdu for hdu in images if hdu.name and hdu.name == science.name]
    by_shape = [hdu for hdu in images if hdu.shape == science.shape]
    chosen = (
        [hdu for hdu in by_name if hdu.version == science.version]
        or by_name
        or [hdu for hdu in by_shape if hdu.index == science.index]
        or by_shape
        or images
    )[0]
    if chosen.shape != science.shape:
        raise UnusableInput(
            f"{path}: the {role} has the shape {_size(chosen)}, the image {science_path} "
            f"{_size(science)}; give the {role} of this image"
        )
    return file, chosen


def _size(hdu: Hdu) -> str:
    return f"{hdu.shape[1]} x {hdu.shape[0]}"


def _variance_from(source: str, plane: FloatImage) -> FloatImage:
    """Return the variance; NaN where there is none."""
    noise = np.full(plane.shape, np.nan, dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        known = plane > 0
        if source == "weight":
            np.divide(np.float32(1), plane, out=noise, where=known)
        else:
            np.power(plane, 2 if source == "error" else 1, out=noise, where=known)
    noise[np.isinf(noise)] = np.nan
    return noise


def _linear(stored: npt.NDArray[Any], header: Header) -> npt.NDArray[Any]:
    """Undo the asinh scaling of Pan-STARRS, where a header states one: each plane has its own."""
    scale = AsinhScale.from_header(header)
    return stored if scale is None else scale.linear(stored)


def _fill(data: FloatImage, noise: FloatImage | None, flags: MaskImage, name: str) -> None:
    """Give the holes finite values, in place, after checking that something else is there."""
    holes = (flags & MaskBit.NO_DATA) != 0
    n_holes = int(np.count_nonzero(holes))
    if n_holes == data.size:
        raise QualityRejected(f"{name}: holds no data: every pixel is NaN or has no weight")
    n_flagged = int(np.count_nonzero(flags))
    if n_flagged == data.size:
        raise QualityRejected(f"{name}: every pixel is masked; nothing is left to work with")
    # A part of the pixels shows that they differ; only if it does not are all of them looked at.
    step = max(1, data.shape[0] // 1000), max(1, data.shape[1] // 1000)
    part = data[:: step[0], :: step[1]][flags[:: step[0], :: step[1]] == 0]
    if part.size < 2 or part.min() == part.max():
        part = data[flags == 0]
        if part.min() == part.max():
            raise QualityRejected(
                f"{name}: is constant: every good pixel is {part[0]:g}; the read-out has failed"
            )
    if n_holes:
        data[holes] = np.median(part)
        if noise is not None:
            known = noise[:: step[0], :: step[1]][~holes[:: step[0], :: step[1]]]
            noise[holes] = np.median(known if known.size else noise[~holes])
