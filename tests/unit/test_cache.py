"""What the cache hands out, keeps and forgets, seen from one process."""

import errno
import json
import os
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.deadline import Deadline
from core.errors import ArchiveUnavailable, InputUnavailable, NotInArchive
from core.templates.cache import CacheKey, LockTimeout, NoCache, TemplateCache
from core.templates.cache.layout import Place
from core.templates.cache.locks import exclusive

KEY = CacheKey("tile", ("survey", "r", "Norder3/Npix1"))


class Log:
    """Remembers what an observer hears."""

    def __init__(self):
        self.events = []

    def cache(self, kind, event, size=0, age=0.0):
        self.events.append((kind, event, size, age))

    def requested(self, provider, result):
        raise AssertionError

    def fetched(self, host, size, seconds):
        raise AssertionError

    @property
    def names(self):
        return [event for _, event, _, _ in self.events]


def writes(content, facts=None):
    def make(path):
        path.write_bytes(content)
        return facts

    return make


def must_not_run(path):
    raise AssertionError("made again")


def key_of(n, kind="tile"):
    return CacheKey(kind, (str(n),))


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def cache(tmp_path, log):
    return TemplateCache(tmp_path / "cache", observer=log)


def content(cache, key, make, **options):
    with cache.entry(key, make, **options) as file:
        return file.path.read_bytes()


def names_in(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name != ".ledger")


def test_a_file_is_made_once(cache, log):
    with cache.entry(KEY, writes(b"pixels", {"url": "here"})) as file:
        assert file.path.read_bytes() == b"pixels"
        assert file.fresh
        assert file.source == {"url": "here"}
        assert file.path.name == KEY.digest + ".fits"
    again = TemplateCache(cache.folder, observer=log)
    with again.entry(KEY, must_not_run) as file:
        assert file.path.read_bytes() == b"pixels"
        assert not file.fresh
        assert file.source == {"url": "here"}
        assert 0 <= file.age < 60
    assert log.names == ["miss", "stored", "hit"]
    assert log.events[-1][2] == 6
    assert names_in(cache.folder) == [KEY.digest + ".fits", KEY.digest + ".json"]


def test_what_is_too_old_is_made_again(cache, log):
    content(cache, KEY, writes(b"old"))
    sidecar = Place.of(cache.folder, KEY).sidecar
    facts = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(facts | {"made": facts["made"] - 100}))
    assert content(cache, KEY, must_not_run, max_age=1000) == b"old"
    assert cache.peek(KEY, max_age=1000) is not None
    assert cache.peek(KEY, max_age=50) is None
    with cache.entry(KEY, must_not_run) as old:
        assert content(cache, KEY, writes(b"new"), max_age=50) == b"new"
        assert old.path.exists()
    assert content(cache, KEY, must_not_run, max_age=50) == b"new"
    assert log.names == ["miss", "stored", "hit", "hit", "miss", "stored", "hit"]


def test_keys_are_told_apart(cache):
    keys = [
        CacheKey("tile", ("a", "bc")),
        CacheKey("tile", ("ab", "c")),
        CacheKey("tile", ("abc",)),
        CacheKey("cell", ("a", "bc")),
        CacheKey("tile", ("a", "bc"), ".fits.fz"),
        CacheKey("tile", ("a", "bc", "")),
    ]
    for n, key in enumerate(keys):
        content(cache, key, writes(b"%d" % n))
    assert [content(cache, key, must_not_run) for key in keys] == [b"%d" % n for n in range(6)]


@given(st.lists(st.text(), max_size=4))
def test_no_identity_leads_out_of_the_folder(tmp_path_factory, identity):
    folder = tmp_path_factory.getbasetemp() / "identities"
    place = Place.of(folder, CacheKey("tile", tuple(identity)))
    for path in (place.data, place.sidecar, place.lock, place.temporary()):
        assert os.path.normpath(path) == str(path)
        assert path.parent.parent.parent == folder


@pytest.mark.parametrize("kind", ["", "..", "a/b", "A", "a_b", "-a", "a" * 41, "a\n", ".ledger"])
def test_no_kind_leads_out_of_the_folder(kind):
    with pytest.raises(ValueError, match="kind"):
        CacheKey(kind, ())


@pytest.mark.parametrize("suffix", ["", "fits", "/x", "./..", ".json", ".x.tmp", ".lock", ".\n"])
def test_no_suffix_leads_out_of_the_folder_or_to_our_own_files(suffix):
    with pytest.raises(ValueError, match="ending"):
        CacheKey("tile", (), suffix)


def damage_flip(data):
    changed = bytearray(data.read_bytes())
    changed[3] ^= 1
    data.write_bytes(changed)


def damage_short(data):
    data.write_bytes(data.read_bytes()[:-1])


