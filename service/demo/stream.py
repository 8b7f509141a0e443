"""The demonstration's own ends of the stream: events in, alerts and status out."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from service.alert_reading import AlertPacket, read_stamp
from service.demo.broker import DemoBroker
from service.demo.options import DemoFailed

Stamp = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Alert:
    """One alert packet, as it came out of the stream."""

    payload: bytes
    packet: dict[str, Any]
    received: float  # time.monotonic

    @property
    def candid(self) -> int:
        """Identifier of the detection."""
        return int(self.packet["candid"])

    @property
    def exposure_id(self) -> str:
        """The exposure that it belongs to."""
        return str(self.packet["skydelta"]["exposure_id"])

    @property
    def ra(self) -> float:
        """Right ascension, degrees."""
        return float(self.packet["candidate"]["ra"])

    @property
    def dec(self) -> float:
        """Declination, degrees."""
        return float(self.packet["candidate"]["dec"])

    @property
    def sign(self) -> int:
        """+1 brighter, -1 fainter than the template."""
        return int(self.packet["skydelta"]["sign"])

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio as measured."""
        return float(self.packet["skydelta"]["snr"] or 0.0)

    @property
    def mag(self) -> float | None:
        """Magnitude of the difference as measured; None without a zero point."""
        value = self.packet["candidate"]["magpsf"]
        calibrated = self.packet["skydelta"]["zero_point"] is not None
        return float(value) if calibrated and value is not None else None

    def stamps(self) -> tuple[Stamp, Stamp, Stamp]:
        """Return the science, template and difference cutouts."""
        names = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
        packet = AlertPacket(self.packet, "ztf.alert", 0, 1)
        science, template, difference = (read_stamp(packet, name).pixels for name in names)
        return science, template, difference


@dataclass(frozen=True)
class Status:
    """One exposure status, as it came out of the stream."""

    record: dict[str, Any]
    received: float  # time.monotonic

    @property
    def exposure_id(self) -> str:
        """The exposure that it is about."""
        return str(self.record["exposure_id"])


class EventPublisher:
    """Publishes exposure events as JSON."""

    def __init__(self, broker: DemoBroker) -> None:
        self._producer = Producer({"bootstrap.servers": broker.address, "log_level": 2})
        self._topic = broker.exposures

    def publish(self, event: dict[str, Any]) -> float:
        """Publish one event; return when it was sent (`time.monotonic`)."""
        sent = time.monotonic()
        self._producer.produce(
            self._topic, key=str(event["exposure_id"]), value=json.dumps(event).encode()
        )
        if self._producer.flush(30):
            raise DemoFailed("the broker did not take the exposure event within 30 seconds")
        return sent


class Follower:
    """Reads alerts and status records from the moment it is made."""

    def __init__(self, broker: DemoBroker) -> None:
        self._broker = broker
        self._consumer = Consumer(
            {
                "bootstrap.servers": broker.address,
                "group.id": f"{broker.alerts}-follower",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "log_level": 2,
            }
        )
        partitions = []
        for topic in (broker.alerts, broker.status):
            partitions += [
                TopicPartition(topic, p, OFFSET_BEGINNING) for p in self._partitions(topic)
            ]
        self._consumer.assign(partitions)

    def _partitions(self, topic: str) -> list[int]:
        """Return the partitions of a topic; one that was just made takes a moment to be known."""
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            found = self._consumer.list_topics(topic, timeout=20).topics[topic]
            if found.partitions:
                return list(found.partitions)
            time.sleep(0.2)
        raise DemoFailed(f"the broker does not know the topic {topic}")

    def poll(self, seconds: float) -> list[Alert | Status]:
        """Return what has arrived, waiting at most ``seconds`` for the first."""
        arrived: list[Alert | Status] = []
        for message in self._consumer.consume(num_messages=200, timeout=seconds):
            error = message.error()
            if error is not None:
                if error.fatal() or error.code() in (
                    KafkaError.TOPIC_AUTHORIZATION_FAILED,
                    KafkaError._AUTHENTICATION,
                ):
                    raise DemoFailed(f"cannot read the alerts: {error.str()}")
                continue
            payload = message.value() or b""
            record: Any = next(iter(fastavro.reader(io.BytesIO(payload))))
            now = time.monotonic()
            if message.topic() == self._broker.alerts:
                arrived.append(Alert(payload, record, now))
            else:
                arrived.append(Status(record, now))
        return arrived

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()
