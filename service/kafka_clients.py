"""Configuration of the two Kafka clients: what exactly-once needs, and what the operator chose."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError

from service.settings import KafkaSettings

logger = logging.getLogger(__name__)

_REPEAT_SECONDS = 60.0
_METADATA_REFRESH_MS = 10_000  # a topic or partition that is new is seen after this


def consumer_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return librdkafka's configuration of the consumer."""
    config = {
        **_common(kafka),
        "group.id": kafka.group_id,
        "group.protocol": kafka.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "queued.min.messages": 100,
        "queued.max.messages.kbytes": 16_384,
    }
    if kafka.group_instance_id is not None:
        config["group.instance.id"] = kafka.group_instance_id
    if kafka.group_protocol == "classic":  # with KIP-848 these are the broker's to choose
        session_ms = int(kafka.session_timeout_seconds * 1000)
        config["session.timeout.ms"] = session_ms
        config["heartbeat.interval.ms"] = max(1, min(3000, session_ms // 3))
        # Partitions that stay are not taken away in a rebalance, so their work is not lost.
        config["partition.assignment.strategy"] = "cooperative-sticky"
    return config | kafka.extra


def pointing_consumer_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return librdkafka's configuration of the consumer of pointings.

    What was announced while nobody listened is history. One process of the group fetches for all:
    the cache is a folder that they share.
    """
    config = consumer_config(kafka) | {
        "group.id": f"{kafka.group_id}-pointings",
        "enable.auto.commit": True,
        "enable.auto.offset.store": True,
        "auto.offset.reset": "latest",
    }
    config.pop("group.instance.id", None)
    return config


def producer_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return librdkafka's configuration of the transactional producer."""
    transaction_ms = int(kafka.transaction_timeout_seconds * 1000)
    return {
        **_common(kafka),
        "transactional.id": kafka.transactional_id,
        "transaction.timeout.ms": transaction_ms,
        # A record that cannot be delivered must fail while its transaction can still be aborted.
        "message.timeout.ms": transaction_ms // 2,
        "message.max.bytes": kafka.max_message_bytes,
        "compression.type": kafka.compression,
        "linger.ms": 5,
        # A transaction right after another is told to come again once the first one's markers are
        # written; by default that took ten times as long as a small transaction itself.
        "retry.backoff.ms": 10,
        # With the default, "rebootstrap", a broker that was away for a moment is forgotten, and
        # send_offsets_to_transaction waits for it for ever, whatever its timeout says
        # (librdkafka issues 5511 and 5456, seen here with 2.16.0 and a restarted broker).
        "metadata.recovery.strategy": "none",
        "partitioner": "murmur2_random",  # the Java clients' choice: a key, the same partition
        **kafka.extra,
    }


def _common(kafka: KafkaSettings) -> dict[str, Any]:
    messages = ClientMessages()
    config: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": kafka.client_id,
        "security.protocol": kafka.security_protocol,
        "topic.metadata.refresh.interval.ms": _METADATA_REFRESH_MS,
        "error_cb": messages.error,
        "logger": messages,
    }
    optional = {
        "sasl.mechanism": kafka.sasl_mechanism,
        "sasl.username": kafka.sasl_username,
        "sasl.password": kafka.sasl_password,
        "ssl.ca.location": kafka.ssl_ca_file,
        "ssl.certificate.location": kafka.ssl_certificate_file,
        "ssl.key.location": kafka.ssl_key_file,
        "ssl.key.password": kafka.ssl_key_password,
    }
    for name, value in optional.items():
        if value is not None:
            secret = getattr(value, "get_secret_value", None)
            config[name] = secret() if secret else str(value)
    return config


class ClientMessages:
    """What librdkafka has to say, in our log: each thing once a minute, as it repeats itself.

    What must stop the service comes out of the calls that it makes, not out of here.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}

    def error(self, error: KafkaError) -> None:
        """Log an error of the client (its ``error_cb``)."""
        self._say(logging.WARNING, f"Kafka: {error.str()} ({error.name()})")

    def log(self, level: int, message: str, *args: object) -> None:
        """Log a line of the client (its ``logger``)."""
        line = message % args if args else message
        if not line.startswith("FAIL "):  # these come as errors, too
            self._say(level, f"Kafka: {line}")

    def _say(self, level: int, line: str) -> None:
        subject = re.sub(r"\d+ ?ms|\d+", "", line)  # times and ports change, the trouble does not
        now = self._clock()
        if now - self._said.get(subject, -math.inf) >= _REPEAT_SECONDS:
            self._said[subject] = now
            logger.log(level, "%s", line)
