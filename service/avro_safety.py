"""Refuses Avro schemas that could make a decoder loop, swallow memory or overflow the stack.

An object container brings its own schema, and a decoder does what the schema says: an array of
nulls takes no bytes an item, so a few bytes can ask for 2⁶² of them; a record that refers to itself
can nest until the C stack is gone, which no exception handler catches.
"""

from __future__ import annotations

from typing import Any

from core.errors import InvalidEvent

_MAX_DEPTH = 20


def refuse_dangerous_schema(schema: Any) -> None:
    """Raise `InvalidEvent` if a writer's schema is recursive, too deep, or has items without bytes.

    Parameters
    ----------
    schema : object
        A schema as fastavro returns it: a name, a list (union) or a dict.
    """
    _check(schema, enclosing=(), depth=0)


def _check(schema: Any, enclosing: tuple[str, ...], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidEvent("its schema is nested too deeply")
    if isinstance(schema, str):
        if schema in enclosing:
            raise InvalidEvent(f"its schema refers to itself ({schema})")
        return
    if isinstance(schema, list):
        for branch in schema:
            _check(branch, enclosing, depth + 1)
        return
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind in ("record", "error"):
        inside = (*enclosing, str(schema.get("name")))
        for field in schema.get("fields", ()):
            _check(field.get("type"), inside, depth + 1)
    elif kind == "array":
        items = schema.get("items")
        if _may_be_empty(items):
            raise InvalidEvent("its schema has an array whose items take no bytes")
        _check(items, enclosing, depth + 1)
    elif kind == "map":
        _check(schema.get("values"), enclosing, depth + 1)
    elif isinstance(kind, list | dict):
        _check(kind, enclosing, depth + 1)


def _may_be_empty(schema: Any) -> bool:
    """Return whether a value of the schema can take no bytes at all (named types may)."""
    if isinstance(schema, str):
        return schema not in ("boolean", "int", "long", "float", "double", "bytes", "string")
    if isinstance(schema, dict):
        kind = schema.get("type")
        if kind in ("record", "error"):
            return all(_may_be_empty(field.get("type")) for field in schema.get("fields", ()))
        if kind == "fixed":
            return not schema.get("size")
        if kind in ("array", "map", "enum"):
            return False
        return _may_be_empty(kind)
    return not isinstance(schema, list)  # a union writes the index of its branch
