"""What happens to the services of a round, drawn from its seed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.fleet import Fleet, Member
from tests.chaos.traps import set_trap
from tests.trapped_producer import MOMENTS

SESSION = 6.0  # seconds, of the consumer group
TRAP_PATIENCE = 30.0  # a service that was killed a moment ago has to come back first


@dataclass(frozen=True)
class Disturbance:
    """One thing that happens.

    Attributes
    ----------
    at : float
        Seconds after the first event.
    kind : str
        One of `KINDS`.
    target : int
        Which service; taken modulo their number.
    moment : str
        Of a transaction, where the kind needs one.
    """

    at: float
    kind: str
    target: int
    moment: str

    def __str__(self) -> str:
        where = f" {self.moment}" if self.kind.startswith("trap") else ""
        return f"{self.at:.1f} s: {self.kind}{where}, service {self.target}"

    def happen(self, fleet: Fleet) -> bool:
        """Do it; return whether it struck."""
        if self.kind == "restart broker":
            fleet.broker.kill()
            fleet.broker.start()
            return True
        if self.kind == "join":
            fleet.join(stay=SESSION)
            return True
        with fleet.borrowed(self.target) as member:
            return KINDS[self.kind](member, self.moment)


def _kill_service(member: Member, _: str) -> bool:
    member.process.kill()
    return True


def _kill_worker(member: Member, _: str) -> bool:
    for pid in member.process.workers[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _freeze(member: Member, _: str) -> bool:
    os.kill(member.process.process.pid, signal.SIGSTOP)
    return _thaw(member)


def _leave(member: Member, _: str) -> bool:
    return member.process.stop() == 0


def _trap_kill(member: Member, moment: str) -> bool:
    return _sprung(member, set_trap(member.traps, moment, "kill"))


def _trap_freeze(member: Member, moment: str) -> bool:
    sprung = _sprung(member, set_trap(member.traps, moment, "freeze"))
    return sprung and _thaw(member)


def _thaw(member: Member) -> bool:
    """Let a frozen service go on after its partitions went to another."""
    time.sleep(SESSION + 2)
    with suppress(ProcessLookupError):
        os.kill(member.process.process.pid, signal.SIGCONT)
    return True


def _sprung(member: Member, trap: Path) -> bool:
    """Wait until a trap was sprung; take it away where no transaction came by."""
    end = time.monotonic() + TRAP_PATIENCE
    while time.monotonic() < end and member.process.process.poll() is None:
        if not trap.exists():
            return True
        time.sleep(0.02)
    existed = trap.exists()
    trap.unlink(missing_ok=True)
    return not existed


KINDS: dict[str, Callable[[Member, str], bool]] = {
    "kill service": _kill_service,
    "kill worker": _kill_worker,
    "freeze": _freeze,
    "leave": _leave,
    "trap: kill": _trap_kill,
    "trap: freeze": _trap_freeze,
}
OF_ALL = ("restart broker", "join")


def draw(seed: int, seconds: float) -> list[Disturbance]:
    """Draw what happens in a round, to whom and when.

    Every kind happens, a service is killed at each moment of a transaction and frozen at two, and
    some more comes on top.
    """
    chance = random.Random(seed)
    kinds = [(kind, "") for kind in (*KINDS, *OF_ALL) if not kind.startswith("trap")]
    kinds += [("trap: kill", moment) for moment in MOMENTS]
    kinds += [("trap: freeze", moment) for moment in chance.sample(MOMENTS, 2)]
    kinds += [(kind, "") for kind in chance.choices(("kill service", "kill worker", "join"), k=3)]
    return sorted(
        (
            Disturbance(chance.uniform(0.5, seconds), kind, chance.randrange(3), moment)
            for kind, moment in kinds
        ),
        key=lambda one: one.at,
    )
