"""Templates from a folder of FITS files: a survey's own coadds, or yesterday's frames."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from core.bands import canonical_band, same_band
from core.errors import ExposureError, InputUnavailable, NoTemplate
from core.exposure import TemplateFacts
from core.reading import read_image
from core.templates.index import Frame, Overlap, TemplateIndex, TemplateRecord
from core.templates.template import Template, TemplateRequest

logger = logging.getLogger(__name__)

_SAME_COVER = 0.02  # overlaps that differ by less are equal; depth decides between them


@dataclass(frozen=True)
class _Considered:
    record: TemplateRecord
    overlap: Overlap
    refused: str | None


class DirectoryTemplates:
    """The best template among the FITS files below a folder.

    A file may be plain, gzipped or tile-compressed and hold one or several images. Its mask and
    weight may be extensions, or files beside it (see `core.templates.siblings` for their names).
    Several processes may use the same folder, and files may come, change and go meanwhile.

    Chosen is, among those of the exposure's band that cover at least ``min_overlap`` of it: the
    one that covers most, then the deepest (limiting magnitude, else exposure time), then the
    sharpest. A template whose band is not known is taken only where none of the band is.

    Parameters
    ----------
    path : path
        The folder.
    max_pixels : int
        Larger images are refused.
    """

    name = "directory"

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = 20_000 * 20_000) -> None:
        self._folder = os.fspath(path)
        self._max_pixels = max_pixels
        self._index = TemplateIndex(self._folder)

    def find(self, request: TemplateRequest) -> Template:
        """Return the best template for the request.

        Raises
        ------
        NoTemplate
            If none fits; the message says how many were looked at and why they were not taken.
        InputUnavailable
            If the folder cannot be read.
        """
        considered, usable = self._choices(request)
        failures: dict[str, str] = {}
        for choice in usable:
            try:
                return self._load(choice)
            except ExposureError as error:
                # Replaced or removed since it was indexed, or bad pixels behind a good header.
                logger.warning("template left out: %s", error)
                failures[choice.record.name] = str(error)
        raise NoTemplate(self._why(request, considered, failures))

    def identify(self, request: TemplateRequest) -> tuple[str, ...] | None:
        """Return the identity of the best template, None if there is none.

        Raises
        ------
        NoTemplate, InputUnavailable
            As `find`.
        """
        _, usable = self._choices(request)
        return _identity(usable[0].record) if usable else None

    def _choices(self, request: TemplateRequest) -> tuple[list[_Considered], list[_Considered]]:
        """Return all templates, and those that may be taken, the best first."""
        if request.wcs is None:
            raise NoTemplate(
                f"the exposure has no WCS, so no template in {self._folder} can be placed on it; "
                "name the aligned template"
            )
        try:
            records = self._index.records()
        except OSError as error:
            raise InputUnavailable(
                f"the template folder {self._folder} cannot be read ({error.strerror}); "
                "is it mounted?"
            ) from error
        frame = Frame.of(request.wcs, request.shape)
        considered = [self._consider(record, frame, request) for record in records]
        usable = sorted((c for c in considered if c.refused is None), key=_preference(request))
        return considered, usable

    def _consider(
        self, record: TemplateRecord, frame: Frame, request: TemplateRequest
    ) -> _Considered:
        if any(_same_file(record.path, path) for path in request.exclude):
            return _Considered(record, Overlap(0.0, 0.0), "the exposure itself")
        theirs = canonical_band(record.facts.band)
        if theirs and request.band and not same_band(theirs, request.band):
            return _Considered(record, Overlap(0.0, 0.0), f"of band {theirs}")
        overlap = frame.overlap(record.frame)
        if overlap.fraction == 0:
            return _Considered(record, overlap, "elsewhere on the sky")
        if overlap.fraction < request.min_overlap:
            return _Considered(record, overlap, "covering too little")
        return _Considered(record, overlap, None)

    def _load(self, choice: _Considered) -> Template:
        record = choice.record
        identity = _identity(record)  # before the pixels, which may change meanwhile
        planes = record.siblings
        image = read_image(
            record.path,
            hdu=record.hdu,
            mask=planes.mask,
            weight=planes.weight,
            variance=planes.variance,
            max_pixels=self._max_pixels,
        )
        facts = image.facts
        return Template(
            image=image,
            facts=TemplateFacts(
                provider=self.name,
                template_id=record.name,
                band=facts.band,
                zero_point=facts.zero_point,
                overlap=choice.overlap.fraction,
                mjd_first=facts.mjd_mid,
                mjd_last=facts.mjd_mid,
                n_frames=record.n_frames,
            ),
            identity=identity,
        )

    def _why(
        self,
        request: TemplateRequest,
        considered: list[_Considered],
        failures: dict[str, str],
    ) -> str:
        assert request.wcs is not None
        ra, dec = Frame.of(request.wcs, request.shape).position
        band = f"band {request.band}" if request.band else "any band"
        parts = [
            f"no template in {self._folder} for RA {ra:.4f} Dec {dec:+.4f}, {band}: "
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
            elif reason == "covering too little":
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


def _preference(request: TemplateRequest):  # type: ignore[no-untyped-def]
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


def _identity(record: TemplateRecord) -> tuple[str, ...]:
    """Return what tells the files of a template, as they are now, from others; empty if gone."""
    planes = record.siblings
    parts = [f"HDU {record.hdu}"]
    for path in (record.path, planes.mask, planes.weight, planes.variance):
        if path is not None:
            try:
                stat = os.stat(path)
            except OSError:
                return ()
            parts.append(f"{os.path.abspath(path)} {stat.st_mtime_ns} {stat.st_size}")
    return tuple(parts)


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
