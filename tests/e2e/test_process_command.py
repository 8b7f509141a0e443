"""``skydelta process``: real FITS files in, files that astronomers and brokers read out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import schemas
from core.simulate import SurveySettings, simulate_survey
from service import cli


@dataclass(frozen=True)
class Pair:
    """A simulated exposure, its template and what is hidden in it."""

    science: Path
    mask: Path
    template: Path
    template_mask: Path
    truth: Table

    @property
    def arguments(self) -> list[str]:
        return [
            str(self.science), "--mask", str(self.mask),
            "--template", str(self.template), "--template-mask", str(self.template_mask),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("survey")
    settings = SurveySettings(n_exposures=1, shape=(620, 560), seed=11, n_transients=12)
    survey = simulate_survey(settings, folder)
    exposure = survey.exposures[0]
    science = Path(exposure.event["science_uri"].removeprefix("file://"))
    mask = Path(exposure.event["mask_uri"].removeprefix("file://"))
    template = survey.template_dir / "template.fits"
    return Pair(science, mask, template, survey.template_dir / "template.mask.fits", exposure.truth)


@dataclass(frozen=True)
class Run:
    """One run of the command and all that it left."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def status(self) -> dict[str, Any]:
        return json.loads((self.folder / "status.json").read_text())

    @property
    def candidates(self) -> Table:
        return Table.read(self.folder / "candidates.ecsv", format="ascii.ecsv")


def run(capfd: pytest.CaptureFixture[str], folder: Path, *words: str | Path) -> Run:
    capfd.readouterr()
    try:
        code = cli.main(["process", *map(str, words), "--out", str(folder)])
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capfd.readouterr()
    return Run(code, captured.out, captured.err, folder)


