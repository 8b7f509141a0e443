"""What to do about an error of the Kafka client, in one line that names the setting."""

from __future__ import annotations

import re

from confluent_kafka import KafkaError

#: Errors that only a change of the brokers' ACLs (or of who we are) ends.
NOT_ALLOWED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)

_BY_TEXT = (
    (
        r"invalid credentials|Invalid username or password",
        "the brokers refuse this user and password: check kafka.sasl_username and "
        "kafka.sasl_password, and that the user exists",
    ),
    (
        r"Unsupported SASL mechanism",
        "the brokers do not offer this mechanism: set kafka.sasl_mechanism to one of theirs",
    ),
    (
        r"current SASL state",
        "this listener takes no SASL: check kafka.security_protocol, and the port in "
        "kafka.bootstrap_servers",
    ),
    (
        r"OAUTHBEARER token",
        "no token was given out: check kafka.oauth_token_url, kafka.oauth_client_id, "
        "kafka.oauth_client_secret and kafka.oauth_scope, and that the token server runs",
    ),
    (
        r"OAUTHBEARER",
        "the brokers refuse our token: check kafka.oauth_scope and kafka.oauth_extensions, and "
        "whom the brokers trust",
    ),
    (
        r"ssl\.key\.location failed",
        "our private key cannot be read: check kafka.ssl_key_file and kafka.ssl_key_password",
    ),
    (
        r"ssl\.certificate\.location failed",
        "our certificate cannot be read: check kafka.ssl_certificate_file",
    ),
    (
        r"ssl\.ca\.location failed",
        "the certificate authorities cannot be read: check kafka.ssl_ca_file",
    ),
    (
        r"certificate verify failed",
        "the brokers' certificate is not from an authority that we know, or is for another host: "
        "check kafka.ssl_ca_file, and the host names in kafka.bootstrap_servers",
    ),
    (
        r"SSL alert number (?:42|4[3-9]|116)\b",
        "the brokers refuse our certificate, or miss one: set kafka.ssl_certificate_file and "
        "kafka.ssl_key_file, signed by an authority that they trust",
    ),
    (
        r"SSL handshake failed: Disconnected|SSL connection closed by peer|wrong version number",
        "this listener does not speak TLS: check kafka.security_protocol, and the port in "
        "kafka.bootstrap_servers",
    ),
)

_BY_CODE = {
    KafkaError._AUTHENTICATION: "the brokers do not believe who we are: check the sasl_ settings",
    KafkaError._SSL: "no TLS connection: check the ssl_ settings",
    KafkaError._RESOLVE: "there is no such host: check kafka.bootstrap_servers",
    KafkaError._ALL_BROKERS_DOWN: "no broker answers us: check that they run, "
    "kafka.bootstrap_servers, and whether kafka.security_protocol is that of the listener",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant our user READ of the topics that it reads, and "
    "WRITE of those that it writes",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "grant our user READ of the group kafka.group_id",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "grant our user IDEMPOTENT_WRITE of the cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "grant our user WRITE and DESCRIBE of the "
    "transactional id kafka.transactional_id",
    KafkaError._UNSUPPORTED_FEATURE: "the brokers lack transactions: set kafka.delivery to "
    '"at_least_once"',
    KafkaError.INVALID_TRANSACTION_TIMEOUT: "lower kafka.transaction_timeout_seconds below the "
    "brokers' transaction.max.timeout.ms",
    KafkaError._FENCED: "another process has the same kafka.transactional_id, or the broker ended "
    "a transaction that had taken too long",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "create the topic, or check the names under [topics]",
}


#: What librdkafka adds to an error, and which differs each time.
_HISTORY = re.compile(r" \(after \d+ms in state \w+(?:, \d+ identical error\(s\) suppressed)?\)")


def advice(error: KafkaError) -> str | None:
    """Return what an operator can do about an error, None where there is nothing to say."""
    text = error.str()
    for pattern, said in _BY_TEXT:
        if re.search(pattern, text):
            return said
    return _BY_CODE.get(error.code())


def in_words(error: KafkaError) -> str:
    """Return an error with its name, and with what can be done where that is known."""
    what = f"{_HISTORY.sub('', error.str())} ({error.name()})"
    help_ = advice(error)
    return f"{help_}; {what}" if help_ else what
