"""What the Kafka clients have to say: each trouble in words that help, and once a minute."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable

from confluent_kafka import KafkaError

from service.broker_advice import advice, in_words

logger = logging.getLogger(__name__)

_REPEAT_SECONDS = 60.0
#: What only follows from some other trouble, and is worth a line where nothing else is known.
_CONSEQUENCES = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT})
#: Lines of librdkafka's log whose trouble also comes as an error.
_ALSO_ERRORS = ("FAIL ", "SSL ", "OIDC ", "SASLREFRESH ")


class ClientMessages:
    """Errors and log lines of all clients of one service: into our log, each thing once a minute.

    What must stop the service comes out of the calls that it makes, not out of here.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}
        self._last_cause = -math.inf
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """The latest trouble since `all_is_well`, in one line."""
        return self._trouble

    def all_is_well(self) -> None:
        """Forget the trouble: the brokers do what they are asked."""
        self._trouble = None
        self._last_cause = -math.inf
        self._said.clear()

    def error(self, error: KafkaError) -> None:
        """Note an error of a client (its ``error_cb``), or of a call of one."""
        now = self._clock()
        if error.code() in _CONSEQUENCES:
            if now - self._last_cause < _REPEAT_SECONDS:
                return
        else:
            self._last_cause = now
        self._trouble = in_words(error)
        self._say(logging.WARNING, f"Kafka: {self._trouble}", subject=advice(error))

    def log(self, level: int, message: str, *args: object) -> None:
        """Log a line of a client (its ``logger``)."""
        line = message % args if args else message
        if not line.startswith(_ALSO_ERRORS):
            self._say(level, f"Kafka: {line}")

    def _say(self, level: int, line: str, subject: str | None = None) -> None:
        if subject is None:  # times and ports change, the trouble does not
            subject = re.sub(r"\d+ ?ms|\d+", "", line)
        now = self._clock()
        if now - self._said.get(subject, -math.inf) >= _REPEAT_SECONDS:
            self._said[subject] = now
            logger.log(level, "%s", line)
