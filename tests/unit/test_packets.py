"""Packets: readers open them, replays repeat them, and no number in them misleads."""

import gzip
import io
import json
import math
from dataclasses import replace
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from fastavro.schema import load_schema_ordered

import schemas
from service.packets import MAX_CUTOUT, PacketSettings, encode_alerts
from tests.shared_data import shared_data
from tests.unit.made_result import made_candidate, made_cutouts, made_result, tan_wcs

CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
SETTINGS = PacketSettings()


def payloads(**changes: Any) -> list[bytes]:
    return [alert.payload for alert in encode_alerts(made_result(**changes), SETTINGS)]


def read(payload: bytes, schema: Any = None) -> dict[str, Any]:
    records = list(fastavro.reader(io.BytesIO(payload), reader_schema=schema))
    assert len(records) == 1
    return records[0]


def packets(**changes: Any) -> list[dict[str, Any]]:
    return [read(payload) for payload in payloads(**changes)]


def one_packet(**changes: Any) -> dict[str, Any]:
    wcs = tan_wcs()
    return packets(wcs=wcs, candidates=(made_candidate(250.2, 199.7, wcs, 1, **changes),))[0]


def ztf_schema() -> Any:
    folder = shared_data("alerts") / "ztf_schema"
    parts = ("candidate", "prv_candidate", "fp_hist", "cutout", "alert")
    return load_schema_ordered([str(folder / f"{part}.avsc") for part in parts])


def ztf_3p3_schema() -> Any:
    with (shared_data("alerts") / "ztf_v3" / "template_schema_ZTF_3p3.avro").open("rb") as file:
        return fastavro.reader(file).writer_schema


def image(cutout: dict[str, Any]) -> tuple[np.ndarray, fits.Header]:
    with fits.open(io.BytesIO(gzip.decompress(cutout["stampData"]))) as hdus:
        hdus.verify("exception")
        return hdus[0].data, hdus[0].header


def datum_start(payload: bytes) -> int:
    """Where the datum begins, by the container's specification, not by our writer."""
    block = next(iter(fastavro.block_reader(io.BytesIO(payload))))
    assert block.num_records == 1
    datum = block.bytes_.getvalue()
    return payload.index(datum)


# --- readers ---------------------------------------------------------------------------------


def test_our_own_schema_reads_it() -> None:
    record = read(payloads()[0], schemas.load("alert"))
    assert record["schemavsn"] == "4.02"
    assert record["skydelta"]["exposure_id"] == "night7/ccd 3"
    assert record["skydelta"]["template_id"] == "deep-505-r"
    assert record["skydelta"]["psf_error"] == pytest.approx(0.012)


def test_the_ztf_4_02_reader_schema_reads_it() -> None:
    record = read(payloads()[0], ztf_schema())
    assert "skydelta" not in record
    assert record["candidate"]["magpsf"] == pytest.approx(19.0)
    assert record["fp_hists"] == []
    assert set(record) == {field["name"] for field in ztf_schema()["fields"]}


def test_a_3_3_reader_schema_reads_it() -> None:
    schema = ztf_3p3_schema()
    record = read(payloads()[1], schema)
    assert "fp_hists" not in record
    assert record["prv_candidates"] == []
    assert record["candidate"]["isdiffpos"] == "f"
    assert image(record["cutoutScience"])[0].shape == (63, 63)


def test_the_container_is_what_consumers_expect() -> None:
    for payload in payloads():
        reader = fastavro.reader(io.BytesIO(payload))
        assert reader.codec == "null"
        assert reader.writer_schema["version"] == "4.02"
        assert reader.writer_schema["name"] == "ztf.alert"
        assert '"doc"' not in reader.metadata["avro.schema"]
        json.loads(reader.metadata["avro.schema"])
        record = next(reader)
        assert record["prv_candidates"] == []
        assert record["fp_hists"] == []
        assert all(record[name] is not None for name in CUTOUTS)


