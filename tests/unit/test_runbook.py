"""Holds the runbook to the code: what it quotes, names and tells people to type exists."""

import argparse
import ast
import builtins
import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from confluent_kafka import KafkaError

from core.exposure import Outcome
from service import broker_advice, commands
from service.messages import DEAD_LETTER_OUTCOMES
from service.metrics import Metrics
from service.settings_loading import sections

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "deploy" / "runbook.md").read_text(encoding="utf-8")

_GAP = "…"  # in a quoted line: what differs each time
_HOLE = "\0"  # in a text of the source: what is filled in
_LEAST_LETTERS = 8  # of a quoted line that one text of the source must account for
_FILLED_IN = ("revoked", "lost", "finish", "get warm")  # words that are shorter
_SAYS_NOTHING = {"skydelta_build"}  # families that signal no trouble


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", RUNBOOK, re.M | re.S)


def spans() -> list[str]:
    """What stands between ticks in the text, line ends as blanks."""
    text = re.sub(r"^```.*?^```$", "", RUNBOOK, flags=re.M | re.S)
    return [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]


def headings() -> list[str]:
    text = re.sub(r"^```.*?^```$", "", RUNBOOK, flags=re.M | re.S)
    return re.findall(r"^#{2,3} (.*)$", text, re.M)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table rows below a heading, up to the next one."""
    found = re.search(rf"^#{{2,3}} {re.escape(heading)}\n(.*?)(?=^#|\Z)", RUNBOOK, re.M | re.S)
    assert found, heading
    lines = [line for line in found[1].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


@cache
def texts() -> tuple[str, ...]:
    """Every text in the source of the service, with `_HOLE` where something is filled in."""
    found: set[str] = set()
    for folder in ("core", "service"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(_texts_in(ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


def _texts_in(tree: ast.AST) -> Iterator[str]:
    documentation = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            documentation.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            pieces = (p.value if isinstance(p, ast.Constant) else _HOLE for p in node.values)
            yield "".join(map(str, pieces))
        elif isinstance(node, ast.Constant) and id(node) not in documentation:
            yield _with_holes(str(node.value))


def _with_holes(format: str) -> str:
    return re.sub(r"%(?:\.\d+)?[sdrgf]", _HOLE, format)


def is_written(line: str) -> bool:
    """Say whether the source writes such a line: some of its texts, one after another."""
    words = tuple(line.replace(_GAP, f" {_GAP} ").split())
    pieces = _pieces(words)
    if len(pieces) == 1 and any(text.startswith(pieces[0]) for text in texts()):
        return True  # short, but all that is known of the line
    return bool(pieces) and _are_written(words, after_a_gap=False)


@cache
def _are_written(words: tuple[str, ...], *, after_a_gap: bool) -> bool:
    """Say so of what is left of a line, the longest text first."""
    return not words or any(
        _in_one_text(words[:end], after_a_gap, words[end:][:1] == (_GAP,))
        and _are_written(words[end:], after_a_gap=words[end - 1] == _GAP)
        for end in range(len(words), 0, -1)
    )


def _in_one_text(words: Sequence[str], after_a_gap: bool, before_a_gap: bool) -> bool:
    """Say whether one text of the source holds the words in order, and they are enough.

    Where no gap is before or behind them, the text must begin or end there, or have a hole.
    """
    pieces = _pieces(words)
    if not pieces or (len(pieces) == 1 and pieces[0] in _FILLED_IN):
        return True
    if sum(letter.isalpha() for piece in pieces for letter in piece) < _LEAST_LETTERS:
        return False
    found = ".*".join(rf"(?<!\w){re.escape(piece)}(?!\w)" for piece in pieces)
    if not after_a_gap and words[0] != _GAP:
        found = rf"(?:^|{_HOLE})\W*{found}"
    if not before_a_gap and words[-1] != _GAP:
        found = rf"{found}\W*(?:$|{_HOLE})"
    pattern = re.compile(found, re.S)
    return any(pattern.search(text) for text in texts() if all(piece in text for piece in pieces))


def _pieces(words: Sequence[str]) -> list[str]:
    """What stands between the gaps, without the punctuation that joins texts."""
    pieces = (piece.strip(" :;,.()'") for piece in " ".join(words).split(_GAP))
    return [piece for piece in pieces if piece]


def said(line: str) -> str:
    """Return a quoted line without what the page or the log puts before it."""
    line = re.sub(r"^/(?:readyz|healthz) ", "", line)
    line = re.sub(rf"^(?:{'|'.join(get_args(Outcome))}): ", "", line)
    return line.removeprefix("Kafka: ")


def quoted() -> list[str]:
    return [line for block in blocks("log") for line in block.splitlines()]


def test_there_are_lines_to_check() -> None:
    assert len(quoted()) > 60
    assert len(texts()) > 1000
    assert set(_FILLED_IN) <= set(texts())


@pytest.mark.parametrize("line", quoted())
def test_quoted_line_is_written_by_the_code(line: str) -> None:
    assert is_written(said(line))


def test_line_that_nobody_writes_is_told_from_those_that_are() -> None:
    assert is_written("worker … did not … within … s and was stopped…; starting another")
    assert not is_written("worker … did not … in … s and was stopped…; starting another")
    assert not is_written("worker … did not … within … s and was ended in the stage …")
    assert not is_written("starting another; …did not finish within")
    assert not is_written(_GAP)


def troubles() -> Iterator[str]:
    """The texts of the service's warnings and errors, as far as they hold any of their own."""
    for path in sorted((ROOT / "service").rglob("*.py")):
        if "demo" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="warning" | "error" | "critical" | "exception"),
                    args=[ast.Constant(value=str(text)), *_],
                ) if re.search(r"[a-z]{2}", text):
                    yield _with_holes(text)


