"""Work for workers under test; it lives in a module so that a spawned process can import it."""

import ctypes
import os
import signal
import time
from typing import Any

from service.stage_reports import enter_stage


class FakeWork:
    """Does what the task says: ``("echo", x)``, ``("raise", x)``, ``("kill",)``, ``("hang",)``."""

    def __init__(self, argument: Any) -> None:
        self.argument = argument
        self.warm = False

    def warm_up(self) -> None:
        if self.argument == "cannot start":
            raise RuntimeError("the compiler is missing")
        if self.argument == "never warm":
            time.sleep(600)
        self.warm = True

    def __call__(self, task: Any) -> Any:
        assert self.warm
        match task:
            case ("echo", value):
                return value
            case ("environment", name):
                return os.environ.get(name)
            case ("raise", message):
                raise LookupError(message)
            case ("memory",):
                raise MemoryError
            case ("kill",):
                os.kill(os.getpid(), signal.SIGKILL)
            case ("segfault",):
                os.kill(os.getpid(), signal.SIGSEGV)
            case ("segfault in C",):
                ctypes.string_at(0)
            case ("grow", size, step):
                grown = []
                while sum(map(len, grown)) < size:
                    grown.append(b"x" * step)
                    time.sleep(0.01)
                return "grown"
            case ("allocate", size):
                return len(bytearray(size))
            case ("stages", *stages):
                for name, seconds in stages:
                    enter_stage(name)
                    time.sleep(seconds)
                return "done"
            case ("raise in", name):
                enter_stage(name)
                raise LookupError(name)
            case ("exit",):
                os._exit(7)
            case ("hang",):
                time.sleep(600)
            case ("kill half way",):
                return _KillsWhenPickled()
        raise AssertionError(task)


class _KillsWhenPickled:
    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def make_fake_work(argument: Any) -> FakeWork:
    return FakeWork(argument)
