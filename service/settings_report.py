"""The settings for people: the effective ones as TOML without secrets, all of them as a table."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException, Producer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from service.broker_advice import in_words
from service.kafka_clients import tls_config
from service.secret_settings import SUFFIX
from service.settings import Settings
from service.settings_loading import Problem, sections, variable

_MASK = "**********"
_SECRET_PROPERTY = re.compile(r"password|secret|\.key|pem|token|oauthbearer\.config|jaas", re.I)


def as_toml(settings: Settings) -> str:
    """Return the settings as a TOML file that could be read back, but for the masked secrets."""
    lines = []
    for name in sections():
        lines.append(f"[{name}]")
        section = getattr(settings, name)
        for key in type(section).model_fields:
            value = getattr(section, key)
            if isinstance(value, SecretStr) and getattr(section, f"{key}{SUFFIX}", None):
                lines.append(f"# {key} is read from {key}{SUFFIX}")
            elif value is None:
                lines.append(f"# {key} is not set")
            else:
                lines.append(f"{key} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def markdown_table() -> str:
    """Return a Markdown table of every setting: key, environment variable, default, meaning."""
    lines = ["| key | environment | default | meaning |", "| --- | --- | --- | --- |"]
    for name, model in sections().items():
        for key, field in model.model_fields.items():
            cells = (
                f"`{name}.{key}`",
                f"`{variable(name, key)}`",
                _default(f"{name}.{key}", field),
                str(field.description or "").replace("|", "\\|"),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def beyond_validation(settings: Settings) -> list[Problem]:
    """Return what is wrong beyond types and ranges: folders, packages, engines, Kafka's properties.

    Nothing is connected to.
    """
    return [
        *missing_files(settings),
        *_missing_packages(settings),
        *_unknown_engines(settings),
        *_unknown_star_bands(settings),
        *_refused_properties(settings),
    ]


def missing_files(settings: Settings) -> list[Problem]:
    """Return the folders and files that the settings name and that are not there (yet)."""
    folders = [("input.roots", root) for root in settings.input.roots]
    if settings.input.download_folder is not None:
        folders.append(("input.download_folder", settings.input.download_folder))
    templates = settings.templates
    if "directory" in templates.providers and "://" not in templates.path:
        folders.insert(0, ("templates.path", Path(templates.path)))
    if "hips" in templates.providers:
        trees = [each.tree for each in templates.hips if each.tree and "://" not in each.tree]
        folders += [("templates.hips", Path(tree)) for tree in trees]
    problems = [_problem(k, f"{path} is not a folder") for k, path in folders if not path.is_dir()]
    if not settings.input.roots and not settings.input.prefixes:
        what = "is empty, so every event would be refused; name the folders that hold the images, "
        what += "or addresses in input.prefixes"
        problems.append(_problem("input.roots", what))
    mask = templates.star_mask
    if mask is not None and mask.file is not None and not mask.file.is_file():
        problems.append(_problem("templates.star_mask", f"{mask.file} is not a file"))
    for name in ("kafka", "registry"):
        section = getattr(settings, name)
        for key in type(section).model_fields:
            path = getattr(section, key)
            if key.endswith(SUFFIX) and path is not None and not path.is_file():
                problems.append(_problem(f"{name}.{key}", f"{path} is not a file"))
    return problems


def _missing_packages(settings: Settings) -> list[Problem]:
    wanted = [prefix for prefix in settings.input.prefixes if prefix.startswith("s3:")]
    if not wanted or importlib.util.find_spec("s3fs") is not None:
        return []
    how = "pip install 'skydelta[remote]'"
    return [_problem("input.prefixes", f"{wanted[0]} needs the package s3fs: {how}")]


def _unknown_engines(settings: Settings) -> list[Problem]:
    from core.pipeline import engine_names  # all of the science: not for those who do not ask

    known = engine_names()
    return [
        _problem("pipeline.engines", f"there is no engine {name!r}; there are {', '.join(known)}")
        for name in settings.pipeline.engines
        if name not in known
    ]


def _unknown_star_bands(settings: Settings) -> list[Problem]:
    mask = settings.templates.star_mask
    if mask is None or mask.catalogue is None or not mask.bands:
        return []
    from core.templates.catalogues import CATALOGUES  # takes long to import, and few need it

    known = CATALOGUES[mask.catalogue].magnitudes
    has = f"{mask.catalogue} has {', '.join(known)}"
    return [
        _problem("templates.star_mask", f"there is no band {band!r}; {has}")
        for band in mask.bands.values()
        if band not in known
    ]


def _refused_properties(settings: Settings) -> list[Problem]:
    aside = {"bootstrap.servers": "localhost:0", "log_level": 0}
    try:
        Producer(aside | settings.kafka.extra)
    except KafkaException as error:
        return [_problem("kafka.extra", error.args[0].str())]
    try:
        if settings.kafka.security_protocol.endswith("ssl"):  # else nobody looks at these files
            tls = {"security.protocol": "ssl", **tls_config(settings.kafka)}
            Producer(aside | tls | settings.kafka.extra)
    except KafkaException as error:
        return [_problem("kafka", in_words(error.args[0]))]
    return []


def _problem(key: str, what: str) -> Problem:
    return Problem("settings", key, what)


def _toml(value: Any) -> str:
    if isinstance(value, SecretStr):
        return json.dumps(_MASK)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, BaseModel):
        return _toml(value.model_dump(exclude_none=True))
    if isinstance(value, dict):
        items = (f"{json.dumps(k)} = {_toml(_masked(k, v))}" for k, v in value.items())
        return f"{{ {', '.join(items)} }}" if value else "{}"
    return json.dumps(str(value), ensure_ascii=False)


def _masked(name: str, value: Any) -> Any:
    return _MASK if _SECRET_PROPERTY.search(name) else value


#: Defaults that depend on the machine, in words.
_DEPENDS = {
    "kafka.transactional_id": "`skydelta-<host name>`",
    "templates.cache": "`~/.cache/skydelta/templates`",
    "workers.count": "CPUs",
    "workers.threads": "CPUs / workers",
    "input.download_folder": "`TMPDIR`",
}


def _default(key: str, field: FieldInfo) -> str:
    if key in _DEPENDS:
        return _DEPENDS[key]
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "–"
    return f"`{_toml(value)}`"
