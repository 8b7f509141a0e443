"""Configuration of the Kafka clients: what the delivery needs, and what the operator chose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from service.client_messages import ClientMessages
from service.kafka_settings import KafkaSettings

_METADATA_REFRESH_MS = 10_000  # a topic or partition that is new is seen after this


def consumer_config(kafka: KafkaSettings, messages: ClientMessages) -> dict[str, Any]:
    """Return librdkafka's configuration of the consumer."""
    config = {
        **_common(kafka, messages),
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


def pointing_consumer_config(kafka: KafkaSettings, messages: ClientMessages) -> dict[str, Any]:
    """Return librdkafka's configuration of the consumer of pointings.

    What was announced while nobody listened is history. One process of the group fetches for all:
    the cache is a folder that they share.
    """
    config = consumer_config(kafka, messages) | {
        "group.id": f"{kafka.group_id}-pointings",
        "enable.auto.commit": True,
        "enable.auto.offset.store": True,
        "auto.offset.reset": "latest",
    }
    config.pop("group.instance.id", None)
    return config


def producer_config(kafka: KafkaSettings, messages: ClientMessages) -> dict[str, Any]:
    """Return librdkafka's configuration of the producer: transactional, or at least idempotent."""
    transaction_ms = int(kafka.transaction_timeout_seconds * 1000)
    config = {
        **_common(kafka, messages),
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
    }
    if kafka.delivery == "exactly_once":
        config["transactional.id"] = kafka.transactional_id
        config["transaction.timeout.ms"] = transaction_ms
    else:
        config["enable.idempotence"] = True  # in order, and not twice because of a lost answer
    return config | kafka.extra


def admin_config(kafka: KafkaSettings, messages: ClientMessages) -> dict[str, Any]:
    """Return librdkafka's configuration of a client that only asks the brokers about themselves."""
    return _common(kafka, messages) | kafka.extra


def _common(kafka: KafkaSettings, messages: ClientMessages) -> dict[str, Any]:
    config: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": kafka.client_id,
        "security.protocol": kafka.security_protocol,
        "topic.metadata.refresh.interval.ms": _METADATA_REFRESH_MS,
        "error_cb": messages.error,
        "logger": messages,
    }
    given: dict[str, SecretStr | Path | str | None] = {
        "sasl.mechanism": kafka.sasl_mechanism,
        "sasl.username": kafka.sasl_username,
        "sasl.password": kafka.sasl_password,
    }
    if kafka.sasl_mechanism == "OAUTHBEARER" and kafka.oauth_token_url is not None:
        given |= {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": kafka.oauth_token_url,
            "sasl.oauthbearer.client.id": kafka.oauth_client_id,
            "sasl.oauthbearer.client.secret": kafka.oauth_client_secret,
            "sasl.oauthbearer.scope": kafka.oauth_scope,
            "sasl.oauthbearer.extensions": _pairs(kafka.oauth_extensions),
            "https.ca.location": kafka.oauth_ca_file,
        }
    return config | _written(given) | tls_config(kafka)


def tls_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return librdkafka's configuration of TLS: who is believed, and who we are."""
    return _written(
        {
            "ssl.ca.location": kafka.ssl_ca_file,
            "ssl.certificate.location": kafka.ssl_certificate_file,
            "ssl.key.location": kafka.ssl_key_file,
            "ssl.key.password": kafka.ssl_key_password,
        }
    )


def _written(given: Mapping[str, SecretStr | Path | str | None]) -> dict[str, str]:
    return {name: _plain(value) for name, value in given.items() if value is not None}


def _plain(value: SecretStr | Path | str) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _pairs(extensions: Mapping[str, str]) -> str | None:
    return ",".join(f"{name}={value}" for name, value in extensions.items()) or None
