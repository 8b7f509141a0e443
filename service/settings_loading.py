"""Reads the settings from a TOML file and the environment, and says in one line what is wrong."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from service.settings import Settings

PREFIX = "SKYDELTA_"
DELIMITER = "__"
CONFIG_VARIABLE = "SKYDELTA_CONFIG"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the settings.

    Attributes
    ----------
    where : str
        The file, or the name of the environment variable.
    key : str
        ``section.key``, or empty where the problem is the file itself.
    what : str
        What is wrong, and what is expected.
    """

    where: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.what) if part)


class SettingsError(Exception):
    """The settings cannot be used; ``problems`` has one line for each thing that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


def load(config: Path | None = None) -> Settings:
    """Read and validate the settings.

    Parameters
    ----------
    config : Path or None
        The TOML file; by default the one that ``SKYDELTA_CONFIG`` names, if any.

    Raises
    ------
    SettingsError
        With every problem found, not only the first.
    """
    if config is None and os.environ.get(CONFIG_VARIABLE):
        config = Path(os.environ[CONFIG_VARIABLE])
    values = _read_toml(config) if config else {}
    problems = list(_unknown_variables(os.environ))
    try:
        settings = Settings(**values)
    except ValidationError as error:
        source = str(config) if config else "settings"
        said = {problem.where for problem in problems}
        found = [_problem(item, source) for item in error.errors()]
        problems += [problem for problem in found if problem.where not in said]
        raise SettingsError(problems) from None
    if problems:
        raise SettingsError(problems)
    return settings


def variable(section: str, key: str) -> str:
    """Return the name of the environment variable of a setting."""
    return f"{PREFIX}{section}{DELIMITER}{key}".upper()


def sections() -> dict[str, type[BaseModel]]:
    """Return the model of each section, in the order of the settings file."""
    models = {}
    for name, field in Settings.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        models[name] = field.annotation
    return models


def _read_toml(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError:
        what = "is not UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        what = f"is not valid TOML: {error}"
    raise SettingsError([Problem(str(config), "", what)])


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Yield the ``SKYDELTA_`` variables that look like a setting and are none.

    Variables without the double underscore are left alone (the test suite has some, Kubernetes
    adds ``SKYDELTA_SERVICE_HOST`` for a service of that name), unless just one is missing.
    """
    models = sections()
    known = {variable(name, key) for name, model in models.items() for key in model.model_fields}
    tables = {variable("kafka", "extra") + DELIMITER}
    missing_underscore = {name.replace(DELIMITER, "_"): name for name in known}
    for name in environ:
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known or upper.startswith(tuple(tables)):
            continue
        if upper in missing_underscore:
            right = missing_underscore[upper]
            yield Problem(name, "", f"unknown; did you mean {right} (two underscores)?")
        elif DELIMITER in upper.removeprefix(PREFIX):
            close = difflib.get_close_matches(upper, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield Problem(name, "", f"unknown setting{hint}")


def _problem(item: Mapping[str, Any], source: str) -> Problem:
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    where = source
    upper = {name.upper() for name in os.environ}
    if len(path) >= 2 and variable(path[0], path[1]) in upper:
        where = variable(path[0], path[1])
    elif len(path) == 1 and f"{PREFIX}{path[0]}".upper() in upper:
        where = f"{PREFIX}{path[0]}".upper()
    if item["type"] == "extra_forbidden":
        return Problem(where, key, f"unknown key{_did_you_mean(path)}")
    what = str(item["msg"]).partition(", unable to parse")[0]
    if what.startswith("Value error, "):  # ours, and it names the value
        return Problem(where, key, what.removeprefix("Value error, "))
    value = item.get("input")
    secret = any(word in key for word in ("password", "secret", "extra"))
    if isinstance(value, str | int | float | bool) and not secret:
        what = f"{what[0].lower()}{what[1:]}, got {value!r}"
    return Problem(where, key, what)


def _did_you_mean(path: list[str]) -> str:
    models = sections()
    if len(path) == 1:
        choices = list(models)
    elif path[0] in models:
        choices = list(models[path[0]].model_fields)
    else:
        choices = []
    close = difflib.get_close_matches(path[-1], choices, n=1)
    if close:
        return f"; did you mean {'.'.join([*path[:-1], close[0]])}?"
    return f"; known are {', '.join(choices)}" if choices else ""
