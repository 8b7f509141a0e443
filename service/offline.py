"""The pipeline without Kafka: one exposure and one template in, files in a folder out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.errors import InputUnavailable, UnusableInput
from core.exposure import Exposure, ExposureResult
from core.pipeline import PipelineSettings, engine_names, process
from core.templates import TemplateProvider
from core.templates.single import SingleTemplate
from service.candidate_table import candidate_table
from service.difference_file import write_difference
from service.packets import EncodedAlert, PacketSettings, encode_alerts
from service.status import json_ready, status_record

__all__ = [
    "OfflineFiles",
    "OfflineJob",
    "TemplateFiles",
    "process_offline",
    "unreadable_input",
    "write_result",
]

_PACKET = re.compile(r"\d+\.avro")


@dataclass(frozen=True)
class TemplateFiles:
    """A template on disk: the image, and what is known about it."""

    image: str
    mask: str | None = None
    weight: str | None = None
    variance: str | None = None
    hdu: int | str | None = None


@dataclass(frozen=True)
class OfflineJob:
    """What ``skydelta process`` is asked to do.

    Attributes
    ----------
    exposure : Exposure
        The science image and its facts.
    template : TemplateFiles
        What is subtracted.
    directory : Path
        Where the results go; made if it is not there.
    settings : PipelineSettings
        Of the science; ``keep_difference`` also says whether the planes are written.
    packets : PacketSettings
        Of the alert packets.
    """

    exposure: Exposure
    template: TemplateFiles
    directory: Path
    settings: PipelineSettings = field(default_factory=PipelineSettings)
    packets: PacketSettings = field(default_factory=PacketSettings)


@dataclass(frozen=True)
class OfflineFiles:
    """What was written, and where; None or empty where it was not."""

    status: Path
    candidates: Path | None = None
    difference: Path | None = None
    alerts: tuple[Path, ...] = ()


def process_offline(job: OfflineJob) -> tuple[ExposureResult, dict[str, Any], OfflineFiles]:
    """Run the pipeline on files, and write what came of it.

    Parameters
    ----------
    job : OfflineJob
        What to do.

    Returns
    -------
    result : ExposureResult
        What the pipeline returned.
    status : dict
        The exposure status record, as ``status.json`` holds it.
    files : OfflineFiles
        What was written.

    Raises
    ------
    ValueError
        If an engine is not known.
    OSError
        If the folder cannot be made or written to.
    """
    unknown = [name for name in job.settings.engines if name not in engine_names()]
    if unknown:
        raise ValueError(f"no engine {unknown[0]!r}; there is: {', '.join(engine_names())}")
    job.directory.mkdir(parents=True, exist_ok=True)
    _remove_earlier(job.directory)
    missing = _missing_file(job)
    if missing is not None:
        error = InputUnavailable(f"{missing}: no such file")
        result = ExposureResult(
            exposure=job.exposure,
            outcome="input_unavailable",
            reason=str(error),
            error_class=type(error).__name__,
            stage="read",
            retriable=error.retriable,
        )
    else:
        result = process(job.exposure, _provider(job), job.settings)
    if job.settings.aligned:
        result = _pixels_only(result)
    return write_result(result, job.directory, job.packets)


def unreadable_input(result: ExposureResult) -> bool:
    """Return whether the fault lies with the files that were named, not with the sky in them."""
    return result.error_class in {InputUnavailable.__name__, UnusableInput.__name__} or (
        result.outcome == "invalid_event"
    )


def write_result(
    result: ExposureResult, directory: Path, packets: PacketSettings
) -> tuple[ExposureResult, dict[str, Any], OfflineFiles]:
    """Write what became of an exposure into a folder.

    ``status.json`` always and last; ``alerts/<candid>.avro`` and ``candidates.ecsv`` when the
    exposure was published; ``difference.fits`` whenever the result holds the planes.

    Parameters
    ----------
    result : ExposureResult
        From the pipeline.
    directory : Path
        An existing folder.
    packets : PacketSettings
        Of the alert packets.
    """
    published = result.outcome == "published"
    alerts, note = _alerts(result, packets) if published else ([], None)
    if note is not None:
        result = replace(result, notes=(*result.notes, note))
    paths = _write_alerts(alerts, directory)
    candidates = difference = None
    if published:
        candidates = directory / "candidates.ecsv"
        named = [(a.candid, a.object_id) for a in alerts] if note is None else None
        candidate_table(result, named).write(candidates, format="ascii.ecsv", overwrite=True)
    if result.difference is not None:
        difference = directory / "difference.fits"
        write_difference(difference, result, result.difference)
    status = json_ready(status_record(result, alerts=len(alerts)))
    path = directory / "status.json"
    path.write_text(json.dumps(_plain(status), indent=2, allow_nan=False) + "\n")
    return result, status, OfflineFiles(path, candidates, difference, paths)


def _alerts(
    result: ExposureResult, packets: PacketSettings
) -> tuple[Sequence[EncodedAlert], str | None]:
    """Return the packets, or why there can be none."""
    if result.wcs is None or any(c.ra is None or c.dec is None for c in result.candidates):
        return [], "aligned images: the candidates have pixels only, and no packets are written"
    if result.facts.mjd_mid is None and result.exposure.mjd_mid is None:
        return [], "no time of observation in the header: no packets are written; give --mjd"
    return encode_alerts(result, packets), None


def _pixels_only(result: ExposureResult) -> ExposureResult:
    """Take the sky positions away: the WCS of shifted images is often still that of before."""
    candidates = tuple(
        replace(
            c,
            ra=None,
            dec=None,
            nearest=None if c.nearest is None else replace(c.nearest, ra=None, dec=None),
        )
        for c in result.candidates
    )
    return replace(result, candidates=candidates)


def _write_alerts(alerts: Sequence[EncodedAlert], directory: Path) -> tuple[Path, ...]:
    if not alerts:
        return ()
    folder = directory / "alerts"
    folder.mkdir(exist_ok=True)
    paths = []
    for alert in alerts:
        path = folder / f"{alert.candid}.avro"
        path.write_bytes(alert.payload)
        paths.append(path)
    return tuple(paths)


def _remove_earlier(directory: Path) -> None:
    """Remove our own files of an earlier run, which would otherwise pass for this one's."""
    for name in ("status.json", "candidates.ecsv", "difference.fits"):
        (directory / name).unlink(missing_ok=True)
    for path in (directory / "alerts").glob("*.avro"):
        if _PACKET.fullmatch(path.name):
            path.unlink()


def _missing_file(job: OfflineJob) -> str | None:
    """Return the first named file that is not there, before minutes are spent on the others."""
    exposure, template = job.exposure, job.template
    named = (
        exposure.science, exposure.mask, exposure.weight, exposure.variance,
        template.image, template.mask, template.weight, template.variance,
    )  # fmt: skip
    return next((name for name in named if name is not None and not Path(name).exists()), None)


def _provider(job: OfflineJob) -> TemplateProvider:
    files = job.template
    return SingleTemplate(
        files.image,
        mask=files.mask,
        weight=files.weight,
        variance=files.variance,
        hdu=files.hdu,
        aligned=job.settings.aligned,
        max_pixels=job.settings.max_pixels,
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: no NaN, no numpy."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
