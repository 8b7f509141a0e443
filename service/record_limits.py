"""How large the records of each output topic may be, as its brokers say.

A record above the limit is refused before a transaction is begun for it. And since brokers apply
the limit to whole batches, batches must not be larger either: librdkafka would fill one with up to
a megabyte of packets that are each small enough.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource

from service.broker_advice import in_words

logger = logging.getLogger(__name__)

_PROPERTY = "max.message.bytes"
_ANSWER_SECONDS = 5.0  # a stop is heard after this
_BATCH_BYTES = 1_000_000  # librdkafka's own


class RecordLimits:
    """The largest record of each topic.

    Parameters
    ----------
    most : int
        ``kafka.max_message_bytes``: no topic is given more, whatever its brokers allow.
    topics : iterable of str
        The output topics.
    """

    def __init__(self, most: int, topics: Iterable[str]) -> None:
        self._most = most
        self._said = dict.fromkeys(topics, most)

    def of(self, topic: str) -> int:
        """Return the bytes that a record of a topic may have."""
        return min(self._most, self._said.get(topic, self._most))

    def named(self, topic: str) -> str:
        """Return the limit of a topic with its name, for a message."""
        said = self._said.get(topic, self._most)
        name = "kafka.max_message_bytes" if said >= self._most else f"the topic's {_PROPERTY}"
        return f"{name} ({self.of(topic)})"

    @property
    def batch_bytes(self) -> int | None:
        """The largest batch that all topics take, None where librdkafka's own is small enough."""
        smallest = min(self._said.values(), default=_BATCH_BYTES)
        return smallest if smallest < _BATCH_BYTES else None

    def ask(self, admin: AdminClient) -> None:
        """Ask the brokers; what they do not tell (no right to DESCRIBE_CONFIGS) stays as it is."""
        wanted = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in self._said]
        asked: dict[ConfigResource, Future] = admin.describe_configs(
            wanted, request_timeout=_ANSWER_SECONDS
        )
        for resource, answer in asked.items():
            try:
                value = answer.result(2 * _ANSWER_SECONDS)[_PROPERTY].value
                self._said[resource.name] = int(value)
            except (KafkaException, TimeoutError) as exception:
                error = exception.args[0] if exception.args else "no answer"
                why = in_words(error) if isinstance(error, KafkaError) else error
                logger.info(
                    "%s of %s is not known, %s bytes are taken: %s",
                    _PROPERTY, resource.name, self._said[resource.name], why,
                )  # fmt: skip
            else:
                if self._said[resource.name] < self._most:
                    logger.warning(
                        "%s takes records up to %s bytes, less than kafka.max_message_bytes (%s)",
                        resource.name, value, self._most,
                    )  # fmt: skip