def damage_long(data):
    data.write_bytes(data.read_bytes() + b"x")


def damage_gone(data):
    data.unlink()


def damage_folder(data):
    data.unlink()
    data.mkdir()


def damage_sidecar(data):
    data.with_suffix(".json").write_bytes(b'{"version": 1, "kind"')


def damage_sidecar_types(data):
    sidecar = data.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"made": "yesterday"}))


def damage_other(data):
    sidecar = data.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"identity": ["other"]}))


@pytest.mark.parametrize(
    "damage",
    [damage_flip, damage_short, damage_long, damage_gone, damage_sidecar, damage_sidecar_types,
     damage_other],
)  # fmt: skip
def test_a_damaged_entry_is_made_again_and_never_served(cache, log, damage):
    content(cache, KEY, writes(b"pixels"))
    damage(Place.of(cache.folder, KEY).data)
    assert content(cache, KEY, writes(b"anew")) == b"anew"
    assert content(cache, KEY, must_not_run) == b"anew"
    assert log.names == ["miss", "stored", "corrupt", "miss", "stored", "hit"]


def test_a_file_without_description_is_made_again(cache):
    content(cache, KEY, writes(b"pixels"))
    Place.of(cache.folder, KEY).sidecar.unlink()
    assert content(cache, KEY, writes(b"anew")) == b"anew"


def test_a_folder_in_the_place_of_a_file_is_left_alone(cache, log, caplog):
    content(cache, KEY, writes(b"pixels"))
    damage_folder(Place.of(cache.folder, KEY).data)
    for _ in range(2):
        assert content(cache, KEY, writes(b"anew")) == b"anew"
    assert log.names[-1] == "unkept"
    assert sum("cannot keep" in r.message for r in caplog.records) == 1
    assert not list(cache.folder.rglob("*.tmp"))


def test_what_is_verified_and_removed_by_command(cache):
    for n in range(3):
        content(cache, key_of(n), writes(b"%d" % n * 100))
    damage_flip(Place.of(cache.folder, key_of(1)).data)
    damage_sidecar(Place.of(cache.folder, key_of(2)).data)
    damaged = {entry.stored.digest: entry.damage for entry in cache.verify()}
    assert damaged == {
        key_of(1).digest: "its checksum is wrong",
        key_of(2).digest: "its description cannot be read",
    }
    assert [entry.sidecar.identity for entry in cache.entries()] == [("0",)]
    assert list(cache.verify()) == []


def test_a_hole_is_remembered_for_a_while(cache, log):
    def hole(path):
        path.write_bytes(b"an error page")
        raise NotInArchive("no such cell")

    with pytest.raises(NotInArchive, match=r"^no such cell$"):
        content(cache, KEY, hole)
    with pytest.raises(NotInArchive, match=r"no such cell.*known for"):
        content(cache, KEY, must_not_run)
    assert log.names == ["miss", "stored", "negative_hit"]
    assert names_in(cache.folder) == [KEY.digest + ".json"]
    assert cache.statistics().kinds["tile"].holes == 1

    sidecar = Place.of(cache.folder, KEY).sidecar
    values = json.loads(sidecar.read_text())
    for until in (time.time() - 1, time.time() + 10 * cache.negative_seconds):
        sidecar.write_text(json.dumps(values | {"until": until}))
        with pytest.raises(NotInArchive, match=r"^again$"):
            content(cache, KEY, raises(NotInArchive("again")))
    sidecar.write_text(json.dumps(values | {"until": 0}))
    assert content(cache, KEY, writes(b"filled")) == b"filled"
    assert content(cache, KEY, must_not_run) == b"filled"


def raises(error):
    def make(path):
        path.write_bytes(b"half")
        raise error

    return make


@pytest.mark.parametrize(
    "error", [ArchiveUnavailable("busy"), OSError(errno.EIO, "bad disk"), KeyError("defect")]
)
def test_a_failure_is_not_remembered_and_leaves_nothing(cache, error):
    with pytest.raises(type(error)):
        content(cache, KEY, raises(error))
    assert names_in(cache.folder) == []
    assert content(cache, KEY, writes(b"now")) == b"now"


def test_the_least_recently_used_goes_first(tmp_path, log):
    cache = TemplateCache(tmp_path, max_bytes=9_900, observer=log)
    for n in range(4):
        content(cache, key_of(n), writes(b"x" * 2100))
        os.utime(Place.of(tmp_path, key_of(n)).data, (1e9 + n, 1e9 + n))
    content(cache, key_of(0), must_not_run)  # used now
    content(cache, key_of(4), writes(b"x" * 2100))
    assert {entry.sidecar.identity[0] for entry in cache.entries()} == {"0", "3", "4"}
    assert cache.statistics().size <= 9_900 * 0.9  # not again for the next
    assert log.names.count("evicted") == 2
    assert min(age for _, event, _, age in log.events if event == "evicted") > 1e6


