"""The clients' configuration, and their chatter."""

from service.client_messages import ClientMessages
from service.kafka_clients import consumer_config, producer_config
from service.kafka_settings import KafkaSettings


def test_exactly_once_needs_these() -> None:
    kafka = KafkaSettings(transaction_timeout_seconds=40, transactional_id="me", group_id="us")
    producer, consumer = (
        producer_config(kafka, ClientMessages()),
        consumer_config(kafka, ClientMessages()),
    )
    assert producer["transactional.id"] == "me"
    assert producer["message.timeout.ms"] < producer["transaction.timeout.ms"] == 40_000
    assert consumer["group.id"] == "us"
    assert consumer["enable.auto.commit"] is False
    assert consumer["isolation.level"] == "read_committed"
    assert consumer["heartbeat.interval.ms"] < consumer["session.timeout.ms"]


def test_new_group_protocol_leaves_the_brokers_properties_alone() -> None:
    consumer = consumer_config(KafkaSettings(group_protocol="consumer"), ClientMessages())
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
    for config in (
        producer_config(kafka, ClientMessages()),
        consumer_config(kafka, ClientMessages()),
    ):
        assert config["sasl.password"] == "hush"
        assert config["sasl.mechanism"] == "SCRAM-SHA-512"
        assert config["ssl.ca.location"] == "/ca.pem"
        assert config["linger.ms"] == 50
        assert "ssl.key.location" not in config


def test_tokens_are_asked_for_with_client_credentials() -> None:
    kafka = KafkaSettings(
        security_protocol="sasl_ssl",
        sasl_mechanism="OAUTHBEARER",
        oauth_token_url="https://id.example/token",
        oauth_client_id="me",
        oauth_client_secret="hush",  # type: ignore[arg-type]
        oauth_scope="kafka",
        oauth_extensions={"logicalCluster": "lkc-1", "identityPoolId": "p"},
        oauth_ca_file="/id.pem",  # type: ignore[arg-type]
    )
    config = producer_config(kafka, ClientMessages())
    assert config["sasl.oauthbearer.method"] == "oidc"
    assert config["sasl.oauthbearer.token.endpoint.url"] == "https://id.example/token"
    assert config["sasl.oauthbearer.client.id"] == "me"
    assert config["sasl.oauthbearer.client.secret"] == "hush"
    assert config["sasl.oauthbearer.scope"] == "kafka"
    assert config["sasl.oauthbearer.extensions"] == "logicalCluster=lkc-1,identityPoolId=p"
    assert config["https.ca.location"] == "/id.pem"


def test_at_least_once_is_idempotent_without_transactions() -> None:
    producer = producer_config(KafkaSettings(delivery="at_least_once"), ClientMessages())
    assert producer["enable.idempotence"] is True
    assert not [name for name in producer if name.startswith("transaction")]
