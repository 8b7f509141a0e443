"""The service through every lock of a real broker, and before locks that it has no key to."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import ResourceType

from tests.kafka.certificates import CertificateAuthority
from tests.kafka.secure_broker import PASSWORD, USER, SecureBroker
from tests.kafka.token_server import TokenServer
from tests.kafka.topics import TopicMaker, read_topic
from tests.quick_service import ALERTS
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka

KEY_PASSWORD = "of the client's key"
CLIENT_ID, CLIENT_SECRET, SCOPE = "skydelta-client", "of the client", "kafka"
EVENT = {"exposure_id": "one", "science_uri": "/x", "band": "r", "mjd_mid": 61000.0}

Kafka = dict[str, Any]


@pytest.fixture(scope="module")
def broker(secure_broker: SecureBroker) -> SecureBroker:
    return secure_broker


@pytest.fixture(scope="module")
def token_server(broker: SecureBroker) -> Iterator[TokenServer]:
    certificate = broker.authority.issue("token-server")
    with TokenServer(certificate, CLIENT_ID, CLIENT_SECRET, SCOPE, USER) as server:
        yield server


@pytest.fixture
def topics(broker: SecureBroker) -> Topics:
    make = TopicMaker(broker.bootstrap)
    return Topics(make(), make(), make(), make())


@pytest.fixture
def start(broker: SecureBroker, topics: Topics, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``start(kafka, ready=True) -> ServiceProcess``: a quick service with such a [kafka]."""
    made: list[ServiceProcess] = []

    def start(kafka: Kafka, ready: bool = True, **tables: Any) -> ServiceProcess:
        folder = tmp_path / f"service-{len(made)}"
        folder.mkdir()
        name = f"{topics.exposures}-{len(made)}"
        service = ServiceProcess(
            folder=folder,
            bootstrap="unused",
            topics=topics,
            roots=[tmp_path],
            templates=tmp_path,
            settings={"kafka": {"transactional_id": name, "group_id": name, **kafka}, **tables},
            module="tests.quick_service",
            arguments=("0",),
        )
        made.append(service)
        return service.start(ready=ready)

    yield start
    for service in made:
        service.kill()


@pytest.fixture
def scram(broker: SecureBroker) -> Kafka:
    return {
        "bootstrap_servers": broker.at("SCRAM"),
        "security_protocol": "sasl_ssl",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_username": USER,
        "sasl_password": PASSWORD,
        "ssl_ca_file": str(broker.authority.path),
    }


@pytest.fixture
def mutual(broker: SecureBroker) -> Kafka:
    client = broker.authority.issue(USER, KEY_PASSWORD)
    return {
        "bootstrap_servers": broker.at("MTLS"),
        "security_protocol": "ssl",
        "ssl_ca_file": str(broker.authority.path),
        "ssl_certificate_file": str(client.certificate),
        "ssl_key_file": str(client.key),
        "ssl_key_password": KEY_PASSWORD,
    }


@pytest.fixture
def bearer(broker: SecureBroker, token_server: TokenServer) -> Kafka:
    return {
        "bootstrap_servers": broker.at("OAUTH"),
        "security_protocol": "sasl_ssl",
        "sasl_mechanism": "OAUTHBEARER",
        "oauth_token_url": token_server.url,
        "oauth_client_id": CLIENT_ID,
        "oauth_client_secret": CLIENT_SECRET,
        "oauth_scope": SCOPE,
        "oauth_ca_file": str(broker.authority.path),
        "ssl_ca_file": str(broker.authority.path),
    }


def publishes(service: ServiceProcess, broker: SecureBroker) -> None:
    topics = service.topics
    send_events(broker.bootstrap, topics.exposures, [EVENT])
    (status,) = read_topic(broker.bootstrap, topics.status, 1, timeout=60)
    assert read_record(status)["outcome"] == "published"
    assert len(read_topic(broker.bootstrap, topics.alerts, ALERTS)) == ALERTS


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_password(
    broker: SecureBroker, start: Callable[..., ServiceProcess], scram: Kafka, mechanism: str
) -> None:
    listener = mechanism.partition("-")[0]
    service = start(scram | {"bootstrap_servers": broker.at(listener), "sasl_mechanism": mechanism})
    publishes(service, broker)
    assert service.stop() == 0