def test_what_is_in_use_stays_and_the_size_too(tmp_path, log):
    cache = TemplateCache(tmp_path, max_bytes=5000, observer=log)
    with (
        cache.entry(key_of(0), writes(b"0" * 2000)) as a,
        cache.entry(key_of(1), writes(b"1" * 2000)) as b,
    ):
        with cache.entry(key_of(2), writes(b"2" * 2000)) as c:
            assert [f.path.read_bytes()[:1] for f in (a, b, c)] == [b"0", b"1", b"2"]
            assert cache.statistics().size <= 5000
        assert not c.path.exists()
        assert log.names[-1] == "unkept"
        cache.prune(0)
        assert a.path.read_bytes() == b"0" * 2000
    assert cache.prune(0).entries == 2
    assert names_in(tmp_path) == []


def test_a_file_larger_than_the_cache_does_not_sweep_it(tmp_path):
    cache = TemplateCache(tmp_path, max_bytes=5000)
    content(cache, key_of(0), writes(b"0" * 2000))
    assert content(cache, key_of(1), writes(b"1" * 6000)) == b"1" * 6000
    assert [entry.sidecar.identity[0] for entry in cache.entries()] == ["0"]


def test_what_could_not_be_kept_stays_while_it_is_used(tmp_path):
    cache = TemplateCache(tmp_path, max_bytes=500)
    with (
        cache.entry(KEY, writes(b"0" * 600)) as first,
        cache.entry(KEY, writes(b"1" * 600)) as second,
    ):
        cache.prune(0)
        assert first.path.read_bytes() == b"0" * 600
        assert second.path.read_bytes() == b"1" * 600
    assert names_in(tmp_path) == []


def test_a_folder_that_was_filled_before_is_counted(tmp_path):
    for n in range(6):
        content(TemplateCache(tmp_path), key_of(n), writes(b"x" * 2000))
    for ledger in (None, b"", b"garbage", b"-5", b"0"):
        if ledger is None:
            (tmp_path / ".ledger").unlink()
        else:
            (tmp_path / ".ledger").write_bytes(ledger)
        if ledger != b"0":  # nobody but the cache writes a number there
            content(TemplateCache(tmp_path, max_bytes=9000), key_of(9), writes(b"x" * 2000))
            assert TemplateCache(tmp_path).statistics().size <= 9000
            (tmp_path / ".ledger").write_bytes(b"")


def test_files_of_others_are_neither_counted_nor_touched(cache):
    content(cache, KEY, writes(b"pixels"))
    place = Place.of(cache.folder, KEY)
    strangers = [
        cache.folder / "README",
        cache.folder / "tile" / "notes.txt",
        cache.folder / "tile" / KEY.digest[:2] / "photo.fits",
        cache.folder / "tile" / KEY.digest[:2] / ("f" * 64 + ".fits"),
        cache.folder / "Our Folder" / "ab" / ("ab" + "0" * 62 + ".fits"),
        place.data.with_name(KEY.digest + ".backup.tmp"),
    ]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_bytes(b"mine")
    assert cache.statistics().entries == 1
    assert list(cache.verify()) == []
    assert cache.prune(0).entries == 1
    assert not place.data.exists()
    assert [s.read_bytes() for s in strangers] == [b"mine"] * len(strangers)


def test_what_killed_makers_left_is_cleared_up(cache):
    content(cache, KEY, writes(b"pixels"))
    shelf = Place.of(cache.folder, KEY).data.parent
    other = key_of(7)
    elsewhere = Place.of(cache.folder, other)
    elsewhere.lock.parent.mkdir(parents=True, exist_ok=True)
    (shelf / f"{KEY.digest}.0a1b2c3d.tmp").write_bytes(b"half")
    (shelf / f"{KEY.digest}.0a1b2c3d.tmp.2.tmp").write_bytes(b"a plane of a cell to be binned")
    elsewhere.lock.touch()
    elsewhere.temporary().write_bytes(b"half")
    elsewhere.data.write_bytes(b"renamed, and then killed")
    assert len(Place.of(cache.folder, KEY).leftovers()) == 2
    cache.prune()
    assert names_in(cache.folder) == [KEY.digest + ".fits", KEY.digest + ".json"]


def test_a_maker_at_work_is_not_cleared_up(cache):
    def make(path):
        path.write_bytes(b"half")
        cache.prune(0)
        assert path.read_bytes() == b"half"

    assert content(cache, KEY, make) == b"half"


def test_one_waits_no_longer_than_its_deadline(cache, log):
    place = Place.of(cache.folder, KEY)
    place.lock.parent.mkdir(parents=True)
    with (
        exclusive(place.lock, None, "another"),
        pytest.raises(InputUnavailable, match="longer than there was time"),
    ):
        content(cache, KEY, must_not_run, deadline=Deadline(0.05))
    assert log.names == ["wait"]
    assert content(cache, KEY, writes(b"free"), deadline=Deadline(5)) == b"free"


