"""One round: events, services, disturbances, and what is found afterwards."""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer

from tests.chaos.disturbances import Disturbance, draw
from tests.chaos.fleet import Fleet
from tests.chaos.service import NO_FAULT
from tests.chaos.tally import Tally, count
from tests.kafka.local_broker import LocalBroker
from tests.kafka.topics import TopicMaker, read_topic
from tests.service_process import Topics

logger = logging.getLogger(__name__)

PARTITIONS = 6
PATIENCE = 240.0  # seconds for all of a round
AT_ONCE = 4  # disturbances
SLOWER = 2.0  # than things happen, events come; the rest at once when all has happened


@dataclass(frozen=True)
class Plan:
    """What a round is to be.

    Attributes
    ----------
    seed : int
    events : int
        How many are sent.
    seconds : float
        Over which things happen.
    protocol : str
        Of the consumer group: ``classic`` or KIP-848's ``consumer``.
    happenings : tuple of Disturbance
        In the order of their times.
    fault : str
        What is broken in the services, see `tests.chaos.service`.
    """

    seed: int
    events: int
    seconds: float
    protocol: str
    happenings: tuple[Disturbance, ...]
    fault: str = NO_FAULT

    @classmethod
    def drawn(cls, seed: int, *, fault: str = NO_FAULT) -> Plan:
        """Draw a round from a seed; odd ones take the protocol of KIP-848."""
        seconds = 30.0
        protocol = "consumer" if seed % 2 else "classic"
        return cls(seed, 200, seconds, protocol, tuple(draw(seed, seconds)), fault)


@dataclass(frozen=True)
class Round:
    """What a round was, and what came of it.

    Attributes
    ----------
    plan : Plan
    happened : tuple of str
        The disturbances that struck.
    tally : Tally
    exits : tuple of int
        Of the services, told to stop in the end.
    starts : int
        Of services, the first ones counted.
    seconds : float
    """

    plan: Plan
    happened: tuple[str, ...]
    tally: Tally
    exits: tuple[int, ...]
    starts: int
    seconds: float

    @property
    def faults(self) -> tuple[str, ...]:
        """Everything that is not as it must be."""
        wrong = [f"a service left with status {code}" for code in self.exits if code]
        return (*self.tally.faults, *wrong)


def run_round(plan: Plan, broker: LocalBroker, folder: Path) -> Round:
    """Run one round.

    Parameters
    ----------
    plan : Plan
        What it is to be.
    broker : LocalBroker
        A running one; it may be killed and started again.
    folder : Path
        For settings and logs.
    """
    started = time.monotonic()
    make_topic = TopicMaker(broker.bootstrap)
    topics = Topics(make_topic(partitions=PARTITIONS), make_topic(), make_topic(), make_topic())
    names = [f"exposure-{number:03d}" for number in range(plan.events)]
    fleet = Fleet(broker, topics, folder, plan.protocol, plan.fault)
    try:
        fleet.keep_alive()
        fleet.until_ready()
        happened = _disturb(fleet, plan, topics, names)
        while _committed(broker, topics) < plan.events and time.monotonic() < started + PATIENCE:
            fleet.keep_alive()
            time.sleep(0.5)
        exits = tuple(fleet.stop())
    finally:
        fleet.kill()
    tally = count(broker.bootstrap, topics, topics.exposures, names)
    starts = sum(member.starts for member in fleet.members)
    return Round(plan, happened, tally, exits, starts, time.monotonic() - started)


def _disturb(fleet: Fleet, plan: Plan, topics: Topics, names: list[str]) -> tuple[str, ...]:
    """Send the events and let things happen, each at its time."""
    begin = time.monotonic()
    waiting = list(plan.happenings)
    unsent = list(enumerate(names))
    running = []
    # one producer that outlives the broker's restarts, and repeats without sending twice
    producer = Producer(
        {
            "bootstrap.servers": fleet.broker.bootstrap,
            "enable.idempotence": True,
            "log_level": 0,  # that the broker is away is no news here
        }
    )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while waiting or unsent or not all(done.done() for _, done in running):
            now = time.monotonic() - begin
            while waiting and waiting[0].at <= now:
                one = waiting.pop(0)
                running.append((one, pool.submit(one.happen, fleet)))
            share = min(1.0, now / (SLOWER * plan.seconds))
            if not waiting and all(done.done() for _, done in running):
                share = 1.0
            due = len(names) - round(len(names) * share)
            while len(unsent) > due:
                number, name = unsent.pop(0)
                event = {"exposure_id": name, "science_uri": "/x", "band": "r", "mjd_mid": 61000.0}
                value = json.dumps(event).encode()
                producer.produce(topics.exposures, value=value, partition=number % PARTITIONS)
            producer.poll(0)
            fleet.keep_alive()
            time.sleep(0.05)
        assert producer.flush(60) == 0
        return tuple(str(one) for one, done in running if done.result())


def _committed(broker: LocalBroker, topics: Topics) -> int:
    return len(read_topic(broker.bootstrap, topics.status, 0))