@pytest.mark.parametrize("text", sorted(set(troubles())))
def test_every_warning_of_the_service_is_quoted(text: str) -> None:
    pieces = [piece.strip(" :;,.()\n") for piece in text.split(_HOLE)]
    longest = max(pieces, key=len)
    assert any(longest in line for line in quoted())


def test_every_advice_about_brokers_is_quoted() -> None:
    advices = [said for _, said in broker_advice._BY_TEXT] + list(broker_advice._BY_CODE.values())
    for advice in advices:
        assert any(advice in line for line in quoted()), advice


def test_what_the_probes_say_in_the_text_is_written_by_the_code() -> None:
    found = re.findall(r"503 `([^`]+)`", RUNBOOK)
    assert len(found) >= 5
    for line in found:
        assert is_written(line), line


def metric_families() -> dict[str, set[str]]:
    """Names of samples by family, as a scrape shows them."""
    return {
        family.name: {family.name, f"{family.name}_total"}
        if family.type == "counter"
        else {f"{family.name}{end}" for end in ("_bucket", "_sum", "_count", "")}
        if family.type == "histogram"
        else {family.name}
        for family in Metrics().registry.collect()
        if family.name.startswith("skydelta_")
    }


def named_metrics() -> set[str]:
    return set(re.findall(r"\bskydelta_[a-z_]+\b", RUNBOOK))


def test_metrics_that_the_page_names_exist() -> None:
    samples = set().union(*metric_families().values())
    grepped = {"skydelta_"}
    assert named_metrics() - samples - grepped == set()


def test_every_metric_is_named() -> None:
    named = named_metrics()
    missing = {name for name, samples in metric_families().items() if not samples & named}
    assert missing == _SAYS_NOTHING


def test_labels_and_their_values_exist() -> None:
    """Outcomes in the queries are outcomes; labels are those of the metric that they stand at."""
    labels = {
        sample.name.removesuffix("_created"): metric._labelnames
        for metric in vars(Metrics()).values()
        if hasattr(metric, "_labelnames")
        for sample in metric.describe()
    }
    seen = 0
    for name, inside in re.findall(r"\b(skydelta_[a-z_]+)\{([^}]*)\}", RUNBOOK):
        family = re.sub(r"_(?:total|bucket|sum|count)$", "", name)
        for label, values in re.findall(r"(\w+)[!=~]+\"([^\"]*)\"", inside):
            assert label in labels[family], name
            if label == "outcome":
                assert set(values.split("|")) <= set(get_args(Outcome)), values
            seen += 1
    assert seen >= 5


