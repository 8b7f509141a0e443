"""The documented functions that fetch images and masks of Pan-STARRS and the Legacy Surveys."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.wcs import WCS

from core.deadline import Deadline
from core.errors import ExposureError, NoTemplate
from core.image import MaskBit
from core.templates.cache import TemplateCache
from core.templates.cells.bit_projection import mosaicked_bits
from core.templates.cells.grid import covered_by
from core.templates.cells.sky_places import grid_places
from core.templates.cells.survey import CellSurvey, Collected, SurveyTemplates
from core.templates.fetching.addresses import host_of
from core.templates.fetching.archive_files import ArchiveFiles
from core.templates.fetching.fetcher import Fetcher, FetchPolicy
from core.templates.index import Frame
from core.templates.legacysurvey import LegacySurvey
from core.templates.mosaic.mosaicking import mosaic
from core.templates.panstarrs import PanStarrsSurvey
from core.templates.pixel_grid import requested_grid
from core.templates.swarp import check_grid, find_swarp, swarp_bits, swarp_image
from core.templates.wrong_request import WrongRequest, whole_number
from core.verbosity import Verbose, say

log = logging.getLogger(__name__)

AnyImage = npt.NDArray[np.float32] | npt.NDArray[np.int32]
Path = str | os.PathLike[str]

_SURVEYS = {"ps1": PanStarrsSurvey, "ls": LegacySurvey}
_SECONDS = 3600.0


def get_survey_image(
    band: str = "r",
    ext: str = "image",
    survey: str = "ps1",
    wcs: WCS | None = None,
    shape: tuple[int, int] | None = None,
    width: int | None = None,
    height: int | None = None,
    header: Header | None = None,
    reproject: str = "lanczos",
    extra: Mapping[str, object] | None = None,
    _cachedir: Path | None = None,
    _cache_downscale: int = 1,
    _tmpdir: Path | None = None,
    _workdir: Path | None = None,
    verbose: Verbose = False,
    *,
    _archive: CellSurvey | None = None,
    _seconds: float = _SECONDS,
    **kwargs: Any,
) -> AnyImage | None:
    """Download and reproject a Pan-STARRS or Legacy Survey image onto a WCS grid.

    Parameters
    ----------
    band : str, optional
        Photometric band: ``'g'``, ``'r'``, ``'i'``, ``'z'``, or ``'y'``.
    ext : str, optional
        Data type: ``'image'`` or ``'mask'``.
    survey : str, optional
        ``'ps1'`` for Pan-STARRS or ``'ls'`` for Legacy Survey.
    wcs : WCS, optional
        Output WCS projection.
    shape : tuple of int, optional
        Output image shape ``(height, width)``; alternative to ``width`` and ``height``.
    width, height : int, optional
        Output image size in pixels.
    header : Header, optional
        Header containing WCS and image dimensions; alternative to providing them explicitly.
    reproject : str, optional
        ``'lanczos'`` (default, with flux conservation) or ``'swarp'`` (the user's SWarp).
    extra : dict, optional
        Extra SWarp parameters (only used when ``reproject='swarp'``).
    _cachedir : path, optional
        Directory for caching downloaded sky cells between calls.
    _cache_downscale : int, optional
        So many pixels of each axis of a cell become one before it is cached; their fluxes add up.
    _tmpdir : path, optional
        Directory for temporary files.
    _workdir : path, optional
        If specified, the files of SWarp are made there, and are kept for debugging.
    verbose : bool or callable, optional
        Whether to show verbose messages. May be boolean or a `print`-like callable.
    _archive : CellSurvey, optional
        The archive to ask, where it is not the public one.
    _seconds : float, optional
        How long all of it may take.
    **kwargs
        Passed to the reprojection: `core.templates.mosaic.mosaicking.mosaic` (``threads``,
        ``match_backgrounds`` ...), or `core.templates.swarp.swarp_image` (``seconds``, ``_exe``).

    Returns
    -------
    ndarray of float32 or int32, shape (height, width), or None
        Of an image: linear fluxes per pixel, a star's magnitude being ``25 - 2.5 log10(flux)`` for
        Pan-STARRS and ``22.5 - 2.5 log10(flux)`` (nanomaggies) for the Legacy Surveys; NaN where
        there is no data. Of a mask: the survey's own bits, 0 being good (see
        `core.templates.cells.survey_bits`); pixels that the survey does not cover are BLANK (8) for
        Pan-STARRS and ALLMASK of the band for the Legacy Surveys. None on failure: the survey does
        not have the field or the band, or the archive cannot be reached; a message says which.

    Raises
    ------
    core.templates.wrong_request.WrongRequest
        A `ValueError`, before anything is downloaded: if the arguments do not make a pixel grid,
        ``_tmpdir`` is no folder, or another argument makes no sense. If SWarp was asked for, and
        is not installed or fails, it is its `core.templates.swarp.SWarpFailed`.
    TypeError
        If the reprojection does not know an argument; before anything is downloaded, too.
    """
    if ext not in ("image", "mask"):
        raise WrongRequest(f"ext = {ext!r} is neither 'image' nor 'mask'")
    if survey not in _SURVEYS:
        raise WrongRequest(f"survey = {survey!r} is neither 'ps1' nor 'ls'")
    if reproject not in ("lanczos", "swarp"):
        raise WrongRequest(f"reproject = {reproject!r} is neither 'lanczos' nor 'swarp'")
    bins = whole_number("_cache_downscale", _cache_downscale, 1, "a whole number from 1")
    _check_folder("_tmpdir", _tmpdir)
    makes: Callable[..., object] = swarp_image if reproject == "swarp" else mosaic
    known = {p.name for p in signature(makes).parameters.values() if p.kind is p.KEYWORD_ONLY}
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise TypeError(
            f"unexpected arguments {', '.join(unknown)}: reproject={reproject!r} knows them not"
        )
    grid, size = requested_grid(wcs, shape, width, height, header)
    if reproject == "swarp":
        # Before anything is fetched.
        find_swarp(kwargs.get("_exe"))
        check_grid(grid)
        kwargs |= {"extra": extra, "_tmpdir": _tmpdir, "_workdir": _workdir}
    archive: CellSurvey = _archive or _SURVEYS[survey]()
    say(log, verbose, "%s: loading %s in band %s", archive.name, ext, band)
    with _cache(_cachedir, _tmpdir) as cache:
        try:
            found = _collected(archive, cache, grid, size, band, bins, _seconds)
            if not covered_by(found.cells, *grid_places(Frame.of(grid, size), 65)).any():
                raise NoTemplate(f"{archive.name}: its cells end beside the image")
        except ExposureError as error:
            say(log, verbose, "no %s: %s", ext, error)
            return None
        names = ", ".join(cell.image.name for cell in found.cells)
        say(log, verbose, "%s: %d cells (%s)", archive.name, len(found.cells), names)
        for name in found.missing:
            say(log, verbose, "%s: %s is not in the archive", archive.name, name)
        uncovered = archive.format(band).bits.uncovered
        if reproject == "swarp" and ext == "mask":
            return swarp_bits(found.cells, grid, size, uncovered, **kwargs)
        if reproject == "swarp":
            return swarp_image(found.cells, grid, size, archive.zero_point, **kwargs)
        try:
            made = mosaic(
                [cell.image for cell in found.cells],
                grid,
                size,
                **({"zero_point": archive.zero_point, "shared_noise": True} | kwargs),
            ).image
        except ExposureError as error:
            say(log, verbose, "no %s: %s", ext, error)
            return None
        if ext == "mask":
            return mosaicked_bits(found.cells, grid, size, made.mask, uncovered)
        data = made.data.copy()
        data[(made.mask & MaskBit.NO_DATA) != 0] = np.nan
        return data


def get_survey_image_and_mask(
    band: str = "r", **kwargs: Any
) -> tuple[AnyImage | None, AnyImage | None]:
    """Download both the image and the mask from Pan-STARRS or Legacy Survey.

    What both need is downloaded once.

    Parameters
    ----------
    band : str, optional
        Photometric band: ``'g'``, ``'r'``, ``'i'``, ``'z'``, or ``'y'``.
    **kwargs
        All other arguments of `get_survey_image`.

    Returns
    -------
    tuple of ndarray
        ``(image, mask)``; None in place of what could not be loaded.
    """
    kwargs.pop("ext", None)
    if kwargs.get("_cachedir") is not None:
        image = get_survey_image(band, ext="image", **kwargs)
        # What failed a moment ago is not waited for again.
        mask = None if image is None else get_survey_image(band, ext="mask", **kwargs)
        return image, mask
    _check_folder("_tmpdir", kwargs.get("_tmpdir"))
    with _scratch(kwargs.get("_tmpdir")) as folder:
        return get_survey_image_and_mask(band, **kwargs | {"_cachedir": folder})


def get_ps1_image(band: str = "r", **kwargs: Any) -> AnyImage | None:
    """Download a Pan-STARRS image: `get_survey_image` with ``survey='ps1'``."""
    return get_survey_image(band, survey="ps1", **kwargs)


def get_ps1_image_and_mask(
    band: str = "r", **kwargs: Any
) -> tuple[AnyImage | None, AnyImage | None]:
    """Download a Pan-STARRS image and its mask; see `get_survey_image_and_mask`."""
    return get_survey_image_and_mask(band, survey="ps1", **kwargs)


def get_ls_image(band: str = "r", **kwargs: Any) -> AnyImage | None:
    """Download a Legacy Survey image: `get_survey_image` with ``survey='ls'``."""
    return get_survey_image(band, survey="ls", **kwargs)


def get_ls_image_and_mask(
    band: str = "r", **kwargs: Any
) -> tuple[AnyImage | None, AnyImage | None]:
    """Download a Legacy Survey image and its mask; see `get_survey_image_and_mask`."""
    return get_survey_image_and_mask(band, survey="ls", **kwargs)


def _check_folder(name: str, folder: Path | None) -> None:
    if folder is not None and not os.path.isdir(folder):
        raise WrongRequest(f"{name} = {os.fspath(folder)!r} is no folder; make it first")


def _collected(
    archive: CellSurvey,
    cache: TemplateCache,
    grid: WCS,
    size: tuple[int, int],
    band: str,
    bins: int,
    seconds: float,
) -> Collected:
    # The one host that is spoken to is the archive's own.
    policy = FetchPolicy((host_of(archive.endpoint),))
    templates = SurveyTemplates(archive, ArchiveFiles(Fetcher(policy), cache))
    return templates.collect(Frame.of(grid, size), band, Deadline(seconds), bins=bins)


@contextmanager
def _cache(cachedir: Path | None, tmpdir: Path | None) -> Iterator[TemplateCache]:
    """Return the cache to keep cells in, or one that is removed afterwards."""
    if cachedir is not None:
        yield TemplateCache(os.path.expanduser(cachedir))
        return
    with _scratch(tmpdir) as folder:
        yield TemplateCache(folder)


@contextmanager
def _scratch(tmpdir: Path | None) -> Iterator[str]:
    with tempfile.TemporaryDirectory(
        prefix="skydelta-cells-", dir=tmpdir, ignore_cleanup_errors=True
    ) as folder:
        yield folder
