"""What the clients say: once a minute, with what to do, and causes before consequences."""

import logging

import pytest
from confluent_kafka import KafkaError

from service.client_messages import ClientMessages

REFUSED = "SASL authentication error: Authentication failed: Invalid username or password"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def messages(clock: Clock, caplog: pytest.LogCaptureFixture) -> ClientMessages:
    caplog.set_level(logging.DEBUG, logger="service.client_messages")
    return ClientMessages(clock)


def test_client_says_the_same_thing_once_a_minute(
    messages: ClientMessages, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for after in (3, 17, 250):
        text = f"Connection refused (after {after}ms in state CONNECT)"
        messages.error(KafkaError(KafkaError._TRANSPORT, text))
        messages.log(logging.ERROR, "%s [%s] %s", "FAIL", "me", text)
    messages.log(logging.WARNING, "%s [%s] %s", "CONFWARN", "me", "no such thing")
    assert len(caplog.messages) == 2
    clock.now = 61.0
    messages.error(KafkaError(KafkaError._TRANSPORT, "Connection refused (after 1ms in state X)"))
    assert len(caplog.messages) == 3


def test_wrong_password_is_one_line_that_names_the_settings(
    messages: ClientMessages, caplog: pytest.LogCaptureFixture
) -> None:
    """Two clients, the producer and the consumer, meet it again and again."""
    for number in range(50):
        where = f"sasl_ssl://127.0.0.1:{9000 + number % 3}/bootstrap"
        text = f"{where}: {REFUSED} (after {number}ms in state AUTH_REQ)"
        messages.error(KafkaError(KafkaError._AUTHENTICATION, text))
        messages.error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
        messages.error(KafkaError(KafkaError._TIMED_OUT, "Timed out"))
    (line,) = caplog.messages
    assert "check kafka.sasl_username and kafka.sasl_password" in line
    assert REFUSED in line
    assert messages.trouble is not None
    assert "kafka.sasl_password" in messages.trouble


def test_brokers_that_are_down_without_another_reason_are_told(
    messages: ClientMessages, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        messages.error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    (line,) = caplog.messages
    assert "kafka.bootstrap_servers" in line
    assert "kafka.security_protocol" in line


def test_trouble_that_is_over_is_forgotten_and_told_anew(
    messages: ClientMessages, caplog: pytest.LogCaptureFixture
) -> None:
    messages.error(KafkaError(KafkaError._AUTHENTICATION, REFUSED))
    messages.all_is_well()
    assert messages.trouble is None
    messages.error(KafkaError(KafkaError._AUTHENTICATION, REFUSED))
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("code", "text", "setting"),
    [
        (KafkaError._AUTHENTICATION, "Unsupported SASL mechanism: broker's", "sasl_mechanism"),
        (KafkaError._AUTHENTICATION, "not valid in current SASL state", "security_protocol"),
        (KafkaError._AUTHENTICATION, "acquire SASL OAUTHBEARER token: x", "oauth_client_secret"),
        (KafkaError._SSL, "certificate verify failed: broker certificate", "ssl_ca_file"),
        (KafkaError._TRANSPORT, "certificate verify failed (after 1ms)", "ssl_ca_file"),
        (KafkaError._TRANSPORT, "alert bad certificate: SSL alert number 42", "ssl_key_file"),
        (KafkaError._TRANSPORT, "certificate required: SSL alert number 116", "ssl_key_file"),
        (KafkaError._TRANSPORT, "Disconnected: SSL connection closed by peer", "security_protocol"),
        (KafkaError._RESOLVE, "Failed to resolve 'nowhere:9092'", "bootstrap_servers"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "no", "group_id"),
    ],
)
def test_each_trouble_names_its_setting(
    messages: ClientMessages, code: int, text: str, setting: str
) -> None:
    messages.error(KafkaError(code, text))
    assert messages.trouble is not None
    assert f"kafka.{setting}" in messages.trouble
