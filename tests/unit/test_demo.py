"""How the demonstration judges what came out of the stream, and what it shows of it."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from rich.console import Console

from core.simulate import SimulatedExposure
from service.demo.display import PlainDisplay, exposure_cells, exposure_table
from service.demo.options import DemoFailed, DemoOptions, DemoPaths
from service.demo.pictures import choose, contact_sheet, png, triplet, zscale
from service.demo.plots import light_curves
from service.demo.report import summary, write_report
from service.demo.scoring import Outcome, Tally, score
from service.demo.stream import Alert, Status

OPTIONS = DemoOptions(Path("unused"))
ARCSEC = 1.0 / 3600.0
NAMES = ("source", "kind", "x", "y", "ra", "dec", "flux", "mag", "snr", "on_galaxy", "masked")


def truth(*rows: dict[str, Any]) -> Table:
    """One row for each, 100 arcseconds apart in declination."""
    table = Table(
        names=NAMES, dtype=("i4", "U9", "f8", "f8", "f8", "f8", "f8", "f8", "f8", "?", "?")
    )
    for i, row in enumerate(rows):
        default = {
            "source": i, "kind": "transient", "x": 50.0, "y": 100.0 * i, "ra": 359.99999,
            "dec": 60.0 + 100.0 * i * ARCSEC, "flux": 900.0, "mag": 19.0, "snr": 20.0,
            "on_galaxy": False, "masked": False,
        }  # fmt: skip
        table.add_row([{**default, **row}[name] for name in NAMES])
    return table


def tally(table: Table, exposure_id: str = "sim_1") -> Tally:
    event = {"exposure_id": exposure_id}
    made = Tally(SimulatedExposure(event, table, 3.3, 0.9, 300.0, 26.4))
    made.published = 100.0
    return made


def alert(candid: int, at: Table.Row | None = None, **changes: Any) -> Alert:
    """An alert ``dra``, ``ddec`` arcseconds from a true source."""
    ra, dec = (10.0, 10.0) if at is None else (at["ra"], at["dec"])
    ra += changes.pop("dra", 0.0) * ARCSEC / np.cos(np.radians(dec))
    dec += changes.pop("ddec", 0.0) * ARCSEC
    stamp = {"stampData": _stamp(), "fileName": "x"}
    packet = {
        "candid": candid,
        "objectId": changes.pop("object_id", f"SD{candid}"),
        "candidate": {"ra": ra % 360.0, "dec": dec, "magpsf": 19.1, "sigmapsf": 0.05},
        "skydelta": {"exposure_id": "sim_1", "sign": 1, "snr": 15.0, "zero_point": 26.4, **changes},
        "cutoutScience": stamp,
        "cutoutTemplate": stamp,
        "cutoutDifference": stamp,
    }
    return Alert(b"packet", packet, 103.5)


def status(**changes: Any) -> Status:
    record = {
        "exposure_id": "sim_1", "outcome": "published", "reason": "", "alerts": 0,
        "quality": {"star_chi2": 1.03, "engine": "sfft"}, "zero_point": 26.41,
        "limiting_mag": 20.5, "seconds": {"read": 0.1, "subtract": 0.4},
    }  # fmt: skip
    return Status({**record, **changes}, 104.0)


def _stamp(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).normal(size=(63, 63)).astype(">f4")
    pixels[31, 31] = 40.0
    pixels[:, :5] = np.nan
    target = io.BytesIO()
    fits.PrimaryHDU(pixels).writeto(target)
    return gzip.compress(target.getvalue())


# --- scoring --------------------------------------------------------------------------------


def test_nearest_alert_within_the_radius_explains_a_source() -> None:
    made = tally(truth({}, {}))
    rows = made.exposure.truth
    made.take(alert(1, rows[0], dra=2.0))
    made.take(alert(2, rows[0], ddec=0.5))
    made.take(alert(3, rows[1], dra=3.2))
    labels = {v.alert.candid: v.label for v in score(made, OPTIONS).verdicts}
    assert labels == {1: "false", 2: "transient", 3: "false"}
    result = score(made, OPTIONS)
    assert (result.injected_bright, result.recovered_bright) == (2, 1)
    assert [row["source"] for row in result.missed] == [1]
    verdict = next(v for v in result.verdicts if v.label == "transient")
    assert verdict.separation == pytest.approx(0.5, abs=1e-3)


def test_matching_works_across_right_ascension_zero() -> None:
    made = tally(truth({"ra": 359.9999}))
    made.take(alert(1, made.exposure.truth[0], dra=1.9))  # ends up beyond 0 degrees
    assert alert(1, made.exposure.truth[0], dra=1.9).ra < 1.0
    assert score(made, OPTIONS).count("transient") == 1


def test_sign_must_agree() -> None:
    made = tally(truth({"kind": "variable", "flux": -500.0}))
    made.take(alert(1, made.exposure.truth[0]))
    assert score(made, OPTIONS).count("false") == 1
    made.take(alert(2, made.exposure.truth[0], sign=-1, dra=0.3))
    assert score(made, OPTIONS).count("variable") == 1


def test_truth_too_faint_to_be_seen_explains_nothing() -> None:
    made = tally(truth({"snr": 1.0}))
    made.take(alert(1, made.exposure.truth[0]))
    assert score(made, OPTIONS).count("false") == 1


def test_variables_and_defects_do_not_count_for_completeness() -> None:
    made = tally(
        truth(
            {}, {"kind": "variable"}, {"masked": True}, {"snr": 9.9}, {"snr": 9.9, "masked": True}
        )
    )
    result = score(made, OPTIONS)
    assert (result.injected_bright, result.on_defects, len(result.missed)) == (1, 1, 1)


def test_exposure_is_complete_when_all_announced_alerts_are_there() -> None:
    made = tally(truth({}, {}))
    rows = made.exposure.truth
    assert made.take(alert(1, rows[0]))
    assert not made.complete
    assert made.take(status(alerts=2))
    assert not made.complete
    assert not made.take(alert(1, rows[0]))  # delivered twice
    assert not made.complete
    assert made.take(alert(2, rows[1]))
    assert made.complete
    assert made.seconds == pytest.approx(4.0)


def outcome_of(injected: int, recovered: int, false: int) -> Outcome:
    made = tally(truth(*({} for _ in range(injected))))
    for i in range(recovered):
        made.take(alert(i, made.exposure.truth[i]))
    for i in range(false):
        made.take(alert(1000 + i))
    made.take(status(alerts=recovered + false))
    return Outcome.of([made], OPTIONS)


@pytest.mark.parametrize(
    ("injected", "recovered", "false", "passed"),
    [(10, 9, 2, True), (10, 8, 0, False), (10, 10, 3, False), (0, 0, 0, False), (20, 18, 0, True)],
)
def test_what_passes(injected: int, recovered: int, false: int, passed: bool) -> None:
    outcome = outcome_of(injected, recovered, false)
    assert outcome.passed is passed
    assert bool(outcome.failures) is not passed
    figures = summary(outcome, 30.0)
    assert figures["passed"] is passed
    assert figures["missed_bright"] == injected - recovered
    assert json.loads(json.dumps(figures)) == figures


def test_completeness_by_snr_counts_transients_clear_of_defects() -> None:
    made = tally(truth({"snr": 4.0}, {"snr": 20.0}, {"snr": 30.0}, {"snr": 25.0, "masked": True}))
    made.take(alert(1, made.exposure.truth[1]))
    bins = Outcome.of([made], OPTIONS).completeness_by_snr((3, 10, 100))
    assert bins == [
        {"low": 3, "high": 10, "injected": 1, "recovered": 0},
        {"low": 10, "high": 100, "injected": 2, "recovered": 1},
    ]


def test_stage_seconds_are_means_in_order() -> None:
    one, two = tally(truth({})), tally(truth({}), "sim_2")
    one.take(status(seconds={"read": 0.2, "subtract": 1.0}))
    two.take(status(exposure_id="sim_2", seconds={"read": 0.4, "subtract": 3.0}))
    stages = Outcome.of([one, two], OPTIONS).stage_seconds()
    assert list(stages.items()) == [("read", pytest.approx(0.3)), ("subtract", pytest.approx(2.0))]


# --- what is shown --------------------------------------------------------------------------


def test_cells_of_an_exposure_fill_up() -> None:
    made = tally(truth({}))
    assert exposure_cells(made, OPTIONS)["outcome"] == "processing"
    assert exposure_cells(made, OPTIONS)["seconds"] == ""
    made.take(alert(1, made.exposure.truth[0]))
    assert exposure_cells(made, OPTIONS)["recovered"] == "1/1"
    made.take(status(alerts=1))
    cells = exposure_cells(made, OPTIONS)
    assert (cells["outcome"], cells["seconds"], cells["star_chi2"]) == ("published", "4.0", "1.03")
    assert exposure_table([made], OPTIONS).row_count == 1


def test_plain_display_writes_a_line_for_each_finished_exposure() -> None:
    target = io.StringIO()
    with PlainDisplay(Console(file=target, width=40), OPTIONS) as display:
        made = tally(truth({}))
        display.update([made])
        made.take(status(outcome="no_template", quality=None))
        display.update([made], made)
    assert target.getvalue() == (
        "sim_1: no_template, 0 candidates, recovered 0/1, variables 0, false 0, 4.0 s\n"
    )


def test_zscale_marks_pixels_without_data_and_takes_stamps_without_any() -> None:
    stamp = np.random.default_rng(1).normal(size=(63, 63)).astype(np.float32)
    stamp[0, 0] = np.nan
    assert zscale(stamp)[0, 0] == 40
    assert zscale(stamp).std() > 20
    assert (zscale(np.full((63, 63), np.nan, dtype=np.float32)) == 40).all()
    assert zscale(np.ones((63, 63), dtype=np.float32)).shape == (63, 63)


def test_triplet_is_north_up() -> None:
    verdict = outcome_of(1, 1, 0).verdicts[0]
    science = verdict.alert.stamps()[0]
    picture = triplet(verdict)
    assert picture.shape == (63, 3 * 63 + 4)
    np.testing.assert_array_equal(picture[:, :63], zscale(science)[::-1])


def test_png_is_read_back() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (20, 31)).astype(np.uint8)
    back = matplotlib.image.imread(io.BytesIO(png(grey)))
    np.testing.assert_array_equal(np.rint(back * 255).astype(np.uint8), grey)


@pytest.mark.parametrize(("recovered", "false"), [(0, 0), (3, 1), (30, 40)])
def test_contact_sheet_shows_what_there_is(recovered: int, false: int, tmp_path: Path) -> None:
    outcome = outcome_of(max(recovered, 1), recovered, false)
    chosen = choose(outcome, 12)
    assert len(chosen) <= 12
    if false:
        assert any(v.label == "false" for v in chosen)
    if recovered:
        assert any(v.label == "transient" for v in chosen)
    contact_sheet(chosen, tmp_path / "sheet.png", "headline")
    assert matplotlib.image.imread(tmp_path / "sheet.png").shape[1] > 1000


def test_report_escapes_what_comes_from_packets(tmp_path: Path) -> None:
    made = tally(truth({}, {}))
    evil = "<script>alert(1)</script>"
    made.take(alert(1, made.exposure.truth[0], object_id=evil))
    made.take(status(alerts=1, outcome="failed", reason=evil))
    paths = DemoPaths(tmp_path)
    write_report(Outcome.of([made], OPTIONS), paths, 12.0)
    html = paths.report.read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2
    assert "only 1 of 2 transients" in html


def test_light_curves_show_measured_against_injected() -> None:
    nights = []
    for night, flux in enumerate((100.0, 900.0, 400.0)):
        made = tally(truth({"flux": flux}), f"sim_{night}")
        seen = alert(night, made.exposure.truth[0], flux=flux + 10.0, flux_err=10.0)
        made.take(seen)
        nights.append(made)
    (curve,) = light_curves(Outcome.of(nights, OPTIONS))
    assert curve["alerts"] == 3
    xs = [x for x, *_ in curve["points"]]
    assert xs == sorted(xs)
    heights = [y for _, y, *_ in curve["points"]]  # downwards
    assert heights[1] < heights[2] < heights[0] < curve["zero"]
    low_ends = [low for _, _, low, _ in curve["points"]]
    line = [float(pair.split(",")[1]) for pair in curve["line"].split()]
    np.testing.assert_allclose(low_ends, line, atol=0.06)  # each is one error bar too bright
    assert light_curves(Outcome.of(nights[:2], OPTIONS)) == []


def test_report_of_nothing_at_all(tmp_path: Path) -> None:
    paths = DemoPaths(tmp_path)
    write_report(Outcome.of([tally(truth())], OPTIONS), paths, 12.0)
    assert "no transient above 10 sigma was injected" in paths.report.read_text()


# --- the output folder ----------------------------------------------------------------------


def test_output_folder_is_emptied_of_an_earlier_demonstration_only(tmp_path: Path) -> None:
    paths = DemoPaths(tmp_path / "out")
    paths.prepare()
    (paths.alerts / "1.avro").touch()
    paths.report.touch()
    (paths.root / "notes.txt").touch()
    paths.prepare()
    assert sorted(p.name for p in paths.root.iterdir()) == [".skydelta-demo", "alerts", "notes.txt"]
    assert not list(paths.alerts.iterdir())


def test_foreign_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.fits").touch()
    with pytest.raises(DemoFailed, match="choose another --out"):
        DemoPaths(tmp_path).prepare()
    with pytest.raises(DemoFailed, match="not a folder"):
        DemoPaths(tmp_path / "data.fits").prepare()
