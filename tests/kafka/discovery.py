"""Where the tests' broker comes from: a given one, Docker, or Apache Kafka's jars."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.kafka.errors import BrokerFailed, BrokerUnavailable
from tests.kafka.local_broker import LocalBroker, behaviour

logger = logging.getLogger(__name__)

GIVEN = "SKYDELTA_TEST_BOOTSTRAP"
REQUIRED = "SKYDELTA_REQUIRE_KAFKA"
GIVEN_TIMEOUT = 5.0
DOCKER_TIMEOUT = 3.0
HOW_TO_GET_ONE = f"set {GIVEN}=host:port, or start Docker, or install Maven (apt-get install maven)"


def broker_is_required() -> bool:
    """Say whether a missing broker is a failure: `REQUIRED` is set to something true."""
    return os.environ.get(REQUIRED, "").strip().lower() not in {"", "0", "false", "no"}


@contextlib.contextmanager
def find_broker() -> Iterator[str]:
    """Give the bootstrap address of a real broker, and stop it afterwards if it was started here.

    Raises
    ------
    BrokerUnavailable
        If there is no way to one; the message names what was tried.
    BrokerFailed
        If there should be one and it does not answer: a given address, or a local Kafka that
        does not start.
    """
    given = os.environ.get(GIVEN)
    if given:
        yield _given(given)
        return
    reasons = []
    for way in (_in_docker, _from_jars):
        with contextlib.ExitStack() as stack:
            try:
                bootstrap = stack.enter_context(way())
            except BrokerUnavailable as error:
                reasons.append(str(error))
                continue
            logger.info("broker at %s", bootstrap)
            yield bootstrap
            return
    raise BrokerUnavailable("; ".join(reasons))


def _given(bootstrap: str) -> str:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        admin.list_topics(timeout=GIVEN_TIMEOUT)
    except KafkaException as error:
        raise BrokerFailed(f"{GIVEN}={bootstrap} does not answer: {error}") from error
    return bootstrap


@contextlib.contextmanager
def _in_docker() -> Iterator[str]:
    try:
        engine = docker.from_env(timeout=DOCKER_TIMEOUT)
        engine.ping()
        engine.close()
    # requests' errors, time-outs among them, are OSErrors
    except (docker.errors.DockerException, OSError) as error:
        raise BrokerUnavailable("no Docker engine answers") from error

    from testcontainers.community.kafka import KafkaContainer
    from testcontainers.core.exceptions import ContainerStartException

    container = KafkaContainer().with_kraft()
    for name, value in behaviour().items():
        container.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
    try:
        container.start()
    except (
        docker.errors.DockerException,
        ContainerStartException,
        OSError,  # TimeoutError is one
    ) as error:
        container.stop()
        raise BrokerUnavailable(f"Docker could not start Kafka: {error}") from error
    try:
        yield container.get_bootstrap_server()
    finally:
        container.stop()


@contextlib.contextmanager
def _from_jars() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="skydelta-kafka-") as folder,
        LocalBroker(Path(folder)) as broker,
    ):
        yield broker.bootstrap
