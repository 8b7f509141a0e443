"""Every bad input through a real broker: a reason that a person understands, and life goes on."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from confluent_kafka import Message

from core.simulation.survey import SimulatedSurvey
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka


@dataclass(frozen=True)
class Bad:
    """A bad event, and what must come of it."""

    name: str
    event: bytes
    outcome: str
    said: str  # part of the reason


class Workshop:
    """Makes bad events, and the files that they name, from a good one."""

    def __init__(self, good: dict[str, Any], folder: Path) -> None:
        self._good = {k: v for k, v in good.items() if k not in ("mask_uri", "weight_uri")}
        self._folder = folder
        self._science = Path(good["science_uri"].removeprefix("file://"))
        with fits.open(self._science) as hdus:
            self._hdu = next(hdu for hdu in hdus if hdu.data is not None)
            self._data = np.array(self._hdu.data, dtype=np.float32)
            self._header = self._hdu.header.copy()

    def event(self, name: str, outcome: str, said: str, **fields: Any) -> Bad:
        values = self._good | {"exposure_id": name} | fields
        values = {key: value for key, value in values.items() if value is not ...}
        return Bad(name, json.dumps(values).encode(), outcome, said)

    def of_bytes(self, name: str, content: bytes, outcome: str, said: str) -> Bad:
        path = self._folder / f"{name}.fits"
        path.write_bytes(content)
        return self.event(name, outcome, said, science_uri=str(path))

    def of_image(self, name: str, outcome: str, said: str, data: Any = None, **fields: Any) -> Bad:
        path = self._folder / f"{name}.fits"
        data = self._data if data is None else data
        fits.writeto(path, np.asarray(data, dtype=np.float32), self._header)
        return self.event(name, outcome, said, science_uri=str(path), **fields)

    def science(self) -> bytes:
        return self._science.read_bytes()

    def like(self, value: float) -> Any:
        return np.full_like(self._data, value)

    @property
    def cube(self) -> Any:
        return np.stack([self._data, self._data])

    def mask_of_everything(self) -> str:
        path = self._folder / "everything.mask.fits"
        fits.writeto(path, np.ones(self._data.shape, dtype=np.uint8))
        return str(path)

    def without_wcs(self, name: str, outcome: str, said: str) -> Bad:
        path = self._folder / f"{name}.fits"
        fits.writeto(path, self._data)
        return self.event(name, outcome, said, science_uri=str(path))

    def only_header(self, name: str, size: int, outcome: str, said: str) -> Bad:
        header = fits.Header(self._header)
        for key, value in {"SIMPLE": True, "BITPIX": -32, "NAXIS": 2}.items():
            header[key] = value
        header["NAXIS1"] = header["NAXIS2"] = size
        bad = self.of_bytes(name, header.tostring(padding=True).encode(), outcome, said)
        path = self._folder / f"{name}.fits"
        os.truncate(path, path.stat().st_size + 4 * size**2)  # a hole: it takes no space
        return bad


def bad_inputs(good: dict[str, Any], folder: Path) -> list[Bad]:
    make = Workshop(good, folder)
    outside = folder / "way-out.fits"
    outside.symlink_to("/etc/hostname")
    invalid, failed, rejected = "invalid_event", "failed", "rejected_quality"
    return [
        Bad("", b"\x07not an event", invalid, "neither registry-framed Avro"),
        make.event("no-band", invalid, "band is missing", band=...),
        make.event("wrong-time", invalid, "looks like a Julian date", mjd_mid=2461000.5),
        make.event("over-http", invalid, "input.prefixes allows no", science_uri="http://x/y.fits"),
        make.event("dots", invalid, "allowed folders", science_uri=f"{folder}/../../../etc/passwd"),
        make.event("link", invalid, "allowed folders", science_uri=str(outside)),
        make.event("late", "expired", "expired at", expires_at="2020-01-01T00:00:00Z"),
        make.event(
            "missing", "input_unavailable", "no such file", science_uri=f"{folder}/missing.fits"
        ),
        make.of_bytes("not-fits", b"GIF89a" + bytes(5000), failed, "is not a FITS file"),
        make.of_bytes("truncated", make.science()[:100_000], failed, "truncated"),
        make.without_wcs("no-wcs", failed, "no celestial WCS"),
        make.of_image("all-nan", rejected, "every pixel is NaN", data=make.like(np.nan)),
        make.of_image(
            "masked", rejected, "every pixel is masked", mask_uri=make.mask_of_everything()
        ),
        make.of_image("constant", rejected, "is constant", data=make.like(1000.0)),
        make.of_image("cube", failed, "3 dimensions", data=make.cube),
        make.only_header("zero", 0, failed, "zero size"),
        make.only_header("gigabytes", 40_000, failed, "input.max_file_bytes"),
        make.only_header("huge", 25_000, failed, "pixels"),
        make.event(
            "elsewhere",
            "no_template",
            "no template in",
            header_overrides={"CRVAL1": 10.0, "CRVAL2": -60.0},
        ),
    ]


def test_every_bad_input_ends_in_a_status_and_the_good_ones_come_out(
    make_service: Callable[..., ServiceProcess],
    read_topic: Callable[..., list[Message]],
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
    tmp_path: Path,
) -> None:
    good = small_survey.exposures[0].event
    bad = bad_inputs(good, tmp_path)
    events: list[bytes] = []
    for index, one in enumerate(bad):
        events.append(one.event)
        if index % 6 == 5:
            events.append(json.dumps(good | {"exposure_id": f"good-{index}"}).encode())
    send_events(kafka_bootstrap, topics.exposures, events)  # type: ignore[arg-type]
    service = make_service().start()
    found = [read_record(m) for m in read_topic(topics.status, len(events), timeout=120)]
    assert service.stop() == 0

    assert len(found) == len(events)
    assert [status["input_offset"] for status in found] == list(range(len(events)))
    by_id = {status["exposure_id"]: status for status in found}
    assert len(by_id) == len(events)
    good_ones = [name for name in by_id if name.startswith("good-")]
    assert [by_id[name]["outcome"] for name in good_ones] == ["published"] * 3
    assert all(by_id[name]["alerts"] > 0 for name in good_ones)

    undecodable = f"{topics.exposures}/0/0"
    problems = []
    for one in bad:
        status = by_id[one.name or undecodable]
        reason = status["reason"]
        if status["outcome"] != one.outcome or one.said not in reason or not reason:
            problems.append(f"{one.name}: {status['outcome']}: {reason}")
        if "\n" in reason or "Traceback" in reason:
            problems.append(f"{one.name}: not one line: {reason}")
    assert problems == []
    assert by_id["missing"]["attempts"] == 3

    letters = read_topic(topics.dead_letters, 1)
    expected = [one for one in bad if one.outcome in ("failed", "invalid_event")]
    assert [letter.value() for letter in letters] == [one.event for one in expected]
    assert [letter.key().decode() for letter in letters] == [
        one.name or undecodable for one in expected
    ]
    for letter in letters:
        headers = dict(letter.headers())
        status = by_id[letter.key().decode()]
        assert headers["skydelta-message"] == status["reason"].encode()
        assert headers["skydelta-error-class"] == status["error_class"].encode()
        assert headers["skydelta-source-topic"] == topics.exposures.encode()
        assert headers["skydelta-source-offset"] == str(status["input_offset"]).encode()