def test_settings_that_the_page_names_exist() -> None:
    models = sections()
    named = set(re.findall(rf"(?<![\w-])({'|'.join(models)})\.([a-z_]+)\b", RUNBOOK))
    assert len(named) >= 40
    for table, key in named:
        assert key in models[table].model_fields, f"{table}.{key}"
    for variable in re.findall(r"\bSKYDELTA_([A-Z]+)__([A-Z_]+)", RUNBOOK):
        table, key = map(str.lower, variable)
        assert key in models[table].model_fields, variable


def parser() -> argparse.ArgumentParser:
    """The command line with all its commands."""
    root = argparse.ArgumentParser(prog="skydelta")
    subparsers = root.add_subparsers(dest="command", required=True)
    for module in pkgutil.iter_modules(commands.__path__):
        command = importlib.import_module(f"service.commands.{module.name}")
        if hasattr(command, "add_parser"):
            command.add_parser(subparsers)
    return root


def test_commands_to_type_are_understood() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    own = re.findall(r"(?:^|\bxargs )(skydelta .*)$", "\n".join(lines), re.M)
    assert len(own) >= 9
    for line in own:
        try:
            parser().parse_args(shlex.split(line, comments=True)[1:])
        except SystemExit:
            pytest.fail(f"not understood: {line}")


def test_commands_that_the_text_names_exist() -> None:
    known = _choices(parser())
    found = [span.split() for span in spans() if span.startswith("skydelta ")]
    assert found
    for _, name, *rest in found:
        assert name in known, name
        actions = _choices(known[name])
        if actions and rest:
            assert rest[0] in actions, f"{name} {rest[0]}"


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def test_every_outcome_has_its_place() -> None:
    first = [row[0] for row in rows("Outcomes in one table") if row[0].startswith("`")]
    assert {cell.strip("`") for cell in first} == set(get_args(Outcome))
    triage = " ".join(row[0] for row in rows("What to look at first"))
    for outcome in set(get_args(Outcome)) - {"published"}:
        assert f"outcome `{outcome}`" in triage, outcome


def test_outcomes_with_a_dead_letter_are_named() -> None:
    (line,) = re.findall(r"^Dead letters are the events of (.*?),", RUNBOOK, re.M)
    assert set(re.findall(r"`(\w+)`", line)) == DEAD_LETTER_OUTCOMES


def test_error_classes_exist() -> None:
    """Classes of the source, or names that it writes into a status."""
    named = {span for span in spans() if re.fullmatch(r"(?:[A-Z][a-z]+){2,}", span)}
    assert len(named) >= 10
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("core", "service")
        for path in (ROOT / folder).rglob("*.py")
    )
    for name in named:
        assert re.search(rf"class {name}\b|\"{name}\"", source) or hasattr(builtins, name), name


def test_errors_of_kafka_exist() -> None:
    named = {span for span in spans() if re.fullmatch(r"_[A-Z]+|_?[A-Z]+(?:_[A-Z]+)+", span)}
    named -= {"NUMBA_CACHE_DIR"}
    assert len(named) >= 5
    for name in named:
        assert hasattr(KafkaError, name), name


def test_reasons_of_retries_exist() -> None:
    named = [span for span in spans() if re.fullmatch(r"worker_[a-z]+", span)]
    assert {name.removeprefix("worker_") for name in named} == {"died", "deadline", "memory"}
    for name in named:
        assert name.removeprefix("worker_") in texts()


def test_links_lead_somewhere() -> None:
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings()}
    linked = re.findall(r"\]\(#([^)]+)\)", RUNBOOK)
    assert linked
    assert set(linked) <= anchors
    for target in re.findall(r"\]\(([^)#]+)", RUNBOOK):
        assert (ROOT / "deploy" / target).is_file(), target


def test_every_failure_says_the_same_four_things() -> None:
    """What is seen, what happens by itself, what to do, and what may be lost or doubled."""
    sections_ = re.split(r"^### (.*)\n", RUNBOOK, flags=re.M)[1:]
    failures = dict(zip(sections_[::2], sections_[1::2], strict=True))
    assert len(failures) >= 25
    for heading, text in failures.items():
        body = text.split("\n## ")[0]
        for what in ("Seen", "By itself", "You", "Lost or doubled"):
            assert body.count(f"- **{what}:**") == 1, f"{heading}: {what}"


def test_page_is_found_from_the_readme() -> None:
    assert "](deploy/runbook.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
