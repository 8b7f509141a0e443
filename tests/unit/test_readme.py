"""Holds the README to what it describes."""

import argparse
import importlib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from core.exposure import Outcome
from core.pipeline import PipelineSettings, engine_names
from service import settings_report
from service.commands import check_config, demo, dlq, process, replay, run, templates, view
from service.events import decode
from service.messages import DEAD_LETTER_OUTCOMES
from service.settings_loading import load, sections

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (demo, run, process, view, templates, dlq, replay, check_config)


def section(title: str) -> str:
    """The text below a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    assert found, f"the README has no section {title!r}"
    return found[1]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def examples() -> list[str]:
    """Every shell command: the lines of the blocks, and what stands in the text between ticks."""
    lines = [line for text in blocks("sh") for line in text.replace("\\\n", " ").splitlines()]
    text = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    return lines + [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row in a text, headings and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if set(row[0]) != {"-"}]


def parsers() -> dict[str, argparse.ArgumentParser]:
    root = argparse.ArgumentParser(prog="skydelta")
    subparsers = root.add_subparsers()
    for module in COMMANDS:
        module.add_parser(subparsers)
    return dict(subparsers.choices)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """All options of a command, those of its actions among them."""
    own = {name for name in parser._option_string_actions if name.startswith("--")} - {"--help"}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            own = own.union(*(options_of(each) for each in action.choices.values()))
    return own


def test_settings_table_is_the_generated_one() -> None:
    found = re.search(r"<!-- settings: .*? -->\n(.*?)<!-- end -->", README, re.S)
    assert found
    assert found[1] == settings_report.markdown_table(), (
        "put the output of `skydelta check-config --table` into the README"
    )


def test_every_command_is_shown() -> None:
    assert set(parsers()) == {
        "demo", "run", "process", "view", "templates", "dlq", "replay", "check-config"
    }  # fmt: skip
    for command in parsers():
        assert re.search(rf"skydelta {command}\b|make {command}\b", README), command


def test_table_of_process_has_exactly_its_options() -> None:
    first_cells = [row[0] for row in rows(section("Your own FITS")) if row[0].startswith("`--")]
    listed = set(re.findall(r"`(--[a-z-]+)", " ".join(first_cells)))
    assert listed == options_of(parsers()["process"])


def test_every_option_in_an_example_exists() -> None:
    known = parsers()
    seen = 0
    for example in examples():
        for command, rest in re.findall(r"\bskydelta ([a-z-]+)([^|>]*)", example):
            assert command in known, example
            for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
                assert option in options_of(known[command]), f"skydelta {command} {option}"
                seen += 1
    assert seen >= 8


def test_engines_are_those_that_there_are() -> None:
    (row,) = [row for row in rows(section("Your own FITS")) if row[0].startswith("`--engine")]
    listed = re.findall(r"`([a-z]+)`", row[1].partition(";")[0])
    assert set(listed) <= set(engine_names())
    assert set(PipelineSettings().engines) <= set(listed)


def test_event_decodes() -> None:
    (text,) = blocks("json")
    event = decode(text.encode())
    assert event.notes == ()  # no field that is not known
    assert set(json.loads(text)) == {k for k, v in event.model_dump().items() if v is not None}


def plain(value: Any) -> Any:
    """A setting as it stands in a file."""
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return value if isinstance(value, dict) else str(value)


def test_settings_file_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SKYDELTA_")]:
        monkeypatch.delenv(name)
    for text in blocks("toml"):
        path = tmp_path / "skydelta.toml"
        path.write_text(text)
        settings = load(path)
        for table, values in tomllib.loads(text).items():
            for key, value in values.items():
                assert plain(getattr(getattr(settings, table), key)) == value


def test_event_lies_where_the_settings_allow() -> None:
    (event,) = map(json.loads, blocks("json"))
    settings = tomllib.loads(blocks("toml")[0])
    roots = settings["input"]["roots"]
    for name in ("science_uri", "mask_uri"):
        assert any(event[name].startswith(f"{root}/") for root in roots)


def test_settings_that_the_text_names_exist() -> None:
    models = sections()
    before = README[: README.index("## Settings")]
    named = re.findall(rf"`({'|'.join(models)})\.([a-z_]+)`", before)
    assert len(named) >= 8
    for table, key in named:
        assert key in models[table].model_fields, f"{table}.{key}"
    variables = re.findall(r"SKYDELTA_([A-Z]+)__([A-Z_]+)", before)
    assert variables
    for table, key in variables:
        assert key.lower() in models[table.lower()].model_fields


def test_outcomes_are_all_there_and_dead_letters_where_they_are() -> None:
    table = [row for row in rows(section("What became of an exposure")) if row[0].startswith("`")]
    assert tuple(row[0].strip("`") for row in table) == get_args(Outcome)
    dead = {row[0].strip("`") for row in table if "dead letters" in row[2]}
    assert dead == DEAD_LETTER_OUTCOMES


def test_default_topics_are_those_of_the_table() -> None:
    table = [row[0] for row in rows(section("Your own Kafka")) if row[0].startswith("`")]
    table.remove("`topics.pointings`, if set")
    topics: Any = sections()["topics"].model_fields
    assert sorted(table) == sorted(
        f"`{field.default}`" for field in topics.values() if field.default is not None
    )


def test_metrics_that_the_text_names_exist() -> None:
    from service.metrics import Metrics

    offered = Metrics().text().decode()
    named = re.findall(r"`(skydelta_[a-z_]+)`", README)
    assert len(named) >= 4
    for name in named:
        assert re.search(rf"^# HELP {name} ", offered, re.M), name


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).is_file(), target
    for document, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", README):
        text = (ROOT / (document or "README.md")).read_text(encoding="utf-8")
        headings = {slug(line) for line in text.splitlines() if line.startswith("#")}
        assert anchor in headings, f"{document}#{anchor}"


def slug(heading: str) -> str:
    """The anchor that a Markdown renderer makes of a heading."""
    words = heading.lstrip("# ").lower()
    return re.sub(r"[^\w -]", "", words).replace(" ", "-")


def test_files_and_make_targets_that_the_text_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for path in set(re.findall(r"\bdocs/[a-z_]+\.[a-z]+", README)):
        assert (ROOT / path).is_file(), path


def test_picture_of_the_flow_is_the_drawn_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    drawn = importlib.import_module("figures").flow_svg()
    assert (ROOT / "docs/flow.svg").read_text(encoding="utf-8") == drawn, "run make figures"


def test_pictures_are_small() -> None:
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).stat().st_size <= 300_000, name


def test_example_of_reading_a_packet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from service.packets import PacketSettings, encode_alerts
    from tests.unit.made_result import made_result, tan_wcs

    (alert, *_) = encode_alerts(made_result(tan_wcs()), PacketSettings())
    (tmp_path / "alert.avro").write_bytes(alert.payload)
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(text, "README.md", "exec"), names)
    assert names["difference"].shape == (63, 63)
    assert alert.object_id in capsys.readouterr().out
