"""A broker for the demonstration: inside this process, or a real one with topics of our own."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from service.demo.options import DemoFailed

logger = logging.getLogger(__name__)

_PARTITIONS = 4


@dataclass(frozen=True)
class DemoBroker:
    """Where the demonstration's records go.

    Attributes
    ----------
    address : str
        Bootstrap servers.
    exposures, alerts, status, dead_letters : str
        Topics.
    embedded : bool
        Whether it lives in this process.
    """

    address: str
    exposures: str
    alerts: str
    status: str
    dead_letters: str
    embedded: bool

    @property
    def topics(self) -> tuple[str, str, str, str]:
        """All four topics."""
        return self.exposures, self.alerts, self.status, self.dead_letters


@contextmanager
def embedded_broker() -> Iterator[DemoBroker]:
    """Run librdkafka's mock cluster in this process: no Java, no Docker.

    It keeps 5 MiB a partition and knows nothing of isolation, so it proves nothing about
    exactly-once; the tests against a real broker do.
    """
    # Errors of connections that end with the demonstration are no news.
    cluster = Producer({"test.mock.num.brokers": 1, "log_level": 2})
    brokers = cluster.list_topics(timeout=20).brokers.values()
    address = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    broker = DemoBroker(
        address, "exposures", "alerts", "exposure-status", "exposures-dead-letter", embedded=True
    )
    for topic in broker.topics:
        cluster.list_topics(topic, timeout=20)  # asking for it makes it
    yield broker
    # The cluster lives as long as the producer that made it.
    del cluster


@contextmanager
def real_broker(address: str) -> Iterator[DemoBroker]:
    """Use a real broker, with topics made for this run and deleted after it.

    Raises
    ------
    DemoFailed
        If the broker does not answer, or does not let us make topics.
    """
    run = f"skydelta-demo-{secrets.token_hex(4)}"
    broker = DemoBroker(
        address,
        f"{run}-exposures",
        f"{run}-alerts",
        f"{run}-status",
        f"{run}-dead-letter",
        embedded=False,
    )
    admin = AdminClient({"bootstrap.servers": address, "log_level": 2})
    made = admin.create_topics(
        [NewTopic(t, _PARTITIONS) for t in broker.topics], request_timeout=20
    )
    ours = []
    try:
        for topic, future in made.items():
            try:
                future.result()
            except KafkaException as error:
                reason = error.args[0].str()
                raise DemoFailed(f"cannot make the topic {topic} at {address}: {reason}") from error
            ours.append(topic)
        yield broker
    finally:
        for topic, future in admin.delete_topics(ours).items() if ours else ():
            try:
                future.result()
            except KafkaException as error:
                logger.warning("the topic %s stays behind at %s: %s", topic, address, error)