@pytest.fixture(scope="module")
def done(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole command as a user runs it: its own process."""
    folder = tmp_path_factory.mktemp("out") / "night 1"
    command = [sys.executable, "-m", "service.cli", "process", *pair.arguments, "--planes"]
    ended = subprocess.run(
        [*command, "--out", str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    return Run(ended.returncode, ended.stdout, ended.stderr, folder)


# --- what a good run leaves -------------------------------------------------------------------


def test_it_ends_well_and_says_where_everything_is(done: Run) -> None:
    assert (done.code, done.err) == (0, "")
    for name in ("status.json", "candidates.ecsv", "difference.fits", "alerts"):
        assert str(done.folder / name) in done.out
    assert sorted(p.name for p in done.folder.iterdir()) == [
        "alerts", "candidates.ecsv", "difference.fits", "status.json",
    ]  # fmt: skip


def test_the_hidden_transients_are_found_where_they_are(pair: Pair, done: Run) -> None:
    table = done.candidates
    strong = pair.truth[(pair.truth["snr"] > 15) & ~pair.truth["masked"]]
    assert len(strong) >= 6
    for source in strong:
        distance = np.hypot(table["x"] - source["x"], table["y"] - source["y"])
        assert distance.min() < 0.5
        row = table[int(np.argmin(distance))]
        expected = SkyCoord(source["ra"], source["dec"], unit="deg")
        assert SkyCoord(row["ra"], row["dec"], unit="deg").separation(expected).arcsec < 0.5


def test_status_is_an_exposure_status_record(done: Run) -> None:
    status = done.status
    assert status["outcome"] == "published"
    assert status["exposure_id"].startswith("sim_")
    assert status["alerts"] == status["candidates"] == len(done.candidates)
    assert set(status) == {f["name"] for f in schemas.load("exposure_status")["fields"]}
    assert status["quality"]["engine"] == "sfft"
    assert sum(status["seconds"].values()) > 0


def test_table_has_units_and_says_how_pixels_count(done: Run) -> None:
    table = done.candidates
    wanted = ("x", "y", "ra", "dec", "snr", "flux", "flux_err", "mag", "sign", "flags")
    assert set(wanted) <= set(table.colnames)
    assert str(table["ra"].unit) == "deg"
    assert str(table["flux"].unit) == "adu"
    assert "0-based" in table.meta["pixel_convention"]
    assert list(table["snr"]) == sorted(table["snr"], reverse=True)


def test_one_packet_a_candidate_and_it_agrees_with_the_table(done: Run) -> None:
    table = done.candidates
    paths = {int(p.stem): p for p in (done.folder / "alerts").glob("*.avro")}
    assert set(paths) == set(table["candid"])
    for row in table:
        with paths[row["candid"]].open("rb") as file:
            (record,) = fastavro.reader(file)
        assert record["objectId"] == row["object_id"]
        assert record["candidate"]["xpos"] == pytest.approx(row["x"] + 1, abs=1e-3)
        assert record["candidate"]["ra"] == pytest.approx(row["ra"], abs=1e-7)
        assert record["candidate"]["magpsf"] == pytest.approx(row["mag"], abs=1e-4)
        assert record["skydelta"]["flux"] == pytest.approx(row["flux"], rel=1e-5)
        assert record["skydelta"]["flags"] == row["flags"]


def test_planes_belong_together_and_keep_the_wcs(pair: Pair, done: Run) -> None:
    with fits.open(done.folder / "difference.fits") as hdus:
        hdus.verify("exception")
        names = [hdu.name for hdu in hdus][1:]
        assert names == ["DIFF", "NOISE", "SCALED", "CONVOLVED", "MASK"]
        shape = fits.getdata(pair.science).shape
        assert {hdus[name].data.shape for name in names} == {shape}
        np.testing.assert_allclose(
            hdus["SCALED"].data, hdus["DIFF"].data / hdus["NOISE"].data, rtol=1e-4, atol=1e-6
        )
        assert hdus["MASK"].data.dtype.kind in "iu"
        assert hdus["MASK"].header["BIT00"] == "BAD"
        ours, theirs = WCS(hdus["DIFF"].header), WCS(fits.getheader(pair.science))
        for x, y in ((0, 0), (shape[1] - 1, shape[0] - 1)):
            separation = ours.pixel_to_world(x, y).separation(theirs.pixel_to_world(x, y))
            assert separation.arcsec < 1e-3


def test_view_shows_a_packet_of_it(done: Run, capfd: pytest.CaptureFixture[str]) -> None:
    packet = next((done.folder / "alerts").glob("*.avro"))
    picture = done.folder.parent / "triplet.png"
    assert cli.main(["view", str(packet), "--png", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    assert "sfft" in capfd.readouterr().out


def test_a_replay_gives_the_same_packets(
    pair: Pair, done: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = run(capfd, tmp_path, *pair.arguments)
    assert again.code == 0
    first = {p.name: p.read_bytes() for p in (done.folder / "alerts").iterdir()}
    second = {p.name: p.read_bytes() for p in (tmp_path / "alerts").iterdir()}
    assert first.keys() == second.keys()
    assert first == second
    assert not (tmp_path / "difference.fits").exists()  # --planes was not given


def test_files_of_an_earlier_run_do_not_stay(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alerts = tmp_path / "alerts"
    alerts.mkdir()
    (alerts / "123.avro").write_bytes(b"old")
    (alerts / "notes.avro").write_bytes(b"not ours")
    (tmp_path / "difference.fits").write_bytes(b"old")
    ended = run(capfd, tmp_path, tmp_path / "none.fits", "--template", pair.template)
    assert ended.code == 2
    assert [p.name for p in alerts.iterdir()] == ["notes.avro"]
    assert not (tmp_path / "difference.fits").exists()


# --- facts from the command line --------------------------------------------------------------


def test_what_is_given_wins_over_the_header(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = run(
        capfd, tmp_path, *pair.arguments, "--band", "i", "--mjd", "60000.125", "--gain", "3",
        "--zero-point", "25", "--exposure-id", "my exposure", "--exposure-time", "60", "--json",
    )  # fmt: skip
    assert ended.code == 0
    status = ended.status
    assert json.loads(ended.out) == status
    assert status["exposure_id"] == "my exposure"
    assert (status["band"], status["mjd_mid"], status["gain"]) == ("i", 60000.125, 3.0)
    assert (status["zero_point"], status["zero_point_origin"]) == (25.0, "event")
    with next((tmp_path / "alerts").glob("*.avro")).open("rb") as file:
        (record,) = fastavro.reader(file)
    assert record["candidate"]["jd"] == pytest.approx(60000.125 + 2400000.5 - 30 / 86400)
    assert record["candidate"]["fid"] == 3
    assert record["candidate"]["magzpsci"] == 25.0


# --- aligned ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two frames on one grid, without a WCS, a time or a band; one has two new stars."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:300, :320]
    sky = np.full((300, 320), 200.0)
    for _ in range(90):
        cx, cy = rng.uniform(12, 308), rng.uniform(12, 288)
        sky += 10 ** rng.uniform(1.8, 3.6) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 2 / 1.5**2)
    new = sky.copy()
    for cx, cy in ((100.0, 150.0), (220.5, 60.5)):
        new += 400.0 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 2 / 1.5**2)
    folder = tmp_path_factory.mktemp("aligned")
    paths = (folder / "new.fit", folder / "old.fits.gz")
    for path, truth in zip(paths, (new, sky), strict=True):
        header = fits.Header({"GAIN": 1.0, "RDNOISE": 5.0})
        pixels = rng.poisson(truth) + rng.normal(0, 5, truth.shape)
        fits.writeto(path, pixels.astype(np.float32), header)
    return paths


def test_aligned_images_need_no_wcs_and_give_pixels(
    aligned: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new, old = aligned
    ended = run(capfd, tmp_path, new, "--template", old, "--aligned", "--planes")
    assert (ended.code, ended.err) == (0, "")
    table = ended.candidates
    assert "candid" not in table.colnames
    for cx, cy in ((100.0, 150.0), (220.5, 60.5)):
        assert np.hypot(table["x"] - cx, table["y"] - cy).min() < 0.5
    assert table["ra"].mask.all()
    assert table["mag"].mask.all()
    assert not (tmp_path / "alerts").exists()
    assert ended.status["alerts"] == 0
    assert ended.status["exposure_id"] == "new"
    assert any("no packets are written" in note for note in ended.status["notes"])


def test_the_same_images_without_aligned_are_refused(
    aligned: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = run(capfd, tmp_path, aligned[0], "--template", aligned[1])
    assert ended.code == 2
    assert "WCS" in one_line(ended)
    assert "WCS" in ended.status["reason"]


def test_aligned_images_of_different_size_are_refused(
    aligned: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small.fits"
    fits.writeto(small, fits.getdata(aligned[1])[:200])
    ended = run(capfd, tmp_path / "out", aligned[0], "--template", small, "--aligned")
    assert ended.code == 2
    assert "not aligned" in one_line(ended)


# --- input that cannot be read: 2, one line, and the status says the same ----------------------


def one_line(ended: Run) -> str:
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    assert ended.err.startswith("skydelta process: ")
    return ended.err


def spoil(kind: str, good: Path, path: Path) -> Path:
    """Write a bad image of some kind."""
    data, header = fits.getdata(good, header=True)
    if kind == "not FITS":
        path.write_text("not an image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    elif kind == "folder":
        path.mkdir()
    elif kind == "3-D":
        fits.writeto(path, np.stack([data, data]), header)
    elif kind == "no image":
        fits.PrimaryHDU().writeto(path)
    elif kind == "no WCS":
        fits.writeto(path, data)
    elif kind == "too large":
        huge = fits.Header(header, copy=True)
        huge["NAXIS1"] = huge["NAXIS2"] = 60_000
        text = huge.tostring(sep="", endcard=True, padding=True)
        with path.open("wb") as file:
            file.write(text.encode())
            file.truncate(len(text) + 60_000 * 60_000 * 4)  # sparse
    return path


BAD = ["not FITS", "empty", "truncated", "folder", "3-D", "no image", "no WCS", "too large"]


@pytest.mark.parametrize("kind", BAD)
def test_bad_science_image(
    kind: str, pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = spoil(kind, pair.science, tmp_path / "bad.fits")
    ended = run(capfd, tmp_path / "out", bad, "--template", pair.template)
    assert ended.code == 2
    assert "bad.fits" in one_line(ended)
    assert ended.status["outcome"] in {"failed", "input_unavailable"}
    assert ended.status["reason"]
    assert ended.status["alerts"] == 0
    assert not (tmp_path / "out" / "candidates.ecsv").exists()


@pytest.mark.parametrize("kind", ["not FITS", "truncated", "no WCS"])
def test_bad_template(
    kind: str, pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = spoil(kind, pair.template, tmp_path / "bad.fits")
    ended = run(capfd, tmp_path / "out", pair.science, "--template", bad)
    assert ended.code == 2
    assert "bad.fits" in one_line(ended)
    assert ended.status["stage"] == "template"


@pytest.mark.parametrize("option", ["--mask", "--weight", "--template-mask"])
def test_missing_side_file(
    option: str, pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.fits"
    words = [pair.science, "--template", pair.template, option, missing]
    ended = run(capfd, tmp_path / "out", *words)
    assert ended.code == 2
    assert "none.fits: no such file" in one_line(ended)
    assert ended.status["outcome"] == "input_unavailable"


def test_missing_science_image(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = run(capfd, tmp_path / "out", tmp_path / "none.fits", "--template", pair.template)
    assert ended.code == 2
    assert "none.fits: no such file" in one_line(ended)


# --- wrong use --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a.fits"],
        ["a.fits", "--template", "b.fits", "--gain", "-1"],
        ["a.fits", "--template", "b.fits", "--mjd", "nan"],
        ["a.fits", "--template", "b.fits", "--threshold", "high"],
        ["a.fits", "--template", "b.fits", "--weight", "w", "--variance", "v"],
        ["a.fits", "--template", "b.fits", "--no-such-option"],
    ],
)
def test_wrong_use(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = run(capfd, tmp_path / "out", *words)
    assert ended.code == 2
    assert ended.err.startswith("skydelta")
    assert "error: " in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_engine(pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = run(capfd, tmp_path / "out", *pair.arguments, "--engine", "magic")
    assert ended.code == 2
    assert "no engine 'magic'; there is: sfft" in one_line(ended)


def test_output_folder_that_is_a_file(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    ended = run(capfd, file, *pair.arguments)
    assert ended.code == 2
    assert str(file) in one_line(ended)


# --- processed but rejected: 3 ----------------------------------------------------------------


def test_template_of_another_place(
    pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, header = fits.getdata(pair.template, header=True)
    header["CRVAL1"] += 20.0
    elsewhere = tmp_path / "elsewhere.fits"
    fits.writeto(elsewhere, data, header)
    ended = run(capfd, tmp_path / "out", pair.science, "--template", elsewhere)
    assert ended.code == 3
    assert "no_template" in one_line(ended)
    assert ended.status["outcome"] == "no_template"
    assert ended.status["reason"] in ended.err


@pytest.mark.parametrize("fill", [np.nan, 100.0])
def test_image_without_a_sky_in_it(
    fill: float, pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, header = fits.getdata(pair.science, header=True)
    blank = tmp_path / "blank.fits"
    fits.writeto(blank, np.full_like(data, fill), header)
    ended = run(capfd, tmp_path / "out", blank, "--template", pair.template)
    assert ended.code == 3
    assert "rejected_quality" in one_line(ended)
    assert ended.status["outcome"] == "rejected_quality"


def test_noise_without_stars(pair: Pair, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, header = fits.getdata(pair.science, header=True)
    noise = np.random.default_rng(4).normal(300, 12, data.shape).astype(np.float32)
    dark = tmp_path / "dark.fits"
    fits.writeto(dark, noise, header)
    ended = run(capfd, tmp_path / "out", dark, "--template", pair.template)
    assert ended.code == 3
    assert ended.status["outcome"] == "rejected_quality"
    one_line(ended)