def test_nothing_but_what_the_schema_knows_is_written() -> None:
    """fastavro drops what the schema does not name, so a misspelt field would vanish."""
    from service import packets as module

    result = made_result()
    frame = module._Frame.of(result, SETTINGS)
    known = {
        field["name"]: {f["name"] for f in field["type"]["fields"]}
        for field in schemas.load("alert")["fields"]
        if field["name"] == "candidate"
    }["candidate"]
    assert set(module._ztf_candidate(result.candidates[0], 1, 0, frame)) <= known
    ours = {f["name"] for f in schemas.load("alert")["fields"][-1]["type"][1]["fields"]}
    plane = module.local_wcs(result.wcs, [1.0], [1.0])[0]
    assert set(module._measurement(result.candidates[0], plane, frame)) == ours


# --- stable bytes ----------------------------------------------------------------------------


def test_a_replay_gives_the_same_bytes() -> None:
    assert payloads() == payloads()


def test_the_datum_begins_at_the_same_byte_in_every_packet() -> None:
    """Also where the cutouts compress to next to nothing, and for another exposure."""
    wcs = tan_wcs()
    flat = made_cutouts(10, 10, 1)
    flat = replace(
        flat,
        science=np.zeros_like(flat.science),
        template=np.zeros_like(flat.template),
        difference=np.zeros_like(flat.difference),
    )
    tiny = payloads(wcs=wcs, candidates=(made_candidate(10, 10, wcs, 1, cutouts=flat),))
    assert len(tiny[0]) - datum_start(tiny[0]) < 8192  # a 2-byte size would do
    assert len({datum_start(payload) for payload in (*payloads(), *tiny)}) == 1


def test_everything_before_the_datum_is_the_same_in_every_packet() -> None:
    """Apart from the three bytes of the datum's size."""
    everything = payloads()
    start = datum_start(everything[0]) - 3
    assert len({payload[:start] for payload in everything}) == 1
    assert len({payload[-16:] for payload in everything}) == 1


# --- cutouts ---------------------------------------------------------------------------------


def test_cutouts_are_small_fits_images_with_one_header_block() -> None:
    for record in packets():
        for name in CUTOUTS:
            raw = gzip.decompress(record[name]["stampData"])
            assert len(raw) % 2880 == 0
            assert raw[:2880].rstrip(b" ").endswith(b"END")
            assert all(32 <= byte < 127 for byte in raw[:2880])
            pixels = np.frombuffer(raw[2880 : 2880 + 63 * 63 * 4], ">f4").reshape(63, 63)
            data, header = image(record[name])
            np.testing.assert_array_equal(pixels, data)
            assert header["BITPIX"] == -32
            assert data.dtype == np.dtype(">f4")


def test_gzip_headers_hold_neither_time_nor_name() -> None:
    stamp = packets()[0]["cutoutScience"]["stampData"]
    assert stamp[:4] == b"\x1f\x8b\x08\x00"  # no FNAME flag
    assert stamp[4:8] == b"\0\0\0\0"  # no time


def test_cutouts_hold_the_pixels_of_the_candidate() -> None:
    result = made_result()
    for candidate, record in zip(result.candidates, packets(), strict=True):
        np.testing.assert_array_equal(image(record["cutoutScience"])[0], candidate.cutouts.science)
        np.testing.assert_array_equal(
            image(record["cutoutTemplate"])[0], candidate.cutouts.template
        )


def test_a_faded_source_is_shown_as_reference_minus_science() -> None:
    """As ZTF does: its classifiers were trained on positive stamps."""
    result = made_result()
    bright, faded, _ = packets()
    np.testing.assert_array_equal(
        image(faded["cutoutDifference"])[0], -result.candidates[1].cutouts.difference
    )
    assert faded["cutoutDifference"]["fileName"].endswith("_targ_refmsci.fits.gz")
    np.testing.assert_array_equal(
        image(bright["cutoutDifference"])[0], result.candidates[0].cutouts.difference
    )
    assert bright["cutoutDifference"]["fileName"].endswith("_targ_scimref.fits.gz")


