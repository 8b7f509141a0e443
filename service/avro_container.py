"""Avro object containers of exactly one record, as alert consumers expect them."""

from __future__ import annotations

import io
import json
from hashlib import blake2b
from typing import Any

from fastavro import parse_schema, schemaless_writer, writer

import schemas

__all__ = ["OneRecordContainer"]

# Three bytes of zig-zag varint hold a datum of up to 1 MiB.
_SIZE_BYTES = 3
_MAX_DATUM = 2 ** (7 * _SIZE_BYTES - 1)


class OneRecordContainer:
    """Writes containers that differ in nothing but their one record.

    Codec null; the schema embedded without its ``doc`` attributes; the sync marker derived from
    the schema instead of drawn at random, and the size of the block always written with three
    bytes (the canonical form for 8 KiB and more, a legal one below), so that the datum begins at
    `datum_offset` in every container and a replay gives the same bytes.

    Parameters
    ----------
    schema : dict
        Parsed schema of the record, as `schemas.load` returns it.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        embedded = schemas.without_docs(schema)
        text = json.dumps(embedded, sort_keys=True, default=str)
        self._sync = blake2b(text.encode(), digest_size=16).digest()
        self._schema = parse_schema(embedded)
        head = io.BytesIO()
        writer(head, self._schema, [], codec="null", sync_marker=self._sync)
        self._head = head.getvalue() + _varint(1, 1)

    @property
    def datum_offset(self) -> int:
        """Bytes before the datum, the same in every container."""
        return len(self._head) + _SIZE_BYTES

    def encode(self, record: dict[str, Any]) -> bytes:
        """Return a container that holds ``record``.

        Raises
        ------
        ValueError
            If the record does not fit the schema, or is larger than 1 MiB.
        """
        datum = io.BytesIO()
        schemaless_writer(datum, self._schema, record)
        encoded = datum.getvalue()
        if len(encoded) >= _MAX_DATUM:
            raise ValueError(f"an alert of {len(encoded)} bytes is too large: the limit is 1 MiB")
        return b"".join((self._head, _varint(len(encoded), _SIZE_BYTES), encoded, self._sync))


def _varint(number: int, length: int) -> bytes:
    """Return a non-negative long as a zig-zag varint of exactly ``length`` bytes."""
    zigzag = number << 1
    groups = [(zigzag >> (7 * i)) & 0x7F for i in range(length)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
