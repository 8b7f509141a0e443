"""The settings about Kafka: the brokers, who we are to them, and how records get there."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from service.secret_settings import Secret, SecretFile
from service.settings_types import RawTable, Section, StringTable

#: librdkafka properties that exactly-once publishing depends on, or that have a setting here.
_RESERVED_PROPERTIES = {
    "bootstrap.servers": "kafka.bootstrap_servers",
    "client.id": "kafka.client_id",
    "group.id": "kafka.group_id",
    "group.instance.id": "kafka.group_instance_id",
    "group.protocol": "kafka.group_protocol",
    "session.timeout.ms": "kafka.session_timeout_seconds",
    "transactional.id": "kafka.transactional_id",
    "transaction.timeout.ms": "kafka.transaction_timeout_seconds",
    "message.max.bytes": "kafka.max_message_bytes",
    "compression.type": "kafka.compression",
    "compression.codec": "kafka.compression",
    "security.protocol": "kafka.security_protocol",
    "sasl.mechanism": "kafka.sasl_mechanism",
    "sasl.mechanisms": "kafka.sasl_mechanism",
    "sasl.username": "kafka.sasl_username",
    "sasl.password": "kafka.sasl_password",
    "sasl.oauthbearer.token.endpoint.url": "kafka.oauth_token_url",
    "sasl.oauthbearer.client.id": "kafka.oauth_client_id",
    "sasl.oauthbearer.client.secret": "kafka.oauth_client_secret",
    "sasl.oauthbearer.scope": "kafka.oauth_scope",
    "sasl.oauthbearer.extensions": "kafka.oauth_extensions",
    "https.ca.location": "kafka.oauth_ca_file",
    "ssl.ca.location": "kafka.ssl_ca_file",
    "ssl.certificate.location": "kafka.ssl_certificate_file",
    "ssl.key.location": "kafka.ssl_key_file",
    "ssl.key.password": "kafka.ssl_key_password",
    "enable.auto.commit": None,
    "enable.auto.offset.store": None,
    "enable.idempotence": "kafka.delivery",
    "isolation.level": None,
    "acks": None,
    "request.required.acks": None,
    "message.timeout.ms": None,
    "delivery.timeout.ms": None,
    "auto.offset.reset": None,
    "enable.partition.eof": None,
}


class KafkaSettings(Section):
    """The brokers, the consumer group and the producer."""

    bootstrap_servers: str = Field(
        default="localhost:9092", min_length=1, description="Brokers, `host:port,host:port`"
    )
    client_id: str = Field(default="skydelta", min_length=1, description="Name in broker logs")
    group_id: str = Field(default="skydelta", min_length=1, description="Consumer group")
    group_instance_id: str | None = Field(
        default=None, description="Static group membership: one stable name a process"
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        default="classic", description="`consumer` is KIP-848 (Kafka 4)"
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        default="exactly_once",
        description="`at_least_once` is for brokers without transactions: after a crash records "
        "may be there twice, with the same ids",
    )
    transactional_id: str = Field(
        default_factory=lambda: f"skydelta-{socket.gethostname()}",
        min_length=1,
        description="Stable and unique for each running process; a second one fences the first",
    )
    session_timeout_seconds: float = Field(
        default=6.0,
        ge=1,
        le=1800,
        description="A silent process loses its partitions after this (classic protocol)",
    )
    transaction_timeout_seconds: float = Field(
        default=60.0, ge=2, le=900, description="The broker aborts a transaction after this"
    )
    max_message_bytes: int = Field(
        default=1_000_000,
        ge=10_000,
        description="Largest record that the output topics take; larger ones refuse the exposure",
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="lz4", description="Compression of what is published"
    )
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        default="plaintext", description="How to talk to the brokers"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = (
        Field(default=None, description="With a `sasl_` protocol")
    )
    sasl_username: str | None = Field(default=None, description="With PLAIN and SCRAM")
    sasl_password_file: SecretFile | None = Field(
        default=None, description="File that holds `sasl_password`"
    )
    sasl_password: Secret = Field(
        default=None, validate_default=True, description="With PLAIN and SCRAM"
    )
    oauth_token_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^@\s]+$",
        description="With OAUTHBEARER: where tokens are asked for, with client credentials",
    )
    oauth_client_id: str | None = Field(default=None, description="With OAUTHBEARER")
    oauth_client_secret_file: SecretFile | None = Field(
        default=None, description="File that holds `oauth_client_secret`"
    )
    oauth_client_secret: Secret = Field(
        default=None, validate_default=True, description="With OAUTHBEARER"
    )
    oauth_scope: str | None = Field(default=None, description="With OAUTHBEARER, if asked for")
    oauth_extensions: StringTable = Field(
        default_factory=dict,
        description='SASL extensions for the broker, `{logicalCluster = "lkc-1"}`; in the '
        "environment as JSON",
    )
    oauth_ca_file: Path | None = Field(
        default=None, description="Certificate authorities of the token server, PEM"
    )
    ssl_ca_file: Path | None = Field(default=None, description="Certificate authorities, PEM")
    ssl_certificate_file: Path | None = Field(default=None, description="Our certificate, PEM")
    ssl_key_file: Path | None = Field(default=None, description="Our private key, PEM")
    ssl_key_password_file: SecretFile | None = Field(
        default=None, description="File that holds `ssl_key_password`"
    )
    ssl_key_password: Secret = Field(
        default=None, validate_default=True, description="Of the private key"
    )
    extra: RawTable = Field(
        default_factory=dict,
        repr=False,  # secrets may be among them
        description='Raw librdkafka properties, `{"linger.ms" = 20}`; in the environment as JSON',
    )

    @field_validator("extra")
    @classmethod
    def _no_reserved_property(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra:
            if name in _RESERVED_PROPERTIES:
                setting = _RESERVED_PROPERTIES[name]
                hint = f"use {setting}" if setting else "exactly-once publishing depends on it"
                raise ValueError(f"{name} may not be set here: {hint}")
        return extra

    @field_validator("oauth_extensions")
    @classmethod
    def _no_separators(cls, extensions: dict[str, str]) -> dict[str, str]:
        for name, value in extensions.items():
            if set(name) & set("=,") or "," in value:
                raise ValueError(f"the extension {name!r} has a comma or an equals sign")
        return extensions

    @model_validator(mode="after")
    def _credentials_are_complete(self) -> KafkaSettings:
        mechanism, protocol = self.sasl_mechanism, self.security_protocol
        if protocol.startswith("sasl") and mechanism is None:
            raise ValueError(f"security_protocol {protocol} needs a sasl_mechanism")
        if mechanism == "OAUTHBEARER":
            self._tokens_can_be_had()
        elif mechanism is not None and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"sasl_mechanism {mechanism} needs sasl_username and sasl_password")
        if mechanism is not None and not protocol.startswith("sasl"):
            raise ValueError(
                f"sasl_mechanism {mechanism} is not used with security_protocol {protocol}; "
                "it needs sasl_ssl or sasl_plaintext"
            )
        if (self.ssl_certificate_file is None) != (self.ssl_key_file is None):
            raise ValueError("ssl_certificate_file and ssl_key_file need each other")
        return self

    def _tokens_can_be_had(self) -> None:
        if any(name.startswith("sasl.oauthbearer.") for name in self.extra):
            return  # some other way to a token, which librdkafka will judge
        if not (self.oauth_token_url and self.oauth_client_id and self.oauth_client_secret):
            raise ValueError(
                "sasl_mechanism OAUTHBEARER needs oauth_token_url, oauth_client_id and "
                "oauth_client_secret"
            )
