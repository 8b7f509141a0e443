"""Templates from a folder of FITS files: a survey's own coadds, or yesterday's frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.bands import canonical_band, same_band
from core.deadline import Deadline
from core.errors import ArchiveUnavailable, ExposureError, NoTemplate
from core.exposure import TemplateFacts
from core.image import Image
from core.reading import read_image
from core.templates.cache import FileCache
from core.templates.combining import choose_together, grid_around
from core.templates.epochs import Epochs, as_facts
from core.templates.folder import LocalFolder
from core.templates.index import Frame, Overlap, TemplateIndex, TemplateRecord
from core.templates.mosaic.mosaicking import mosaic
from core.templates.remote_folder import RemoteFolder, is_url
from core.templates.template import Template, TemplateRequest

logger = logging.getLogger(__name__)

_SAME_COVER = 0.02  # overlaps that differ by less are equal; depth decides between them
_WHOLE = 0.99  # of the exposure: nothing is worth combining
_TOO_LITTLE = "covering too little"


@dataclass(frozen=True)
class _Considered:
    record: TemplateRecord
    overlap: Overlap
    refused: str | None


@dataclass(frozen=True)
class _Plan:
    """One template, or several that are combined; the share of the exposure that they cover."""

    records: tuple[TemplateRecord, ...]
    overlap: float

    @property
    def name(self) -> str:
        return " + ".join(record.name for record in self.records)

    @property
    def identity(self) -> tuple[str, ...]:
        return tuple(part for record in self.records for part in record.identity)


class DirectoryTemplates:
    """The best template among the FITS files below a folder, which may be anywhere.

    A file may be plain, gzipped or tile-compressed and hold one or several images. Its mask and
    weight may be extensions, or files beside it (see `core.templates.siblings` for their names).
    Several processes may use the same folder, and files may come, change and go meanwhile.

    Chosen is, among those of the exposure's band that cover at least ``min_overlap`` of it: the
    one that covers most, then the deepest (limiting magnitude, else exposure time), then the
    sharpest. A template whose band is not known is taken only where none of the band is. Where
    none covers all of the exposure, several that have zero points are combined.

    Parameters
    ----------
    path : path
        The folder, or its URL (see `core.templates.remote_folder`).
    max_pixels : int
        Larger images are refused.
    cache : FileCache or None
        Where the files of a URL are kept.
    refresh_seconds : float
        How long the listing of a URL is believed; a folder is looked at every time.
    options : mapping or None
        For the file system of a URL: credentials, endpoint ...
    threads : int
        Threads to combine templates with.

    Raises
    ------
    ValueError
        If nobody knows how to read such a URL.
    """

    name = "directory"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_pixels: int = 20_000 * 20_000,
        cache: FileCache | None = None,
        refresh_seconds: float = 300.0,
        options: Mapping[str, Any] | None = None,
        threads: int = 1,
    ) -> None:
        where = os.fspath(path)
        self._folder: LocalFolder | RemoteFolder = LocalFolder(where)
        if is_url(where):
            self._folder = RemoteFolder(
                where, cache=cache, refresh_seconds=refresh_seconds, options=options
            )
        self._max_pixels = max_pixels
        self._threads = threads
        self._index = TemplateIndex(self._folder)

    def find(self, request: TemplateRequest) -> Template:
        """Return the best template for the request.

        Raises
        ------
        NoTemplate
            If none fits; the message says how many were looked at and why they were not taken.
        InputUnavailable
            If the folder, or a file that fits, cannot be read now.
        """
        frame, considered = self._considered(request)
        failures: dict[str, str] = {}
        unavailable = False
        for plan in _plans(frame, considered, request):
            try:
                return self._load(plan, frame, request)
            except ExposureError as error:
                # Replaced or removed since it was indexed, or bad pixels behind a good header.
                logger.warning("template left out: %s", error)
                failures[plan.name] = str(error)
                unavailable |= error.retriable and isinstance(self._folder, RemoteFolder)
        message = self._why(frame, request, considered, failures)
        if unavailable:
            raise ArchiveUnavailable(message)
        raise NoTemplate(message)

    def identify(self, request: TemplateRequest) -> tuple[str, ...]:
        """Return the identity of the best template.

        Raises
        ------
        NoTemplate, InputUnavailable
            As `find`.
        """
        frame, considered = self._considered(request)
        plans = _plans(frame, considered, request)
        if not plans:
            raise NoTemplate(self._why(frame, request, considered, {}))
        return plans[0].identity

    def is_kept(self, request: TemplateRequest) -> bool:
        """Return whether nothing but the listing is to be fetched for a template; see `Keeping`.

        Raises
        ------
        NoTemplate, InputUnavailable
            As `find`.
        """
        frame, considered = self._considered(request)
        plans = _plans(frame, considered, request)
        if not plans:
            raise NoTemplate(self._why(frame, request, considered, {}))
        files = [file for record in plans[0].records for file in record.files.all]
        return plans[0].overlap >= _WHOLE and self._folder.is_kept(files)

    def _considered(self, request: TemplateRequest) -> tuple[Frame, list[_Considered]]:
        if request.wcs is None:
            raise NoTemplate(
                f"the exposure has no WCS, so no template in {self._folder.shown} can be placed on "
                "it; name the aligned template"
            )
        frame = Frame.of(request.wcs, request.shape)
        records = self._index.records(request.deadline)
        return frame, [self._consider(record, frame, request) for record in records]

    def _consider(
        self, record: TemplateRecord, frame: Frame, request: TemplateRequest
    ) -> _Considered:
        if any(self._folder.is_same(record.files.image, path) for path in request.exclude):
            return _Considered(record, Overlap(0.0, 0.0), "the exposure itself")
        theirs = canonical_band(record.facts.band)
        if theirs and request.band and not same_band(theirs, request.band):
            return _Considered(record, Overlap(0.0, 0.0), f"of band {theirs}")
        overlap = frame.overlap(record.frame)
        if overlap.fraction == 0:
            return _Considered(record, overlap, "elsewhere on the sky")
        if overlap.fraction < request.min_overlap:
            return _Considered(record, overlap, _TOO_LITTLE)
        return _Considered(record, overlap, None)

    def _load(self, plan: _Plan, frame: Frame, request: TemplateRequest) -> Template:
        images = [self._read(record, request.deadline) for record in plan.records]
        overlap, sources, origin = plan.overlap, tuple(r.name for r in plan.records), None
        image = images[0]
        if len(images) > 1:
            wcs, shape = grid_around(images[0], frame, max_pixels=self._max_pixels)
            combined = mosaic(images, wcs, shape, threads=self._threads)
            image, sources, origin = combined.image, combined.sources, combined.origin
        return Template(
            image=image,
            facts=TemplateFacts(
                provider=self.name,
                template_id=plan.name,
                band=image.facts.band,
                zero_point=image.facts.zero_point,
                overlap=overlap,
                n_frames=sum(record.n_frames for record in plan.records),
                **as_facts(Epochs.spanning(record.epochs for record in plan.records)),
            ),
            sources=sources,
            origin=origin,
            identity=plan.identity,
        )

    def _read(self, record: TemplateRecord, deadline: Deadline | None) -> Image:
        files = record.files
        with self._folder.local(files.all, deadline) as paths:
            path = dict(zip((file.path for file in files.all), paths, strict=True))

            def local(role: str) -> str | None:
                file = getattr(files, role)
                return None if file is None else path[file.path]

            try:
                image = read_image(
                    path[files.image.path],
                    hdu=record.hdu,
                    mask=local("mask"),
                    weight=local("weight"),
                    variance=local("variance"),
                    max_pixels=self._max_pixels,
                )
            except ExposureError as error:
                # A person knows the file by where it comes from, not by its place in a cache.
                message = str(error)
                for there, here in path.items():
                    message = message.replace(here, there)
                raise type(error)(message) from error
        return replace(image, name=os.path.basename(files.image.path))

    def _why(
        self,
        frame: Frame,
        request: TemplateRequest,
        considered: Sequence[_Considered],
        failures: Mapping[str, str],
    ) -> str:
        ra, dec = frame.position
        band = f"band {request.band}" if request.band else "any band"
        parts = [
            f"no template in {self._folder.shown} for RA {ra:.4f} Dec {dec:+.4f}, {band}: "
            f"{len(considered)} images looked at"
        ]
        reasons: dict[str, list[_Considered]] = {}
        for each in considered:
            if each.refused is not None:
                reasons.setdefault(each.refused, []).append(each)
        for reason, group in reasons.items():
            text = f"{len(group)} {reason}"
            if reason == "elsewhere on the sky":
                nearest = min(group, key=lambda c: c.overlap.distance)
                text += f" (nearest {nearest.record.name}, {nearest.overlap.distance:.3g} deg away)"
            elif reason == _TOO_LITTLE:
                most = max(group, key=lambda c: c.overlap.fraction)
                text += (
                    f" (at most {100 * most.overlap.fraction:.0f} % by {most.record.name}, "
                    f"{100 * request.min_overlap:.0f} % are needed)"
                )
            else:
                text += f" ({group[0].record.name})"
            parts.append(text)
        if failures:
            parts.append(f"{len(failures)} failed ({next(iter(failures.values()))})")
        if self._index.unreadable:
            first = next(iter(self._index.unreadable.values()))
            parts.append(f"{len(self._index.unreadable)} unreadable ({first})")
        return "; ".join(parts)


def _plans(
    frame: Frame, considered: Sequence[_Considered], request: TemplateRequest
) -> list[_Plan]:
    """Return what may be the template, the best first."""
    usable = sorted((c for c in considered if c.refused is None), key=_preference(request))
    plans = [_Plan((c.record,), c.overlap.fraction) for c in usable]
    best = plans[0].overlap if plans else 0.0
    if best < _WHOLE:
        together = _together(frame, considered, request)
        least = max(request.min_overlap, best + _SAME_COVER)
        if together is not None and together.overlap >= least:
            plans.insert(0, together)
    return plans


def _together(
    frame: Frame, considered: Sequence[_Considered], request: TemplateRequest
) -> _Plan | None:
    """Return several templates of one band and with zero points, None where there are none."""
    parts = [
        c
        for c in considered
        if c.refused in (None, _TOO_LITTLE) and c.record.facts.zero_point is not None
    ]
    parts.sort(key=_preference(request))
    band = canonical_band(parts[0].record.facts.band) if parts else None
    parts = [c for c in parts if canonical_band(c.record.facts.band) == band]
    if len(parts) < 2:
        return None
    chosen, share = choose_together(parts, lambda c: frame.covered_by(c.record.frame))
    return _Plan(tuple(c.record for c in chosen), share) if len(chosen) > 1 else None


def _preference(
    request: TemplateRequest,
) -> Callable[[_Considered], tuple[bool, float, float, float, int, float, str]]:
    def key(choice: _Considered) -> tuple[bool, float, float, float, int, float, str]:
        record = choice.record
        facts = record.facts
        return (
            request.band is not None and facts.band is None,
            -round(choice.overlap.fraction / _SAME_COVER),
            -(record.depth or 0.0),
            -(facts.exposure_time or 0.0),
            -record.n_frames,
            record.seeing or float("inf"),
            record.name,
        )

    return key
