"""The Avro schemas of every contract, and the one function that loads them.

``<name>/<version>/<name>.avsc`` holds a contract's own record; records that it refers to lie
beside it in files named after their full names.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from fastavro.schema import load_schema

__all__ = ["DEFAULT_VERSIONS", "load", "versions", "without_docs"]

Schema = dict[str, Any]

#: The version that `load` takes when the caller names none.
DEFAULT_VERSIONS = {
    "alert": "ztf_4_02",
    "exposure": "1.0",
    "exposure_status": "1.0",
    "pointing": "1.0",
}

_FOLDER = Path(__file__).resolve().parent


def load(name: str, version: str | None = None) -> Schema:
    """Return a schema, parsed by fastavro, with every record that it refers to in place.

    Parameters
    ----------
    name : str
        Contract: ``exposure``, ``alert``, ``exposure_status`` or ``pointing``.
    version : str or None
        One of `versions`; by default the one in `DEFAULT_VERSIONS`.

    Returns
    -------
    dict
        A copy of its own for every caller.

    Raises
    ------
    ValueError
        If there is no such contract or version; the message lists those that there are.
    """
    if version is None:
        version = DEFAULT_VERSIONS.get(name)
    known = versions(name)
    if version not in known:
        asked = name if version is None else f"{name} {version}"
        raise ValueError(f"no schema {asked!r}; there is: {_listing()}")
    return copy.deepcopy(_load(name, version))


def versions(name: str) -> tuple[str, ...]:
    """Return the versions of a contract that can be loaded, in order of their names."""
    return tuple(sorted(p.parent.name for p in _FOLDER.glob("*/*/*.avsc") if _is_contract(p, name)))


def without_docs(schema: Any) -> Any:
    """Return a copy of a schema without its ``doc`` attributes, for embedding in packets."""
    if isinstance(schema, dict):
        return {
            key: value if key == "default" else without_docs(value)
            for key, value in schema.items()
            if not (key == "doc" and isinstance(value, str))
        }
    if isinstance(schema, list):
        return [without_docs(item) for item in schema]
    return schema


@cache
def _load(name: str, version: str) -> Schema:
    schema = load_schema(str(_FOLDER / name / version / f"{name}.avsc"))
    if not isinstance(schema, dict):
        raise TypeError(f"schema {name} {version} is not a record")
    return schema


def _is_contract(path: Path, name: str) -> bool:
    return path.stem == name and path.parent.parent.name == name


def _listing() -> str:
    names = sorted({p.stem for p in _FOLDER.glob("*/*/*.avsc") if _is_contract(p, p.stem)})
    return ", ".join(f"{name} {version}" for name in names for version in versions(name))