@pytest.mark.parametrize("declination", [0.0, 30.0, -75.0, 89.9])
def test_cutout_wcs_points_at_the_sky_of_the_exposure(declination: float) -> None:
    wcs = tan_wcs(ra=359.99, dec=declination)
    result = made_result(
        wcs, candidates=tuple(made_candidate(x, y, wcs, 1) for x, y in ((9.3, 4.6), (400, 300)))
    )
    for candidate, alert in zip(result.candidates, encode_alerts(result, SETTINGS), strict=True):
        check_stamp_wcs(read(alert.payload), candidate, wcs, 0.02)


def check_stamp_wcs(record: dict[str, Any], candidate: Any, wcs: WCS, tolerance: float) -> None:
    """Every corner of every stamp lies where the exposure's own WCS puts it."""
    x0, y0 = candidate.cutouts.x0, candidate.cutouts.y0
    for name in CUTOUTS:
        _, header = image(record[name])
        stamp_wcs = WCS(header)
        for x, y in ((31, 31), (0, 0), (62, 0), (0, 62), (62, 62)):
            sky = stamp_wcs.pixel_to_world(x, y)
            back_x, back_y = wcs.world_to_pixel(sky)
            assert back_x - x0 == pytest.approx(x, abs=tolerance)
            assert back_y - y0 == pytest.approx(y, abs=tolerance)
    centre = stamp_wcs.pixel_to_world(candidate.x - x0, candidate.y - y0)
    assert centre.ra.deg == pytest.approx(candidate.ra, abs=0.05 / 3600 * 10)


@pytest.mark.data
def test_cutout_wcs_of_a_distorted_camera() -> None:
    """ZTF's own WCS is TPV; in a stamp a linear one is within a hundredth of a pixel of it."""
    folder = shared_data("ztf_quadrant")
    header = fits.getheader(next(folder.glob("*sciimg.fits.gz")))
    wcs = WCS(header)
    assert header["CTYPE1"].endswith("TPV")
    result = made_result(
        wcs, candidates=tuple(made_candidate(x, y, wcs, 1) for x, y in ((40, 60), (3000, 3050)))
    )
    for candidate, alert in zip(result.candidates, encode_alerts(result, SETTINGS), strict=True):
        check_stamp_wcs(read(alert.payload), candidate, wcs, 0.01)


def test_pixels_without_data_are_nan_and_never_infinite() -> None:
    cutouts = made_cutouts(250, 200, 1)
    cutouts.science[0, 0] = np.inf
    cutouts.science[0, 1] = -np.inf
    cutouts.science[0, 2] = np.nan
    data, _ = image(one_packet(cutouts=cutouts)["cutoutScience"])
    assert np.isnan(data[0, :3]).all()
    assert np.isfinite(data).sum() == 63 * 63 - 3
    assert np.isinf(cutouts.science[0, 0])  # the caller's pixels are left alone


@pytest.mark.parametrize("size", [31, 63, 64, 101])
def test_cutouts_are_never_larger_than_consumers_take(size: int) -> None:
    wcs = tan_wcs()
    candidate = made_candidate(250.2, 199.7, wcs, 1, cutouts=made_cutouts(250.2, 199.7, 1, size))
    record = read(encode_alerts(made_result(wcs, candidates=(candidate,)), SETTINGS)[0].payload)
    data, header = image(record["cutoutDifference"])
    assert max(data.shape) == min(size, MAX_CUTOUT)
    peak_y, peak_x = np.unravel_index(np.argmax(data), data.shape)
    sky = WCS(header).pixel_to_world(peak_x, peak_y)
    x, y = wcs.world_to_pixel(sky)
    assert round(float(x)) == 250
    assert round(float(y)) == 200


# --- numbers ---------------------------------------------------------------------------------


def test_names_agree_everywhere() -> None:
    for alert, record in zip(encode_alerts(made_result(), SETTINGS), packets(), strict=True):
        assert alert.candid == record["candid"] == record["candidate"]["candid"]
        assert alert.object_id == record["objectId"]
        for name in CUTOUTS:
            assert record[name]["fileName"].startswith(f"candid{alert.candid}_")
        assert f"_pid{record['candidate']['pid']}_" in record["cutoutScience"]["fileName"]


