"""Secrets among the settings: given as they are, or in a file, as Docker and Kubernetes mount them.

Beside every secret ``name`` of a section there is a setting ``name_file``, declared before it: the
file that holds the secret. One of the two is given, never both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationInfo

SUFFIX = "_file"


def _readable(path: Path) -> Path:
    _read(path)
    return path


def _read(path: Path) -> str:
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    if not secret:
        raise ValueError(f"{path} is empty")
    return secret


def _or_from_file(value: Any, info: ValidationInfo) -> Any:
    file_name = f"{info.field_name}{SUFFIX}"
    path = info.data.get(file_name)
    if path is None:
        return value
    if value is not None:
        raise ValueError(f"{info.field_name} and {file_name} are both given; give one of them")
    return _read(path)


#: A file that holds a secret, and a line end perhaps.
SecretFile = Annotated[Path, AfterValidator(_readable)]

#: A secret; its field needs ``validate_default=True``, so that the file is looked into.
Secret = Annotated[SecretStr | None, BeforeValidator(_or_from_file)]
