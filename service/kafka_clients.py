"""Configuration of the two Kafka clients: what exactly-once needs, and what the operator chose."""

from __future__ import annotations

import logging
from typing import Any

from confluent_kafka import KafkaError

from service.settings import KafkaSettings

logger = logging.getLogger(__name__)

_LIBRDKAFKA_LOGGER = logging.getLogger("service.librdkafka")
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
        "partitioner": "murmur2_random",  # the Java clients' choice: a key, the same partition
        **kafka.extra,
    }


def _common(kafka: KafkaSettings) -> dict[str, Any]:
    config: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": kafka.client_id,
        "security.protocol": kafka.security_protocol,
        "topic.metadata.refresh.interval.ms": _METADATA_REFRESH_MS,
        "error_cb": _log_error,
        "logger": _LIBRDKAFKA_LOGGER,
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


def _log_error(error: KafkaError) -> None:
    """Say what librdkafka reports on the side; what must stop us comes out of our own calls."""
    logger.warning("Kafka: %s (%s)", error.str(), error.name())