def test_times_and_positions_follow_the_conventions_of_ztf() -> None:
    facts = one_packet()["candidate"]
    assert facts["jd"] == pytest.approx(61000.25 + 2400000.5 - 30.0 / 86400.0, abs=1e-9)
    assert facts["exptime"] == 60.0
    assert facts["xpos"] == pytest.approx(251.2, abs=1e-4)  # from 1
    assert facts["ypos"] == pytest.approx(200.7, abs=1e-4)
    assert facts["nid"] == 3246  # ZTF's night 2475 began at JD 2460229.5
    assert facts["isdiffpos"] == "t"
    assert (facts["fid"], facts["field"], facts["rcid"]) == (2, 505, None)
    assert facts["jdstartref"] == 2458000.5
    assert facts["magdiff"] == pytest.approx(0.01, abs=1e-5)  # magap - magpsf
    assert facts["magfromlim"] == pytest.approx(21.5 - 19.01, abs=1e-5)
    assert facts["seeratio"] == pytest.approx(3.0 / 2.5)
    assert facts["dsdiff"] == pytest.approx(facts["dsnrms"] - facts["ssnrms"])


def test_night_number_is_that_of_a_real_packet() -> None:
    """ZTF gave the exposure of JD 2460229.9338542 the night number 2475."""
    mjd = 2460229.9338542 - 2400000.5
    result = made_result()
    record = read(
        encode_alerts(
            replace(result, facts=replace(result.facts, mjd_mid=mjd, exposure_time=0.0)), SETTINGS
        )[0].payload
    )
    assert record["candidate"]["nid"] == 2475


def test_fluxes_carry_their_units() -> None:
    ours = one_packet()["skydelta"]
    assert ours["flux"] == 2000.0
    magnitude = 27.25 - 2.5 * math.log10(2000.0)
    assert -2.5 * math.log10(ours["flux_njy"] * 1e-9 / 3631) == pytest.approx(magnitude, abs=1e-4)
    assert ours["flux_njy"] / ours["flux_njy_err"] == pytest.approx(20.0)


def test_position_errors_follow_the_axes_of_the_sky() -> None:
    """0.1 px along x and 0.2 px along y, 1 arcsec pixels turned by 20 degrees."""
    ours = one_packet()["skydelta"]
    c, s = math.cos(math.radians(20)), math.sin(math.radians(20))
    assert ours["ra_err"] == pytest.approx(math.hypot(0.1 * c, 0.2 * s), rel=1e-3)
    assert ours["dec_err"] == pytest.approx(math.hypot(0.1 * s, 0.2 * c), rel=1e-3)


def test_without_a_zero_point_no_magnitude_is_pretended() -> None:
    result = made_result()
    without = {
        "mag": None, "mag_err": None, "aperture_mag": None, "aperture_mag_err": None,
        "big_aperture_mag": None, "big_aperture_mag_err": None, "limiting_mag": None,
    }  # fmt: skip
    record = packets(
        candidates=tuple(replace(c, **without) for c in result.candidates),
        facts=replace(result.facts, zero_point=None, zero_point_err=None, zero_point_origin=None),
        limiting_mag=None,
    )[0]
    facts = record["candidate"]
    assert (facts["magpsf"], facts["sigmapsf"]) == (99.0, 99.0)
    for name in ("magap", "sigmagap", "magdiff", "magfromlim", "diffmaglim", "magzpsci"):
        assert facts[name] is None
    assert record["skydelta"]["flux_njy"] is None
    assert record["skydelta"]["flux"] == 2000.0


def test_not_a_number_never_reaches_a_packet() -> None:
    bad = float("nan")
    wcs = tan_wcs()
    names = [
        "mag", "mag_err", "aperture_mag", "aperture_mag_err", "big_aperture_mag",
        "big_aperture_mag_err", "chi2", "aperture_flux", "flux", "flux_err", "snr", "fwhm", "a",
        "b", "elongation", "sum_ratio", "d_snr", "peak_snr", "sky", "x_err", "y_err", "rb",
    ]  # fmt: skip
    for value in (bad, float("inf"), -float("inf")):
        candidate = made_candidate(250, 199, wcs, 1, **dict.fromkeys(names, value))
        record = packets(wcs=wcs, candidates=(candidate,))[0]
        for part in (record["candidate"], record["skydelta"]):
            for name, number in part.items():
                assert not isinstance(number, float) or math.isfinite(number), name
        assert record["candidate"]["magpsf"] == 99.0


