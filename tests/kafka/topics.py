"""Topics of their own for the tests, and what was committed to them."""

import time
import uuid
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic


class TopicMaker:
    """Makes topics with names of their own, and deletes them all in the end.

    Parameters
    ----------
    bootstrap : str
        Address of the broker.
    """

    def __init__(self, bootstrap: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap})
        self._made: list[str] = []

    def __call__(
        self,
        partitions: int = 1,
        prefix: str = "skydelta-test",
        config: Mapping[str, str] | None = None,
    ) -> str:
        """Make a topic; return its name once every partition has a leader."""
        name = f"{prefix}-{uuid.uuid4().hex[:12]}"
        topic = NewTopic(name, partitions, 1, config=dict(config or {}))
        self._admin.create_topics([topic], operation_timeout=30)[name].result(30)
        self._made.append(name)
        deadline = time.monotonic() + 30
        while not self._is_ready(name, partitions):
            if time.monotonic() > deadline:
                raise TimeoutError(f"topic {name} has no leader after 30 s")
            time.sleep(0.05)
        return name

    def _is_ready(self, name: str, partitions: int) -> bool:
        found = self._admin.list_topics(name, timeout=10).topics[name].partitions
        return len(found) == partitions and all(part.leader >= 0 for part in found.values())

    def delete_all(self) -> None:
        """Delete the topics that were made here."""
        self.delete(*self._made)

    def delete(self, *names: str) -> None:
        """Delete some of the topics that were made here."""
        if names:
            for done in self._admin.delete_topics(list(names), operation_timeout=30).values():
                done.result(30)
            self._made = [name for name in self._made if name not in names]


def read_topic(bootstrap: str, topic: str, expected: int, timeout: float = 30.0) -> list[Message]:
    """Return every committed message of a topic, in order within each partition.

    Waits until at least ``expected`` messages have come *and* every partition is read to its end,
    so that one message too many is returned as well: compare the length. ``expected=0`` returns
    what is there.

    Parameters
    ----------
    bootstrap : str
        Address of the broker.
    topic : str
        An existing topic.
    expected : int
        How many messages to wait for.
    timeout : float
        Seconds after which fewer than expected is an error.

    Raises
    ------
    AssertionError
        If fewer than ``expected`` messages are committed in time.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"read-topic-{uuid.uuid4().hex}",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
        }
    )
    try:
        partitions = consumer.list_topics(topic, timeout=timeout).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        messages: list[Message] = []
        ended: set[int | None] = set()
        deadline = time.monotonic() + timeout
        while len(messages) < expected or len(ended) < len(partitions):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise AssertionError(
                    f"{topic}: {len(messages)} of {expected} messages committed within "
                    f"{timeout:g} s ({len(ended)} of {len(partitions)} partitions read to the end)"
                )
            message = consumer.poll(min(remaining, 0.5))
            if message is None:
                continue
            error = message.error()
            if error is None:
                messages.append(message)
                ended.discard(message.partition())
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
            else:
                raise KafkaException(error)
        return messages
    finally:
        consumer.close()
