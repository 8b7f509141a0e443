"""What a folder of templates holds: read once from the headers, looked up for every exposure."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.wcs import WCS

from core.deadline import Deadline
from core.errors import ArchiveUnavailable, ExposureError, UnusableInput
from core.fitsfile import Hdu, card
from core.headerfacts import read_facts
from core.image import ExposureFacts
from core.pixel_mapping import SkyMapping
from core.reading import is_side_extension, read_wcs
from core.templates.cache import LockTimeout
from core.templates.epochs import Epochs
from core.templates.folder import FoundFile, TemplateFolder
from core.templates.siblings import is_side_plane, planes_by_stem, siblings_of

logger = logging.getLogger(__name__)

_DEPTH = ("MAGLIM", "LIMMAG", "MAGLIMIT", "LMT_MG", "GALDEPTH", "PSFDEPTH", "DEPTH")
_FRAMES = ("NINPUTS", "NCOMBINE", "NFRAMES", "NIMAGES", "NCOADD")
_SEEING_PIXELS = ("FWHM", "PFWHM")
_SEEING_ARCSEC = ("SEEING",)
_EDGE_POINTS = 16
_FAILURES_IN_A_ROW = 3  # files that cannot be fetched: so many, and the server is taken for dead


@dataclass(frozen=True)
class TemplateFiles:
    """A file with images and those of its separate planes."""

    image: FoundFile
    mask: FoundFile | None = None
    weight: FoundFile | None = None
    variance: FoundFile | None = None

    @property
    def all(self) -> list[FoundFile]:
        """Those that are there."""
        files = (self.image, self.mask, self.weight, self.variance)
        return [file for file in files if file is not None]


@dataclass(frozen=True)
class TemplateRecord:
    """One image that may serve as a template, as its header describes it.

    Attributes
    ----------
    files : TemplateFiles
        The file and its separate planes.
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
    epochs : Epochs or None
        When they were taken, if that is stated.
    """

    files: TemplateFiles
    hdu: int
    name: str
    frame: Frame
    facts: ExposureFacts
    depth: float | None
    seeing: float | None
    n_frames: int
    epochs: Epochs | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What no other image has, nor this one when its files have changed."""
        return (f"HDU {self.hdu}", *(file.identity for file in self.files.all))


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
        covered = self.covered_by(other, points)
        return Overlap(float(covered.mean()), _angle(self.centre, other.centre))

    def covered_by(self, other: Frame, points: int = 41) -> npt.NDArray[np.bool_]:
        """Return which of ``points``² places on this frame another covers."""
        if _angle(self.centre, other.centre) > self.radius + other.radius:
            return np.zeros((points, points), dtype=np.bool_)
        ny, nx = self.shape
        x = (np.arange(points) + 0.5) / points * nx - 0.5
        y = (np.arange(points) + 0.5) / points * ny - 0.5
        sx, sy = SkyMapping(self.wcs, other.wcs, nx)(x[None, :], y[:, None])
        with np.errstate(invalid="ignore"):
            covered: npt.NDArray[np.bool_] = (
                (sx > -0.5)
                & (sx < other.shape[1] - 0.5)
                & (sy > -0.5)
                & (sy < other.shape[0] - 0.5)
            )
        return covered


@dataclass(frozen=True)
class _Known:
    """What was found in a file, or why nothing was."""

    files: TemplateFiles
    records: tuple[TemplateRecord, ...]
    fault: str | None = None


# A file, and what reads it or raises.
_Reading = tuple[TemplateFiles, Callable[[], tuple[TemplateRecord, ...]]]


