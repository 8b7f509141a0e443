"""Types that several sections of the settings share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.byte_sizes import parse_bytes


def split(value: Any) -> Any:
    """Let an environment variable give a list as ``a,b`` or as JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _from_json(value)
    return [item.strip() for item in value.split(",") if item.strip()]


def table(value: Any) -> Any:
    """Let an environment variable give a table as JSON."""
    return _from_json(value) if isinstance(value, str) else value


def _as_bytes(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _from_json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None


Names = Annotated[tuple[str, ...], BeforeValidator(split)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(split)]
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
StringTable = Annotated[dict[str, str], BeforeValidator(table)]
ByteSize = Annotated[int, BeforeValidator(_as_bytes)]
RawTable = Annotated[dict[str, str | int | float | bool], BeforeValidator(table)]


class Section(BaseModel):
    """A table of the settings file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
