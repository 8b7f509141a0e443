"""``skydelta view`` shows every packet of the family, and says in one line why it shows none."""

import argparse
import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from matplotlib.image import imread

import schemas
from service.alert_reading import UnreadableAlert, read_alert, read_stamp
from service.commands import view
from service.packets import PacketSettings, encode_alerts
from tests.shared_data import shared_data
from tests.unit.made_result import made_result


def run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    view.add_parser(parser.add_subparsers())
    args = parser.parse_args(["view", *map(str, words)])
    return view.run(args)


@pytest.fixture
def packet(tmp_path: Path) -> Path:
    path = tmp_path / "ours.avro"
    path.write_bytes(encode_alerts(made_result(), PacketSettings())[0].payload)
    return path


def changed(packet: Path, **changes: Any) -> Path:
    """The same packet with fields replaced."""
    record = read_alert(packet).record | changes
    path = packet.with_name("changed.avro")
    with path.open("wb") as file:
        fastavro.writer(file, schemas.load("alert"), [record])
    return path


def one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_our_packet_is_shown(packet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(packet) == 0
    shown = capsys.readouterr().out
    for fact in (
        "night7/ccd 3", "2025-11-21 05:59:30", "19.000 ± 0.054", "sfft, convolved: template",
        "directory, deep-505-r", "brighter than the template", "27.250 mag, from the template",
        "2,000 ± 100 ADU", "91,418 ± 4,571 nJy", "1 of 1 time",
    ):  # fmt: skip
        assert fact in shown
    picture = packet.with_suffix(".png")
    assert f"triplet: {picture}" in shown.replace("\n", "")
    assert imread(picture).shape[1] > 1000


def test_picture_shows_the_three_stamps(packet: Path, tmp_path: Path) -> None:
    """The bright pixel in the middle of our difference is white in its panel, and only there."""
    assert run(packet, "--png", tmp_path / "p.png") == 0
    pixels = imread(tmp_path / "p.png")[..., :3].min(axis=2)
    height, width = pixels.shape
    row = pixels[int(0.607 * height) - 2 : int(0.607 * height) + 3]
    centres = [row[:, int(f * width) - 3 : int(f * width) + 4].mean() for f in (0.17, 0.5, 0.8298)]
    assert centres[2] > 0.95
    assert max(centres[:2]) < 0.95


def test_every_real_packet_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared_data("alerts")
    paths = sorted([*folder.glob("ztf_v3/*.avro"), *folder.glob("ztf_v4/*.avro")])
    assert len(paths) > 40
    for path in paths:
        assert run(path, "--no-png") == 0, path
        shown = capsys.readouterr().out
        record = read_alert(path).record
        assert record["objectId"] in shown
        assert "-999" not in shown
        assert "null" not in shown
        for name in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
            assert read_stamp(read_alert(path), name).pixels.shape == (63, 63)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("ztf_v3/template_schema_ZTF_3p3.avro", 0),
        ("ztf_v4/2475433850015015000.avro", 0),  # half of it is NaN
        ("ztf_v4/2695378462115010012.avro", 0),  # faded
        ("ztf_v4/part-3-305711.avro", 30),  # a broker's, many records
    ],
)
def test_pictures_of_real_packets(name: str, index: int, tmp_path: Path) -> None:
    path = shared_data("alerts") / name
    assert run(path, "--index", str(index), "--png", tmp_path / "p.png") == 0
    assert imread(tmp_path / "p.png").std() > 0.05


def test_a_fill_value_does_not_spoil_the_stretch(packet: Path, tmp_path: Path) -> None:
    """Some ZTF packets hold -3e38 where no data."""
    pixels = np.random.default_rng(1).normal(100, 5, (63, 63)).astype(np.float32)
    pixels[:, :10] = -3.4e38
    buffer = io.BytesIO()
    fits.PrimaryHDU(pixels).writeto(buffer)
    stamp = {"fileName": "a", "stampData": gzip.compress(buffer.getvalue())}
    path = changed(packet, cutoutScience=stamp, cutoutTemplate=stamp)
    assert run(path, "--png", tmp_path / "p.png") == 0
    image = imread(tmp_path / "p.png")
    sky = image[int(0.4 * len(image)) : int(0.5 * len(image)), 200:300, 0]
    assert sky.std() > 0.1  # its noise is seen


