"""The clients' configuration, and their chatter."""

import logging

import pytest
from confluent_kafka import KafkaError

from service.kafka_clients import ClientMessages, consumer_config, producer_config
from service.settings import KafkaSettings


def test_exactly_once_needs_these() -> None:
    kafka = KafkaSettings(transaction_timeout_seconds=40, transactional_id="me", group_id="us")
    producer, consumer = producer_config(kafka), consumer_config(kafka)
    assert producer["transactional.id"] == "me"
    assert producer["message.timeout.ms"] < producer["transaction.timeout.ms"] == 40_000
    assert consumer["group.id"] == "us"
    assert consumer["enable.auto.commit"] is False
    assert consumer["isolation.level"] == "read_committed"
    assert consumer["heartbeat.interval.ms"] < consumer["session.timeout.ms"]


def test_new_group_protocol_leaves_the_brokers_properties_alone() -> None:
    consumer = consumer_config(KafkaSettings(group_protocol="consumer"))
    assert {
        "session.timeout.ms",
        "heartbeat.interval.ms",
        "partition.assignment.strategy",
    }.isdisjoint(consumer)


def test_secrets_and_raw_properties_reach_the_clients() -> None:
    kafka = KafkaSettings(
        security_protocol="sasl_ssl",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="me",
        sasl_password="hush",  # type: ignore[arg-type]
        ssl_ca_file="/ca.pem",  # type: ignore[arg-type]
        extra={"linger.ms": 50},
    )
    for config in (producer_config(kafka), consumer_config(kafka)):
        assert config["sasl.password"] == "hush"
        assert config["sasl.mechanism"] == "SCRAM-SHA-512"
        assert config["ssl.ca.location"] == "/ca.pem"
        assert config["linger.ms"] == 50
        assert "ssl.key.location" not in config


def test_client_says_the_same_thing_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    messages = ClientMessages(clock=lambda: now[0])
    with caplog.at_level(logging.DEBUG, logger="service.kafka_clients"):
        for after in (3, 17, 250):
            text = f"Connection refused (after {after}ms in state CONNECT)"
            messages.error(KafkaError(KafkaError._TRANSPORT, text))
            messages.log(logging.ERROR, "%s [%s] %s", "FAIL", "me", text)
        messages.log(logging.WARNING, "%s [%s] %s", "CONFWARN", "me", "no such thing")
        assert len(caplog.messages) == 2
        now[0] = 61.0
        messages.error(KafkaError(KafkaError._TRANSPORT, "Connection refused (after 1ms)"))
        messages.error(
            KafkaError(KafkaError._TRANSPORT, "Connection refused (after 1ms in state CONNECT)")
        )
    assert len(caplog.messages) == 4