def test_aperture_of_the_wrong_sign_has_no_magnitude() -> None:
    """A magnitude would turn the flux of a neighbour, or of noise, into a detection."""
    facts = one_packet(aperture_flux=-50.0, aperture_mag=23.0)["candidate"]
    assert [facts[k] for k in ("magap", "sigmagap", "magdiff", "magfromlim")] == [None] * 4
    assert facts["magapbig"] == pytest.approx(18.99)
    facts = one_packet(sign=-1, flux=-2000.0, aperture_flux=-1990.0)["candidate"]
    assert facts["magap"] == pytest.approx(19.01)
    assert facts["magapbig"] is None  # 2010 ADU brighter within the larger aperture


def test_no_neighbour_is_marked_as_ztf_marks_it() -> None:
    facts = one_packet(nearest=None)["candidate"]
    assert facts["distnr"] is None
    assert facts["magnr"] is None
    assert (facts["ranr"], facts["decnr"]) == (-999.0, -999.0)


def test_without_a_template_the_reference_is_none() -> None:
    facts = packets(template=None, quality=None)[0]["candidate"]
    assert [facts[k] for k in ("rfid", "jdstartref", "jdendref", "nframesref")] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("band", "fid"), [("g", 1), ("ZTF_r", 2), ("ip", 3), ("z", 0), ("Clear", 0), ("V", 0)]
)
def test_filter_ids(band: str, fid: int) -> None:
    result = made_result()
    record = packets(facts=replace(result.facts, band=band))[0]
    assert record["candidate"]["fid"] == fid
    assert record["skydelta"]["band"] == band


def test_settings_reach_the_packet() -> None:
    settings = PacketSettings(
        publisher="Observatory", object_prefix="OBS", program_id=3,
        filter_ids={"r": 17}, rb_version="m1",
    )  # fmt: skip
    wcs = tan_wcs()
    result = made_result(wcs, candidates=(made_candidate(250, 199, wcs, 1, rb=0.75),))
    record = read(encode_alerts(result, settings)[0].payload)
    assert record["publisher"] == "Observatory"
    assert record["objectId"].startswith("OBS25")
    facts = record["candidate"]
    assert (facts["programid"], facts["fid"]) == (3, 17)
    assert (facts["rb"], facts["rbversion"]) == (0.75, "m1")
    assert one_packet()["candidate"]["rbversion"] == ""


def test_numpy_numbers_are_numbers() -> None:
    candidate_changes = {
        "mag": np.float32(19.5), "n_bad": np.int64(2), "flags": np.int32(3), "sign": np.int8(-1),
        "chi2": np.float32(1.5), "y_err": np.float64(0.5),
    }  # fmt: skip
    record = one_packet(**candidate_changes)
    assert record["candidate"]["magpsf"] == 19.5
    assert record["candidate"]["nbad"] == 2
    assert record["skydelta"]["sign"] == -1


# --- what cannot be written ------------------------------------------------------------------


def test_no_candidates_no_packets() -> None:
    assert encode_alerts(made_result(candidates=()), SETTINGS) == []


def test_without_a_wcs_nothing_is_written() -> None:
    with pytest.raises(ValueError, match=r"night7/ccd 3.*sky position"):
        encode_alerts(made_result(aligned=True), SETTINGS)
    with pytest.raises(ValueError, match="no WCS"):
        encode_alerts(replace(made_result(), wcs=None), SETTINGS)


def test_without_a_time_nothing_is_written() -> None:
    result = made_result()
    timeless = replace(
        result,
        exposure=replace(result.exposure, mjd_mid=None),
        facts=replace(result.facts, mjd_mid=None),
    )
    with pytest.raises(ValueError, match="no time of observation"):
        encode_alerts(timeless, SETTINGS)