def test_json_is_the_record_without_its_cutouts(
    packet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(packet, "--json", "--no-png") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["candidate"]["magpsf"] == pytest.approx(19.0)
    assert "cutoutScience" not in shown
    assert shown["png"] is None


def test_picture_goes_beside_the_packet_and_leaves_nothing_else(packet: Path) -> None:
    assert run(packet) == 0
    assert sorted(p.name for p in packet.parent.iterdir()) == ["ours.avro", "ours.png"]


def test_markup_in_a_packet_is_text(packet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(packet, publisher="[red]me[/red] [/] \x1b[31m")
    assert run(path, "--no-png") == 0
    shown = capsys.readouterr().out
    assert "[red]me[/red] [/]" in shown
    assert "\x1b" not in shown


def test_not_avro(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.avro"
    path.write_bytes(b"SIMPLE  =                    T")
    assert run(path) == 2
    assert "is not an Avro file" in one_line_on_stderr(capsys)
    path.write_bytes(b"")
    assert run(path) == 2
    assert "is empty" in one_line_on_stderr(capsys)


def test_missing_file_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.avro") == 2
    assert "no such file" in one_line_on_stderr(capsys)
    assert run(tmp_path) == 2
    assert "is a folder" in one_line_on_stderr(capsys)


@pytest.mark.parametrize("keep", [5, 100, 20_000, 40_000, -17, -1])
def test_truncated(keep: int, packet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packet.write_bytes(packet.read_bytes()[:keep])
    assert run(packet) == 2
    message = one_line_on_stderr(capsys)
    assert "truncated" in message or "damaged" in message


def test_damage_anywhere_is_a_message_not_a_traceback(
    packet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    sound = packet.read_bytes()
    for _ in range(150):
        spoilt = bytearray(sound)
        for place in rng.integers(0, len(sound), 20):
            spoilt[place] = rng.integers(0, 256)
        packet.write_bytes(bytes(spoilt))
        if run(packet, "--no-png") == 2:
            one_line_on_stderr(capsys)
        capsys.readouterr()
        for name in ("cutoutScience", "cutoutTemplate", "cutoutDifference"):
            with contextlib.suppress(UnreadableAlert):
                read_stamp(read_alert(packet), name)


def test_without_cutouts(packet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(packet, cutoutTemplate=None)
    assert run(path) == 2
    assert "has no template cutout" in one_line_on_stderr(capsys)
    assert run(path, "--no-png") == 0
    assert "SD25" in capsys.readouterr().out


@pytest.mark.parametrize(
    "data",
    [b"\x1f\x8b broken", b"not fits", gzip.compress(b"not fits"), gzip.compress(b"")],
    ids=["broken gzip", "not fits", "not fits, gzipped", "nothing, gzipped"],
)
def test_spoilt_cutout(data: bytes, packet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(packet, cutoutScience={"fileName": "a", "stampData": data})
    assert run(path) == 2
    assert "science cutout" in one_line_on_stderr(capsys)


def test_a_cutout_that_ends_early(packet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamp = read_alert(packet).record["cutoutScience"]
    path = changed(packet, cutoutScience={**stamp, "stampData": stamp["stampData"][:-20]})
    assert run(path) == 2
    assert "science cutout is truncated" in one_line_on_stderr(capsys)


def test_a_cutout_that_inflates_without_end_is_refused(
    packet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = gzip.compress(bytes(70_000_000))
    path = changed(packet, cutoutScience={"fileName": "a", "stampData": bomb})
    assert run(path) == 2
    assert "larger than" in one_line_on_stderr(capsys)


def test_another_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "event.avro"
    event = {"exposure_id": "a", "science_uri": "a.fits", "band": "r", "mjd_mid": 60000.5}
    with path.open("wb") as file:
        fastavro.writer(file, schemas.load("exposure"), [event])
    assert run(path) == 2
    assert "skydelta.exposure, not an alert of the ZTF family" in one_line_on_stderr(capsys)


def test_an_lsst_packet_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_data("alerts") / "lsst_schema" / "11" / "0" / "sample_data" / "fakeAlert.avro"
    assert run(path) == 2
    assert str(path) in one_line_on_stderr(capsys)


def test_no_such_record(packet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(packet, "--index", "1") == 2
    assert "holds 1 record; there is no record 1" in one_line_on_stderr(capsys)


def test_picture_that_cannot_be_written(packet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(packet, "--png", packet.parent / "no" / "such" / "p.png") == 2
    assert "cannot be written (No such file or directory)" in one_line_on_stderr(capsys)
