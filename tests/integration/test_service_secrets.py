"""A marker in every secret setting, and a look for it wherever the service says something."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings_loading import sections
from tests.integration.test_service_registry import THEIRS, framed
from tests.kafka.secure_broker import USER, SecureBroker
from tests.kafka.topics import TopicMaker, read_topic
from tests.registry_server import RegistryServer
from tests.service_process import ServiceProcess, Topics, send_events

pytestmark = pytest.mark.kafka

MARKER = "h4rd-to-Guess"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer(credentials=("us", f"{MARKER}-registry")) as server:
        server.register(21, THEIRS)
        yield server


def secrets_everywhere(broker: SecureBroker, registry: RegistryServer) -> dict[str, Any]:
    """Return tables with a marker in every secret setting; the brokers want user and password."""
    client = broker.authority.issue(USER, f"{MARKER}-key")
    kafka = {
        "bootstrap_servers": broker.at("SCRAM"),
        "security_protocol": "sasl_ssl",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "guarded",
        "sasl_password": f"{MARKER}-sasl",
        "oauth_client_secret": f"{MARKER}-oauth",
        "ssl_ca_file": str(broker.authority.path),
        "ssl_certificate_file": str(client.certificate),
        "ssl_key_file": str(client.key),
        "ssl_key_password": f"{MARKER}-key",
        "extra": {"debug": "conf,security", "sasl.oauthbearer.config": f"{MARKER}-extra"},
    }
    return {
        "kafka": kafka,
        "registry": {"url": registry.url, "username": "us", "password": f"{MARKER}-registry"},
        "log": {"format": "json", "level": "DEBUG"},
    }


def test_no_secret_in_anything_that_is_said(
    secure_broker: SecureBroker, registry: RegistryServer, tmp_path: Path
) -> None:
    """First the brokers refuse the user, then the registry refuses us, then all goes well."""
    make = TopicMaker(secure_broker.bootstrap)
    topics = Topics(make(), make(), make(), make())
    tables = secrets_everywhere(secure_broker, registry)
    secret = {
        (name, key)
        for name, model in sections().items()
        for key, field in model.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    assert {(n, k) for n, t in tables.items() for k in t if MARKER in str(t[k])} == {
        *secret,
        ("kafka", "extra"),
    }
    tables["kafka"] |= {"group_id": topics.exposures, "transactional_id": topics.exposures}
    service = ServiceProcess(
        folder=tmp_path,
        bootstrap="unused",
        topics=topics,
        roots=[tmp_path],
        templates=tmp_path,
        settings=tables,
        module="tests.quick_service",
        arguments=("0",),
    )
    service.start(ready=False)
    heard = []
    try:
        service.until(lambda: "sasl_password" in service.get("/readyz")[1], "refused")
        heard += [service.get(page)[1] for page in ("/readyz", "/healthz", "/metrics")]
        secure_broker.set_scram_password("guarded", f"{MARKER}-sasl")
        secure_broker.allow_everything("guarded")
        registry.away = True
        service.until(lambda: service.get("/readyz")[0] == 200, "ready")
        send_events(secure_broker.bootstrap, topics.exposures, [framed("one", 21)])
        service.until(lambda: "registry" in service.get("/readyz")[1], "waiting for the registry")
        heard += [service.get(page)[1] for page in ("/readyz", "/healthz", "/metrics")]
        registry.away = False
        (status,) = read_topic(secure_broker.bootstrap, topics.status, 1, timeout=60)
        heard += [str(status.value()), service.get("/metrics")[1]]
        assert service.stop() == 0
    finally:
        service.kill()
    config = tmp_path / "skydelta.toml"
    assert f"{MARKER}-sasl" in config.read_text()
    heard += check_config(config)
    config.write_text(config.read_text().replace('"SCRAM-SHA-512"', '"SCRAM"'))
    heard += check_config(config)
    config.write_text(config.read_text().replace(f'"{MARKER}', f'["x"], "{MARKER}'))
    heard += check_config(config)
    assert "sasl.password" in service.log  # librdkafka lists its properties
    for said in [service.log, *heard]:
        assert said
        assert MARKER not in said


def check_config(config: Path) -> list[str]:
    """Return what ``skydelta check-config`` says."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "check-config", "--config", str(config)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [done.stdout + done.stderr]
