"""A producer that tells of every moment around a transaction: there a test strikes."""

from collections.abc import Callable
from typing import Any

BEFORE_TRANSACTION = "before the transaction"
BEFORE_COMMIT = "before the commit"
AFTER_COMMIT = "after the commit"
MOMENTS = (BEFORE_TRANSACTION, BEFORE_COMMIT, AFTER_COMMIT)


class TrappedProducer:
    """Passes everything on to the real producer.

    Parameters
    ----------
    producer : confluent_kafka.Producer
        The real one.
    reached : callable
        Called with each of `MOMENTS`.
    """

    def __init__(self, producer: Any, reached: Callable[[str], None]) -> None:
        self._producer = producer
        self._reached = reached

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def begin_transaction(self) -> None:
        self._reached(BEFORE_TRANSACTION)
        self._producer.begin_transaction()

    def commit_transaction(self, timeout: float) -> None:
        self._reached(BEFORE_COMMIT)
        self._producer.commit_transaction(timeout)
        self._reached(AFTER_COMMIT)
