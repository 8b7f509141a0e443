"""The archive server in a process of its own, so that its work is not counted as ours."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tests.archive.server import ArchiveServer
from tests.benchmarks.made_surveys import MadeSurvey


@dataclass(frozen=True)
class ArchiveProcess:
    """A running archive: its address, and the way to ask it."""

    url: str
    pipe: Connection

    def requests(self) -> int:
        """Return how many requests came since this was asked last."""
        self.pipe.send("requests")
        return int(self.pipe.recv())


@contextmanager
def archive_process(survey: MadeSurvey) -> Iterator[ArchiveProcess]:
    """Serve a survey until the block ends; begins once its files are made."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(survey, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ArchiveProcess(ours.recv(), ours)
        ours.send("end")
    finally:
        process.join(10)
        process.terminate()


def _serve(survey: MadeSurvey, pipe: Connection) -> None:
    with ArchiveServer() as server:
        survey.serve(server)
        pipe.send(server.url)
        while pipe.recv() == "requests":
            pipe.send(server.count())
            server.forget()