class TemplateIndex:
    """The images of a folder; brought up to date whenever it is asked.

    Every process has its own: there is nothing to lock. Headers of files that did not change are
    not read again.

    Parameters
    ----------
    folder : TemplateFolder
        Searched with all folders below it.
    """

    def __init__(self, folder: TemplateFolder) -> None:
        self.folder = folder
        self._known: dict[str, _Known] = {}

    @property
    def unreadable(self) -> dict[str, str]:
        """Why files are left out, by path."""
        return {path: known.fault for path, known in self._known.items() if known.fault}

    def records(self, deadline: Deadline | None = None) -> list[TemplateRecord]:
        """Return all usable images, ordered by name.

        Raises
        ------
        core.errors.InputUnavailable
            If the folder cannot be listed, or not all headers be read before the deadline. What
            was read is not read again.
        """
        found = self._scan(deadline)
        there = {each.image.path for each in found}
        self._known = {path: known for path, known in self._known.items() if path in there}
        changed = []
        for each in found:
            known = self._known.get(each.image.path)
            if known is None or known.files != each:
                self._known.pop(each.image.path, None)
                changed.append(each)
        with closing(self._readings(changed, deadline)) as readings:
            self._note(readings, deadline)
        return [record for path in sorted(self._known) for record in self._known[path].records]

    def _note(self, readings: Iterable[_Reading], deadline: Deadline | None) -> None:
        """Remember what is read of files, or why it cannot be."""
        failures = 0
        for each, read in readings:
            path = each.image.path
            try:
                self._known[path] = _Known(each, read())
                failures = 0
            except (ArchiveUnavailable, LockTimeout) as error:  # it may be readable the next time
                failures += 1
                expired = deadline is not None and deadline.expired
                if failures == _FAILURES_IN_A_ROW or expired:
                    raise
                logger.warning("template left out for now: %s", error)
            except ExposureError as error:
                logger.warning("template left out: %s", error)
                self._known[path] = _Known(each, (), str(error))

    def _readings(
        self, files: Sequence[TemplateFiles], deadline: Deadline | None
    ) -> Generator[_Reading]:
        """Yield what gives the records of each file, in order; some are read ahead."""
        at_once = self.folder.at_once if len(files) > 1 else 1
        if at_once == 1:
            for each in files:
                yield each, partial(self._read, each, deadline)
            return
        pool = ThreadPoolExecutor(at_once)
        try:
            jobs = [pool.submit(self._read, each, deadline) for each in files]
            for each, job in zip(files, jobs, strict=True):
                yield each, job.result
        finally:  # whoever has seen enough failures asks for no more
            pool.shutdown(cancel_futures=True)

    def _scan(self, deadline: Deadline | None) -> list[TemplateFiles]:
        folders: dict[str, dict[str, FoundFile]] = {}
        for file in self.folder.files(deadline):
            folder, name = os.path.split(file.path)
            folders.setdefault(folder, {})[name] = file
        found = []
        for files in folders.values():
            planes = planes_by_stem(files)
            for name, file in files.items():
                if not is_side_plane(name):
                    theirs = siblings_of(name, planes)
                    roles = (theirs.mask, theirs.weight, theirs.variance)
                    found.append(TemplateFiles(file, *(files.get(role or "") for role in roles)))
        return found

    def _read(self, found: TemplateFiles, deadline: Deadline | None) -> tuple[TemplateRecord, ...]:
        file = self.folder.headers(found.image, deadline)
        path = found.image.path
        images = [h for h in file.hdus if h.is_image and not is_side_extension(h)]
        science = [h for h in images if h.name == "SCI"] or images
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
            name = found.image.name
            label = name if len(science) == 1 else f"{name}[{hdu.index}]"
            records.append(_record(found, hdu, label, wcs, headers))
        if not records:
            raise UnusableInput(next(iter(faults), f"{path}: holds no two-dimensional image"))
        return tuple(records)


def _record(
    files: TemplateFiles, hdu: Hdu, name: str, wcs: WCS, headers: tuple[Header, ...]
) -> TemplateRecord:
    def number(keywords: tuple[str, ...]) -> float | None:
        for header in headers:
            for keyword in keywords:
                value = card(header, keyword)
                if isinstance(value, int | float) and np.isfinite(value) and value > 0:
                    return float(value)
        return None

    return TemplateRecord(
        files=files,
        hdu=hdu.index,
        name=name,
        frame=Frame.of(wcs, hdu.shape),
        facts=read_facts(headers).facts,
        depth=number(_DEPTH),
        seeing=number(_SEEING_ARCSEC) or number(_SEEING_PIXELS),
        n_frames=max(1, int(number(_FRAMES) or 1)),
        epochs=Epochs.of_headers(headers),
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
