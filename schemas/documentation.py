"""Writes the tables of fields in README.md from the schemas themselves.

``python -m schemas.documentation`` brings the file up to date; a test holds it there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import schemas

__all__ = ["README", "field_table", "up_to_date"]

README = Path(__file__).resolve().parent / "README.md"

# <!-- fields: exposure --> names a contract, <!-- fields: alert skydelta --> a record inside it.
_BLOCK = re.compile(r"(<!-- fields: (?P<path>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def field_table(record: dict[str, Any]) -> str:
    """Return the fields of a record as a Markdown table: name, type, when null, meaning."""
    lines = ["| field | type | null | meaning |", "| --- | --- | --- | --- |"]
    for field in record["fields"]:
        branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
        kinds = " or ".join(_kind(branch) for branch in branches if branch != "null")
        null = "may be" if "null" in branches else "never"
        lines.append(f"| `{field['name']}` | {kinds} | {null} | {field.get('doc', '')} |")
    return "\n".join(lines) + "\n"


def up_to_date(text: str) -> str:
    """Return the text of README.md with its tables written anew."""
    return _BLOCK.sub(lambda m: m[1] + field_table(_record(m["path"])) + m[3], text)


def _record(path: str) -> dict[str, Any]:
    contract, *names = path.split()
    record = schemas.load(contract)
    for name in names:
        field = next(field for field in record["fields"] if field["name"] == name)
        branches = field["type"] if isinstance(field["type"], list) else [field["type"]]
        record = next(branch for branch in branches if isinstance(branch, dict))
    return record


def _kind(schema: Any) -> str:
    if isinstance(schema, str):
        return schema.rpartition(".")[2]
    if "logicalType" in schema:
        return str(schema["logicalType"])
    if schema["type"] == "array":
        return f"array of {_kind(schema['items'])}"
    if schema["type"] == "map":
        values = schema["values"] if isinstance(schema["values"], list) else [schema["values"]]
        return f"map of {', '.join(_kind(value) for value in values)}"
    if schema["type"] == "enum":
        return ", ".join(f"`{symbol}`" for symbol in schema["symbols"])
    return str(schema.get("name", schema["type"])).rpartition(".")[2]


if __name__ == "__main__":
    README.write_text(up_to_date(README.read_text()))
