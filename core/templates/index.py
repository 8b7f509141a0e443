"""What a folder of templates holds: read once from the headers, looked up for every exposure."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.wcs import WCS

from core.errors import ExposureError, UnusableInput
from core.fitsfile import Hdu, card, open_fits
from core.headerfacts import read_facts
from core.image import ExposureFacts
from core.pixel_mapping import SkyMapping
from core.reading import is_side_extension, read_wcs
from core.templates.siblings import (
    Siblings,
    is_fits_name,
    is_side_plane,
    planes_by_stem,
    siblings_of,
)

logger = logging.getLogger(__name__)

_DEPTH = ("MAGLIM", "LIMMAG", "MAGLIMIT", "LMT_MG", "GALDEPTH", "PSFDEPTH", "DEPTH")
_FRAMES = ("NINPUTS", "NCOMBINE", "NFRAMES", "NIMAGES", "NCOADD")
_SEEING_PIXELS = ("FWHM", "PFWHM")
_SEEING_ARCSEC = ("SEEING",)
_EDGE_POINTS = 16


@dataclass(frozen=True)
class TemplateRecord:
    """One image that may serve as a template, as its header describes it.

    Attributes
    ----------
    path : str
        The file.
    hdu : int
        Number of the HDU.
    name : str
        Path below the folder, with the HDU where the file holds several images.
    frame : Frame
        Where it lies on the sky.
    facts : ExposureFacts
        Band, zero point, mid-exposure, exposure time.
    depth : float or None
        Limiting magnitude.
    seeing : float or None
        Arcsec, or pixels, whichever the header states; for comparisons only.
    n_frames : int
        Exposures that it was made of.
    siblings : Siblings
        Paths of its separate mask, weight and variance.
    """

    path: str
    hdu: int
    name: str
    frame: Frame
    facts: ExposureFacts
    depth: float | None
    seeing: float | None
    n_frames: int
    siblings: Siblings


@dataclass(frozen=True)
class Overlap:
    """How one frame lies to another.

    Attributes
    ----------
    fraction : float
        Of the one, that the other covers.
    distance : float
        Degrees from centre to centre.
    """

    fraction: float
    distance: float


@dataclass(frozen=True)
class Frame:
    """A pixel grid on the sky, with the points at which overlaps are measured.

    Attributes
    ----------
    wcs : WCS
        Celestial WCS.
    shape : tuple of int
        (ny, nx).
    centre : ndarray of float64, shape (3,)
        Unit vector to the centre.
    radius : float
        Degrees to the furthest point of the edge; 180 where the edge is not on the sky.
    """

    wcs: WCS
    shape: tuple[int, int]
    centre: npt.NDArray[np.float64]
    radius: float

    @classmethod
    def of(cls, wcs: WCS, shape: tuple[int, int]) -> Frame:
        """Describe a grid."""
        return cls(wcs, shape, *_cap(wcs, shape))

    @property
    def position(self) -> tuple[float, float]:
        """(ra, dec) of the centre in degrees."""
        x, y, z = self.centre
        return float(np.degrees(np.arctan2(y, x)) % 360), float(np.degrees(np.arcsin(z)))

    def overlap(self, other: Frame, points: int = 41) -> Overlap:
        """Return how much of this frame another covers, from ``points``² places on this one."""
        distance = _angle(self.centre, other.centre)
        if distance > self.radius + other.radius:
            return Overlap(0.0, distance)
        ny, nx = self.shape
        x = (np.arange(points) + 0.5) / points * nx - 0.5
        y = (np.arange(points) + 0.5) / points * ny - 0.5
        sx, sy = SkyMapping(self.wcs, other.wcs, nx)(x[None, :], y[:, None])
        with np.errstate(invalid="ignore"):
            inside = (
                (sx > -0.5)
                & (sx < other.shape[1] - 0.5)
                & (sy > -0.5)
                & (sy < other.shape[0] - 0.5)
            )
        return Overlap(float(inside.mean()), distance)


@dataclass(frozen=True)
class _Stamp:
    """What tells a changed file from an unchanged one."""

    mtime_ns: int
    size: int
    siblings: Siblings


class TemplateIndex:
    """The images below a folder; brought up to date whenever it is asked.

    Every process has its own: there is nothing to lock. Headers of files that did not change
    (modification time, size, siblings) are not read again.

    Parameters
    ----------
    folder : str
        Searched with all folders below it. Names that begin with a dot are left out, so that a
        template can be written under such a name and then renamed.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._known: dict[str, tuple[_Stamp, tuple[TemplateRecord, ...]]] = {}
        self.unreadable: dict[str, str] = {}

    def records(self) -> list[TemplateRecord]:
        """Return all usable images, ordered by name.

        Raises
        ------
        OSError
            If the folder cannot be listed.
        """
        found: dict[str, tuple[_Stamp, tuple[TemplateRecord, ...]]] = {}
        unreadable: dict[str, str] = {}
        for path, stamp in self._scan():
            known = self._known.get(path)
            if known is not None and known[0] == stamp:
                found[path] = known
                if path in self.unreadable:
                    unreadable[path] = self.unreadable[path]
                continue
            try:
                records = self._read(path, stamp.siblings)
            except ExposureError as error:
                logger.warning("template left out: %s", error)
                unreadable[path] = str(error)
                records = ()
            found[path] = stamp, records
        self._known, self.unreadable = found, unreadable
        return [record for path in sorted(found) for record in found[path][1]]

    def _scan(self) -> list[tuple[str, _Stamp]]:
        os.listdir(self.folder)  # os.walk would pass over a folder that is not there
        stamps: list[tuple[str, _Stamp]] = []
        for folder, subfolders, names in os.walk(self.folder, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            visible = [n for n in names if is_fits_name(n) and not n.startswith(".")]
            planes = planes_by_stem(visible)
            for name in visible:
                if is_side_plane(name):
                    continue
                path = os.path.join(folder, name)
                try:
                    stat = os.stat(path)
                except FileNotFoundError:  # removed since it was listed
                    continue
                theirs = siblings_of(name, planes)
                in_folder = Siblings(
                    *(
                        None if plane is None else os.path.join(folder, plane)
                        for plane in (theirs.mask, theirs.weight, theirs.variance)
                    )
                )
                stamps.append((path, _Stamp(stat.st_mtime_ns, stat.st_size, in_folder)))
        return stamps

    def _read(self, path: str, siblings: Siblings) -> tuple[TemplateRecord, ...]:
        # Nothing but headers is wanted: with a limit of 0 no pixels are kept.
        file = open_fits(path, max_pixels=0, only_primary=True)
        images = [h for h in file.hdus if h.is_image and not is_side_extension(h)]
        science = [h for h in images if h.name == "SCI"] or images
        name = os.path.relpath(path, self.folder)
        records = []
        faults: list[str] = []
        for hdu in science:
            headers = (hdu.header,) if hdu.index == 0 else (hdu.header, file.primary)
            try:
                wcs = read_wcs(hdu.header, path)
            except ExposureError as error:
                faults.append(str(error))
                continue
            assert wcs is not None
            label = name if len(science) == 1 else f"{name}[{hdu.index}]"
            records.append(_record(path, hdu, label, wcs, headers, siblings))
        if not records:
            raise UnusableInput(next(iter(faults), f"{path}: holds no two-dimensional image"))
        return tuple(records)


def _record(
    path: str,
    hdu: Hdu,
    name: str,
    wcs: WCS,
    headers: tuple[Header, ...],
    siblings: Siblings,
) -> TemplateRecord:
    def number(keywords: tuple[str, ...]) -> float | None:
        for header in headers:
            for keyword in keywords:
                value = card(header, keyword)
                if isinstance(value, int | float) and np.isfinite(value) and value > 0:
                    return float(value)
        return None

    return TemplateRecord(
        path=path,
        hdu=hdu.index,
        name=name,
        frame=Frame.of(wcs, hdu.shape),
        facts=read_facts(headers).facts,
        depth=number(_DEPTH),
        seeing=number(_SEEING_ARCSEC) or number(_SEEING_PIXELS),
        n_frames=max(1, int(number(_FRAMES) or 1)),
        siblings=siblings,
    )


def _cap(wcs: WCS, shape: tuple[int, int]) -> tuple[npt.NDArray[np.float64], float]:
    """Return the unit vector of the centre and the radius in degrees that holds the frame."""
    ny, nx = shape
    along_x = np.linspace(-0.5, nx - 0.5, _EDGE_POINTS)
    along_y = np.linspace(-0.5, ny - 0.5, _EDGE_POINTS)
    zero_x, zero_y = np.full(_EDGE_POINTS, -0.5), np.full(_EDGE_POINTS, -0.5)
    x = np.concatenate([along_x, along_x, zero_x, zero_x + nx, [(nx - 1) / 2]])
    y = np.concatenate([zero_y, zero_y + ny, along_y, along_y, [(ny - 1) / 2]])
    sky = wcs.celestial.pixel_to_world(x, y).icrs
    vectors = np.asarray(sky.cartesian.xyz.value, dtype=float).T
    centre, edge = vectors[-1], vectors[:-1]
    if not np.isfinite(edge).all():
        return (centre if np.isfinite(centre).all() else np.array([0.0, 0.0, 1.0])), 180.0
    # Between the points the edge bulges a little.
    return centre, min(180.0, 1.02 * max(_angle(centre, point) for point in edge))


def _angle(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return the angle between two unit vectors in degrees, from their chord."""
    return math.degrees(2 * math.asin(min(1.0, math.dist(one, other) / 2)))
