"""The schemas load, keep their contracts, and the alert is ZTF's, field for field."""

import json
import re
from hashlib import sha256
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer, validate
from fastavro.schema import load_schema_ordered

import schemas
from core.detection import CandidateFlag
from schemas.documentation import README, up_to_date
from tests.shared_data import shared_data

# SHA-256 of the ZTF part of the alert schema, as `structure` gives it. It changes only when a
# name, a type, a default or the order of the fields changes, which no consumer would survive.
ZTF_4_02_STRUCTURE = "30c4cc59"


def structure(schema: Any) -> Any:
    """Names, order, types, defaults and versions of a schema; neither docs nor fastavro's marks."""
    if isinstance(schema, list):
        return [structure(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: structure(value)
        for key, value in schema.items()
        if key not in {"doc"} and not key.startswith("__")
    }
    return kept


def ztf_reference() -> dict[str, Any]:
    folder = shared_data("alerts") / "ztf_schema"
    parts = ("candidate", "prv_candidate", "fp_hist", "cutout", "alert")
    return load_schema_ordered([str(folder / f"{part}.avsc") for part in parts])


def ztf_part() -> dict[str, Any]:
    alert = structure(schemas.load("alert", "ztf_4_02"))
    assert alert["fields"][-1]["name"] == "skydelta"
    return {**alert, "fields": alert["fields"][:-1]}


def test_alert_is_the_ztf_alert_field_for_field() -> None:
    assert ztf_part() == structure(ztf_reference())


def test_alert_fields_stand_in_the_order_of_ztf() -> None:
    def order(schema: Any) -> list[str]:
        if isinstance(schema, list):
            return [name for item in schema for name in order(item)]
        if not isinstance(schema, dict):
            return []
        return [
            name
            for part in (schema.get("fields", []), [schema.get("type")], [schema.get("items")])
            for item in part
            for name in ([item["name"]] if isinstance(item, dict) and "name" in item else [])
            + order(item)
        ]

    assert order(ztf_part()) == order(structure(ztf_reference()))
    assert len(order(ztf_part())) > 150


def test_alert_is_frozen() -> None:
    text = json.dumps(ztf_part(), sort_keys=True)
    assert sha256(text.encode()).hexdigest()[:8] == ZTF_4_02_STRUCTURE


def test_our_own_record_is_nullable_and_last() -> None:
    field = schemas.load("alert")["fields"][-1]
    assert field["type"][0] == "null"
    assert field["default"] is None
    assert field["type"][1]["name"] == "skydelta.measurement"


@pytest.mark.parametrize("name", ["alert", "exposure"])
def test_every_field_of_ours_says_what_it_means(name: str) -> None:
    schema = schemas.load(name)
    fields = schema["fields"] if name == "exposure" else schema["fields"][-1]["type"][1]["fields"]
    assert all(len(field.get("doc", "")) > 5 for field in fields)


def test_exposure_needs_nothing_but_id_time_band_and_file() -> None:
    schema = schemas.load("exposure", "1.0")
    required = [field["name"] for field in schema["fields"] if "default" not in field]
    assert required == ["exposure_id", "science_uri", "band", "mjd_mid"]
    event = {"exposure_id": "a", "science_uri": "a.fits", "band": "r", "mjd_mid": 60000.5}
    assert validate(event, schema, raise_errors=False)
    assert not validate({**event, "mjd_mid": "now"}, schema, raise_errors=False)


def test_header_overrides_keep_the_types_of_their_cards() -> None:
    import io

    schema = schemas.load("exposure")
    event = {
        "exposure_id": "a", "science_uri": "a.fits", "band": "r", "mjd_mid": 60000.5, "hdu": "SCI",
        "header_overrides": {"GAIN": 1.5, "NAXIS": 2, "FILTER": "r", "SHUTTER": True},
    }  # fmt: skip
    buffer = io.BytesIO()
    schemaless_writer(buffer, schema, event)
    buffer.seek(0)
    overrides = schemaless_reader(buffer, schema, schema)["header_overrides"]
    assert overrides == event["header_overrides"]
    assert [type(value) for value in overrides.values()] == [float, int, str, bool]


def test_unknown_schema_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"alert nine.*alert ztf_4_02, exposure 1\.0"):
        schemas.load("alert", "nine")
    with pytest.raises(ValueError, match="no schema 'nothing'"):
        schemas.load("nothing")


def test_callers_cannot_spoil_each_others_schema() -> None:
    schemas.load("exposure")["fields"].clear()
    assert schemas.load("exposure")["fields"]


def test_docs_are_stripped_and_nothing_else() -> None:
    full = schemas.load("alert")
    bare = schemas.without_docs(full)
    assert '"doc"' not in json.dumps(structure_with_docs(bare))
    assert structure(bare) == structure(full)
    assert parse_schema(bare)


def structure_with_docs(schema: Any) -> Any:
    return json.loads(json.dumps({k: v for k, v in schema.items() if not k.startswith("__")}))


def test_a_field_called_doc_survives_stripping() -> None:
    record = {"type": "record", "name": "r", "doc": "x", "fields": [{"name": "doc", "type": "int"}]}
    assert schemas.without_docs(record)["fields"] == [{"name": "doc", "type": "int"}]


def test_tables_of_the_readme_are_those_of_the_schemas() -> None:
    """Mend it with ``python -m schemas.documentation``."""
    text = README.read_text()
    assert text == up_to_date(text)
    assert text.count("<!-- fields: ") == text.count("<!-- end -->") == 6


def test_readme_says_what_we_write_into_every_field_of_ztf() -> None:
    rows = README.read_text().split("### `candidate`")[1].split("### `skydelta`")[0].splitlines()
    alert = schemas.load("alert")
    candidate = next(f for f in alert["fields"] if f["name"] == "candidate")["type"]
    told = {
        name: row
        for row in rows
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert list(told) != []
    assert set(told) == {field["name"] for field in candidate["fields"]}
    for field in candidate["fields"]:
        must = told[field["name"]].split("|")[2].strip()
        assert (must == "must") == (not isinstance(field["type"], list)), field["name"]


def test_readme_knows_every_flag() -> None:
    text = README.read_text()
    for flag in CandidateFlag:
        assert f"| {int(flag)} | {flag.name} |" in text