def test_mutual_tls(
    broker: SecureBroker, start: Callable[..., ServiceProcess], mutual: Kafka
) -> None:
    service = start(mutual)
    publishes(service, broker)
    assert service.stop() == 0


def test_token(
    broker: SecureBroker,
    start: Callable[..., ServiceProcess],
    bearer: Kafka,
    token_server: TokenServer,
) -> None:
    service = start(bearer)
    publishes(service, broker)
    assert service.stop() == 0
    assert token_server.given >= 1


def test_what_is_refused_gives_one_line_and_a_service_that_waits(
    broker: SecureBroker,
    start: Callable[..., ServiceProcess],
    scram: Kafka,
    mutual: Kafka,
    bearer: Kafka,
    tmp_path: Path,
) -> None:
    """All at once, as each has to be watched for a while."""
    stranger = CertificateAuthority(tmp_path / "stranger").path
    without = {k: v for k, v in mutual.items() if "key" not in k and "certificate" not in k}
    cases: list[tuple[Kafka, str]] = [
        (scram | {"sasl_password": "wrong"}, "kafka.sasl_password"),
        (scram | {"sasl_username": "nobody"}, "kafka.sasl_username"),
        (scram | {"sasl_mechanism": "PLAIN"}, "kafka.sasl_mechanism"),
        (scram | {"ssl_ca_file": str(stranger)}, "kafka.ssl_ca_file"),
        (without, "kafka.ssl_certificate_file"),
        (bearer | {"oauth_client_secret": "wrong"}, "kafka.oauth_client_secret"),
    ]
    services = [(start(kafka, ready=False), setting) for kafka, setting in cases]
    for service, setting in services:
        service.until(lambda s=service, name=setting: name in s.get("/readyz")[1], "told")
    time.sleep(12)  # brokers are tried again after at most 10 s
    for service, setting in services:
        assert service.process.poll() is None, service.log
        status, why = service.get("/readyz")
        assert status == 503
        assert why.startswith("the brokers are not reached yet: ")
        assert setting in why
        assert service.get("/healthz")[0] == 200
        told = [r["message"] for r in service.log_records if r["level"] != "INFO"]
        assert len(told) == 1, service.log
        assert setting in told[0]
        assert PASSWORD not in service.log
    for service, _ in services:
        began = time.monotonic()
        assert service.stop() == 0, service.log
        assert time.monotonic() - began < 20


def test_service_goes_on_once_the_brokers_let_it_in(
    broker: SecureBroker, start: Callable[..., ServiceProcess], scram: Kafka
) -> None:
    """First there is no such user, then it may do nothing, then one thing after the other."""
    latecomer = {"sasl_username": "latecomer", "sasl_password": "late"}
    service = start(scram | latecomer, ready=False)

    def says(what: str) -> None:
        service.until(lambda: what in service.get("/readyz")[1], f"saying {what}")
        assert any(what in line["message"] for line in service.log_records)

    says("kafka.sasl_username")
    broker.set_scram_password("latecomer", "late")
    says("kafka.transactional_id")
    broker.allow("latecomer", ResourceType.TRANSACTIONAL_ID)
    says("kafka.group_id")
    broker.allow("latecomer", ResourceType.GROUP)
    says("READ of the topics")
    broker.allow("latecomer", ResourceType.TOPIC)
    service.until(lambda: service.get("/readyz")[0] == 200, "ready")
    publishes(service, broker)
    told = [line for line in service.log_records if line["level"] not in ("INFO", "DEBUG")]
    assert len(told) < 15, service.log
    assert service.stop() == 0
