"""Key, value and headers of a consumed message, as bytes."""

from __future__ import annotations

import logging

from confluent_kafka import Message

from service.messages import Headers

logger = logging.getLogger(__name__)


def key_of(message: Message) -> bytes | None:
    """Return the key."""
    return _as_bytes(message.key())


def value_of(message: Message) -> bytes | None:
    """Return the value; None is a tombstone."""
    return _as_bytes(message.value())


def headers_of(message: Message) -> Headers:
    """Return the headers; none where the client cannot read them."""
    try:
        headers = message.headers() or []
    except UnicodeDecodeError:  # Kafka allows any bytes in a header's name, the client does not
        logger.warning("the headers of an event are left out: a name is not UTF-8")
        return ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return tuple((name, _as_bytes(value)) for name, value in pairs)


def _as_bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
