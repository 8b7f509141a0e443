"""A call that may block for longer than it says, made where it cannot keep signals from us."""

from __future__ import annotations

import threading
from collections.abc import Callable

from confluent_kafka import KafkaException


class BlockingCall:
    """A call of the Kafka client in a thread of its own, which is left behind if it never returns.

    Python hears a signal only between two steps of its main thread, and librdkafka's
    ``send_offsets_to_transaction`` waits for a group coordinator that is away for as long as it is
    away, whatever its timeout says (librdkafka 5511; seen here with 2.16.0: over 90 s).

    Parameters
    ----------
    function : callable
        What is called.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._ended = threading.Event()
        self._returned = False
        self._error: KafkaException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def ended(self, seconds: float) -> bool:
        """Wait for its end, at most so long; return whether it came."""
        return self._ended.wait(seconds)

    def check(self) -> None:
        """Raise what the call raised."""
        if self._error is not None:
            raise self._error
        if not self._returned:  # the thread's own traceback is in the log
            raise RuntimeError("a call of the Kafka client failed in its thread")

    def _run(self) -> None:
        try:
            self._function()
            self._returned = True
        except KafkaException as error:
            self._error = error
        finally:
            self._ended.set()
