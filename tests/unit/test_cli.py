"""The command line itself: what it says to somebody who does not know it."""

import pytest

from service.cli import main

COMMANDS = ("demo", "run", "process", "view", "dlq", "replay", "check-config")


def test_without_arguments_it_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    for command in COMMANDS:
        assert f"\n    {command} " in said.err or f"\n    {command}\n" in said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example_in_100_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"skydelta {command}" in text.partition("examples:")[2]
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "'frobnicate'"),
        (["process", "a.fits"], "--template, --out"),
        (["process", "a.fits", "--template", "b", "--out", "c", "--gain", "-3"], "--gain: -3"),
        (["demo", "--exposures", "none"], "'none' is not a whole number"),
        (["run", "--confg", "x"], "--confg"),
    ],
)
def test_wrong_arguments_are_one_line_and_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.endswith("--help")
