"""The cache under several processes at once, some of which are killed."""

import multiprocessing
import os
import random
import signal
import time
from contextlib import contextmanager

from core.deadline import Deadline
from core.errors import NotInArchive
from core.templates.cache import CacheKey, TemplateCache
from core.templates.cache.layout import Place, look_through
from core.templates.cache.locks import exclusive, release, try_exclusive

# The server imports what is needed once; each process is a fork of it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["core.templates.cache"])
PATIENCE = 60.0


class Log:
    """Writes what an observer hears to a file that several processes share."""

    def __init__(self, path):
        self._path = path

    def cache(self, kind, event, size=0, age=0.0):
        note(self._path, event)


def note(path, text):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def notes(path):
    return path.read_text().split() if path.exists() else []


def wait_for(condition):
    deadline = Deadline(PATIENCE)
    while not condition():
        assert not deadline.expired
        time.sleep(0.01)


def key_of(n):
    return CacheKey("tile", (str(n),))


def content_of(n):
    return random.Random(n).randbytes(2000 + 517 * (n % 7))


@contextmanager
def running(target, arguments):
    processes = [CONTEXT.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def finished(processes):
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def ask(folder, barrier, made, events):
    def make(path):
        note(made, "made")
        path.write_bytes(content_of(1)[:100])
        time.sleep(0.3)
        path.write_bytes(content_of(1))

    cache = TemplateCache(folder, observer=Log(events))
    barrier.wait(PATIENCE)
    with cache.entry(key_of(1), make, deadline=Deadline(PATIENCE)) as file:
        assert file.path.read_bytes() == content_of(1)


def test_one_makes_and_the_others_wait(tmp_path):
    n = 5
    barrier = CONTEXT.Barrier(n)
    arguments = [(tmp_path / "cache", barrier, tmp_path / "made", tmp_path / "events")] * n
    with running(ask, arguments) as processes:
        assert finished(processes) == [0] * n
    assert notes(tmp_path / "made") == ["made"]
    events = notes(tmp_path / "events")
    assert sorted(e for e in events if e != "wait") == ["hit"] * (n - 1) + ["miss", "stored"]
    assert 1 <= events.count("wait") <= n - 1


def make_half(folder, halfway):
    def make(path):
        path.write_bytes(content_of(1)[:1000])
        note(halfway, "halfway")
        time.sleep(10 * PATIENCE)

    with TemplateCache(folder).entry(key_of(1), make):
        raise AssertionError


def make_whole(folder, events):
    cache = TemplateCache(folder, observer=Log(events))
    deadline = Deadline(PATIENCE)
    with cache.entry(
        key_of(1), lambda path: path.write_bytes(content_of(1)), deadline=deadline
    ) as f:
        assert f.path.read_bytes() == content_of(1)
        assert f.fresh


def test_another_takes_over_from_a_killed_maker(tmp_path):
    folder, halfway, events = tmp_path / "cache", tmp_path / "halfway", tmp_path / "events"
    with running(make_half, [(folder, halfway)]) as (maker,):
        wait_for(lambda: notes(halfway))
        with running(make_whole, [(folder, events)]) as waiting:
            wait_for(lambda: notes(events) == ["wait"])
            assert len(list(folder.rglob("*.tmp"))) == 1
            os.kill(maker.pid, signal.SIGKILL)
            assert finished(waiting) == [0]
    names = sorted(path.name for path in folder.rglob("*.*") if path.name != ".ledger")
    assert names == [key_of(1).digest + ".fits", key_of(1).digest + ".json"]


def work_at_random(folder, max_bytes, seed, operations, log):
    """Do what users do, check what they get, and be killed now and then."""
    rng = random.Random(seed)
    cache = TemplateCache(folder, max_bytes=max_bytes, negative_seconds=0.5, observer=Log(log))
    for _ in range(operations):
        n = rng.randrange(24)
        what = rng.random()
        if what < 0.8:
            use(cache, n, rng)
        elif what < 0.95:
            damage(Place.of(folder, key_of(n)).data, rng)
        elif what < 0.98:
            cache.prune(rng.choice([0, max_bytes // 2, None]))
        else:
            list(cache.verify())
    note(log, "done")


def use(cache, n, rng):
    fate = rng.random()
    runs_twice = rng.random() < 0.3

    def make(path):
        if n % 6 == 5:
            raise NotInArchive(str(n))
        data = content_of(n)
        path.write_bytes(data[: len(data) // 2])
        if fate < 0.004:
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_bytes(data)

    try:
        with cache.entry(key_of(n), make, deadline=Deadline(PATIENCE)) as file:
            assert n % 6 != 5
            assert file.path.read_bytes() == content_of(n)
            if fate > 0.998:
                os.kill(os.getpid(), signal.SIGKILL)
            if runs_twice:
                time.sleep(0.005)
                other = 6 + rng.randrange(3)
                with cache.entry(key_of(other), lambda path: path.write_bytes(content_of(other))):
                    assert file.path.read_bytes() == content_of(n)
    except NotInArchive:
        if n % 6 != 5:
            raise


def damage(data, rng):
    """Change a byte of a file that nobody uses, as a bad disk would."""
    fd = try_exclusive(data)
    if fd is not None:
        at = rng.randrange(max(1, os.fstat(fd).st_size))
        byte = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([byte[0] ^ 4]) if byte else b"x", at)
        release(fd)


def size_now(folder):
    """Bytes on disk, while nobody may change them."""
    with exclusive(folder / ".ledger", Deadline(PATIENCE), "counting", keep=True):
        return look_through(folder).size


def test_random_work_of_many(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    folder.mkdir()
    max_bytes = 20_000  # 24 entries of 2 to 5 kB do not fit
    rng = random.Random(1)
    codes = []
    for generation in range(2):
        arguments = [(folder, max_bytes, 10 * generation + n, 250, log) for n in range(4)]
        with running(work_at_random, arguments) as processes:
            before = len(notes(log))
            victims = rng.sample(processes, 2)
            while any(process.is_alive() for process in processes):
                assert size_now(folder) <= max_bytes
                if victims and len(notes(log)) > before + 250:
                    victims.pop().kill()
                    before += 250
                time.sleep(0.02)
            codes += finished(processes)
    assert set(codes) <= {0, -signal.SIGKILL}  # none met a wrong byte or a missing file
    events = notes(log)
    assert {"hit", "miss", "stored", "evicted", "corrupt", "negative_hit"} <= set(events)
    cache = TemplateCache(folder, max_bytes=max_bytes)
    list(cache.verify())
    cache.prune()
    for n in range(24):
        if n % 6 != 5:
            with cache.entry(key_of(n), lambda path, n=n: path.write_bytes(content_of(n))) as file:
                assert file.path.read_bytes() == content_of(n)
    assert cache.statistics().size <= max_bytes
    assert not [p for p in folder.rglob("*") if p.suffix in (".tmp", ".lock")]