@contextmanager
def mounted(folder, *options):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_folder_serves_what_it_has(tmp_path, log, caplog):
    writable = tmp_path / "writable"
    content(TemplateCache(writable), KEY, writes(b"kept"))
    with mounted(tmp_path / "readonly", "--bind", str(writable)) as folder:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        cache = TemplateCache(folder, observer=log)
        assert content(cache, KEY, must_not_run) == b"kept"
        for n in range(2):
            with cache.entry(key_of(n), writes(b"private")) as file:
                assert file.path.read_bytes() == b"private"
                assert folder not in file.path.parents
            assert not file.path.exists()
        with pytest.raises(NotInArchive):
            content(cache, key_of(3), raises(NotInArchive("hole")))
    assert log.names == ["hit", "unkept", "unkept", "unkept"]
    assert sum("cannot keep" in r.message for r in caplog.records) == 1


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, log, caplog):
    (tmp_path / "file").write_bytes(b"in the way")
    cache = TemplateCache(tmp_path / "file" / "cache", observer=log)
    for _ in range(2):
        assert content(cache, KEY, writes(b"private")) == b"private"
    assert log.names == ["unkept", "unkept"]
    assert sum("cannot keep" in r.message for r in caplog.records) == 1
    assert cache.prune().entries == 0
    assert cache.statistics().entries == 0


def test_a_full_disk_is_cleared_and_then_done_without(tmp_path, log):
    megabyte = b"x" * 1_000_000
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=3500k", "tmpfs") as folder:
        cache = TemplateCache(folder, observer=log)
        for n in range(3):
            content(cache, key_of(n), writes(megabyte))
        # No room for a fourth and fifth: the oldest go.
        for n in (3, 4):
            with cache.entry(key_of(n), writes(megabyte)) as file:
                assert folder in file.path.parents
        assert log.names.count("evicted") >= 1
        assert log.names.count("unkept") == 0
        # All in use: it is made elsewhere.
        with (
            cache.entry(key_of(5), writes(megabyte)),
            cache.entry(key_of(6), writes(megabyte)),
            cache.entry(key_of(7), writes(megabyte)),
            cache.entry(key_of(8), wrapped(megabyte)) as file,
        ):
            assert folder not in file.path.parents
            assert file.path.read_bytes() == megabyte
        assert log.names[-1] == "unkept"
        assert content(cache, key_of(9), writes(b"goes on")) == b"goes on"
        assert not list(folder.rglob("*.tmp"))
        assert not list(folder.rglob("*.lock"))


def wrapped(data):
    """A maker that says in its own words that the disk is full."""

    def make(path):
        try:
            path.write_bytes(data)
        except OSError as error:
            raise ArchiveUnavailable("could not be written") from error

    return make


def test_no_room_anywhere_is_said(tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        with pytest.raises(InputUnavailable, match="no room"):
            content(TemplateCache(folder / "cache"), KEY, writes(b"x" * 2_000_000))


def test_without_a_cache_every_file_is_made_and_removed():
    for _ in range(2):
        with NoCache().entry(KEY, writes(b"pixels", {"url": "here"})) as file:
            assert file.path.read_bytes() == b"pixels"
            assert file.fresh
            assert file.source == {"url": "here"}
        assert not file.path.exists()
    with pytest.raises(NotInArchive):
        content(NoCache(), KEY, raises(NotInArchive("hole")))


def test_a_lock_is_held_by_one_even_when_it_changes_hands(tmp_path):
    lock = tmp_path / "lock"
    waits, goes_on, ends = threading.Event(), threading.Event(), threading.Event()

    def second():
        with exclusive(lock, Deadline(60), "second", on_wait=waits.set):
            goes_on.set()
            ends.wait(60)

    thread = threading.Thread(target=second)
    with exclusive(lock, None, "first"):
        thread.start()
        assert waits.wait(60)
    try:
        assert goes_on.wait(60)
        with pytest.raises(LockTimeout), exclusive(lock, Deadline(0.05), "third"):
            pass
    finally:
        ends.set()
        thread.join()
    assert not lock.exists()


def test_a_lock_that_cannot_be_had_leaves_no_file_open(tmp_path, monkeypatch):
    def refuse(fd, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    def lowest_free():
        fd = os.dup(1)
        os.close(fd)
        return fd

    monkeypatch.setattr("core.templates.cache.locks.fcntl.flock", refuse)
    before = lowest_free()
    with pytest.raises(OSError, match="not implemented"), exclusive(tmp_path / "lock", None, "it"):
        pass
    assert lowest_free() == before
