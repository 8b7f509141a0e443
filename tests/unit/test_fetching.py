"""Fetching from an archive that misbehaves in every way that archives do."""

from __future__ import annotations

import io
import pickle
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from core.deadline import Deadline
from core.errors import (
    ArchiveUnavailable,
    ForbiddenAddress,
    InputUnavailable,
    NoTemplate,
    NotInArchive,
    RequestRefused,
    UnexpectedAnswer,
)
from core.templates.fetching.addresses import host_of, redirected
from core.templates.fetching.fetcher import Content, Fetcher, FetchPolicy
from tests.archive.server import Answer, ArchiveServer


@cache  # checksum cards hold the time
def fits_bytes(checksum: bool = True, padded: bool = True) -> bytes:
    data = np.random.default_rng(1).normal(100, 10, (50, 60)).astype(np.float32)
    stream = io.BytesIO()
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, name="CELL")])
    hdus.writeto(stream, checksum=checksum)
    if not padded:
        stream = io.BytesIO()
        fits.PrimaryHDU(data).writeto(stream, checksum=checksum)
        return stream.getvalue()[: 2880 + data.nbytes]
    return stream.getvalue()


class Heard:
    """An observer that writes down."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int]] = []

    def requested(self, provider: str, result: str) -> None:
        raise AssertionError("fetching asks no provider")

    def cache(self, kind: str, event: str, size: int = 0, age: float = 0.0) -> None:
        raise AssertionError("fetching knows no cache")

    def fetched(self, host: str, size: int, seconds: float) -> None:
        assert seconds >= 0
        self.answers.append((host, size))


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ArchiveServer() as server:
        server.file("/cell.fits", fits_bytes())
        server.file("/list.txt", b"projcell subcell\n1322 0\n", "text/plain")
        yield server


def fetcher(archive: ArchiveServer, **policy: object) -> Fetcher:
    values = {"allowed_hosts": (archive.host,), "backoff_seconds": 0.01, "timeout_seconds": 5.0}
    return Fetcher(FetchPolicy(**{**values, **policy}))  # type: ignore[arg-type]


def soon() -> Deadline:
    return Deadline(20.0)


def download(archive: ArchiveServer, folder: Path, **policy: object) -> Path:
    return fetcher(archive, **policy).download(
        f"{archive.url}/cell.fits", folder / "cell.part", deadline=soon()
    )


def test_a_sound_file_arrives_byte_for_byte(archive: ArchiveServer, tmp_path: Path) -> None:
    assert download(archive, tmp_path).read_bytes() == fits_bytes()
    assert archive.count() == 1


def test_text_arrives_with_its_query(archive: ArchiveServer) -> None:
    answer = fetcher(archive).get(
        f"{archive.url}/list.txt",
        params={"ra": "10.5", "filters": "r&i"},
        deadline=soon(),
        expect=Content.TEXT,
    )
    assert answer.content.startswith(b"projcell")
    assert archive.requests[0].query == {"ra": "10.5", "filters": "r&i"}
    assert answer.headers["Content-Type"] == "text/plain"


def test_the_observer_hears_host_and_bytes(archive: ArchiveServer) -> None:
    heard = Heard()
    Fetcher(FetchPolicy((archive.host,)), heard).get(f"{archive.url}/list.txt", deadline=soon())
    assert heard.answers == [(archive.host, 24)]


def test_no_such_file_is_said_at_once(archive: ArchiveServer, tmp_path: Path) -> None:
    with pytest.raises(NotInArchive, match=r"hole\.fits: the archive has no such file \(HTTP 404"):
        fetcher(archive).download(f"{archive.url}/hole.fits", tmp_path / "x", deadline=soon())
    assert archive.count() == 1
    assert list(tmp_path.iterdir()) == []


def test_a_refused_request_is_not_repeated(archive: ArchiveServer, tmp_path: Path) -> None:
    archive.fault(status=400)
    with pytest.raises(RequestRefused, match="HTTP 400"):
        download(archive, tmp_path)
    assert archive.count() == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_archive_is_asked_again(archive: ArchiveServer, tmp_path: Path, status: int) -> None:
    archive.fault(status=status, times=2)
    assert download(archive, tmp_path).read_bytes() == fits_bytes()
    assert archive.count() == 3


def test_attempts_are_counted(archive: ArchiveServer, tmp_path: Path) -> None:
    archive.fault(status=503)
    with pytest.raises(ArchiveUnavailable, match="HTTP 503") as caught:
        download(archive, tmp_path, attempts=4)
    assert archive.count() == 4
    assert caught.value.retriable
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_waited_for(archive: ArchiveServer, tmp_path: Path, date: bool) -> None:
    # A date has whole seconds, so up to one of them is lost.
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    archive.fault(status=503, retry_after=when if date else "1", times=1)
    began = time.monotonic()
    download(archive, tmp_path)
    assert time.monotonic() - began > 0.9
    assert archive.count() == 2


def test_a_wait_beyond_the_deadline_is_not_waited_for(archive: ArchiveServer) -> None:
    archive.fault(status=503, retry_after="3600")
    began = time.monotonic()
    with pytest.raises(ArchiveUnavailable, match=r"3\.6e\+03 s would be after the deadline"):
        fetcher(archive).get(f"{archive.url}/list.txt", deadline=Deadline(30.0))
    assert time.monotonic() - began < 10
    assert archive.count() == 1


@pytest.mark.parametrize("text", ["after lunch", "Mon, 01 Jan 2024 00:00:00 +9999999999999"])
def test_a_nonsensical_retry_after_is_ignored(archive: ArchiveServer, text: str) -> None:
    archive.fault(status=503, retry_after=text, times=1)
    fetcher(archive).get(f"{archive.url}/list.txt", deadline=soon())
    assert archive.count() == 2


def test_a_silent_archive_is_given_up(archive: ArchiveServer) -> None:
    archive.fault(delay=30)
    with pytest.raises(ArchiveUnavailable, match="does not answer in time"):
        fetcher(archive, timeout_seconds=0.2, attempts=2).get(
            f"{archive.url}/list.txt", deadline=soon()
        )
    assert archive.count() == 2


def test_the_deadline_is_kept_by_a_silent_archive(archive: ArchiveServer) -> None:
    archive.fault(delay=30)
    began = time.monotonic()
    with pytest.raises(ArchiveUnavailable, match="deadline"):
        fetcher(archive, timeout_seconds=20.0).get(
            f"{archive.url}/list.txt", deadline=Deadline(0.3)
        )
    assert time.monotonic() - began < 5


def test_the_deadline_is_kept_by_a_trickle(archive: ArchiveServer, tmp_path: Path) -> None:
    archive.fault(trickle=0.1)  # always sending, never ready: 15 s for the file
    began = time.monotonic()
    with pytest.raises(ArchiveUnavailable, match=r"deadline passed after \d+ bytes of \d+"):
        fetcher(archive, attempts=1).download(
            f"{archive.url}/cell.fits", tmp_path / "x", deadline=Deadline(0.5)
        )
    assert time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pause", [0.012, 0.05])  # 12 s and 50 s; cut in their middle or value
def test_the_deadline_is_kept_by_a_trickle_of_headers(archive: ArchiveServer, pause: float) -> None:
    archive.fault(trickle_headers=pause)
    began = time.monotonic()
    with pytest.raises(ArchiveUnavailable, match="deadline passed"):
        fetcher(archive, attempts=1).get(f"{archive.url}/list.txt", deadline=Deadline(0.5))
    assert time.monotonic() - began < 5


def test_nothing_is_asked_after_the_deadline(archive: ArchiveServer) -> None:
    with pytest.raises(ArchiveUnavailable, match="deadline has passed"):
        fetcher(archive).get(f"{archive.url}/list.txt", deadline=Deadline(0.0))
    assert archive.count() == 0


@pytest.mark.parametrize("text", [False, True])
def test_a_page_with_status_200_is_tried_once_more(
    archive: ArchiveServer, tmp_path: Path, text: bool
) -> None:
    archive.fault(html=True)
    ours = fetcher(archive, attempts=5)

    def ask() -> object:
        url = f"{archive.url}/list.txt"
        if text:
            return ours.get(url, deadline=soon(), expect=Content.TEXT)
        return ours.download(url, tmp_path / "x", deadline=soon(), expect=Content.TEXT)

    with pytest.raises(UnexpectedAnswer, match="web page"):
        ask()
    assert archive.count() == 2
    assert list(tmp_path.iterdir()) == []


def test_a_page_once_is_overcome(archive: ArchiveServer, tmp_path: Path) -> None:
    archive.fault(html=True, times=1)
    assert download(archive, tmp_path).read_bytes() == fits_bytes()


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        ({"break_off": 1000}, "broke off after|connection broke off", 3),
        ({"promise_more": 1000, "break_off": 1}, "broke off", 3),
        ({"cut_file": 4000}, "damaged file: truncated", 2),
        ({"corrupt_at": -4000}, "is damaged|are damaged", 2),
        ({"corrupt_at": 90, "path": "cell"}, "damaged", 2),
        ({"html": True}, "web page", 2),
        ({"body": b"GIF89a" * 1000}, "is not a FITS file", 2),
        ({"body": b""}, "is empty", 2),
        ({"no_length": True, "cut_file": 4000}, "damaged file: truncated", 2),
    ],
)
def test_a_damaged_file_is_not_kept(
    archive: ArchiveServer, tmp_path: Path, fault: dict[str, object], message: str, requests: int
) -> None:
    archive.fault(**fault)  # type: ignore[arg-type]
    with pytest.raises(ArchiveUnavailable, match=message):
        download(archive, tmp_path)
    assert archive.count() == requests
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_fetched_again(archive: ArchiveServer, tmp_path: Path) -> None:
    archive.fault(break_off=1000, times=1)
    assert download(archive, tmp_path).read_bytes() == fits_bytes()
    assert archive.count() == 2


def test_an_answer_that_stalls_is_given_up(archive: ArchiveServer, tmp_path: Path) -> None:
    archive.fault(promise_more=1000)
    with pytest.raises(ArchiveUnavailable, match=r"in time|timed out|broke off"):
        download(archive, tmp_path, timeout_seconds=0.2, attempts=2)
    assert archive.count() == 2


def test_checksums_hold_where_the_last_padding_is_missing(
    archive: ArchiveServer, tmp_path: Path
) -> None:
    archive.file("/tile.fits", fits_bytes(padded=False))
    url = f"{archive.url}/tile.fits"
    fetcher(archive).download(url, tmp_path / "x", deadline=soon())
    archive.fault(corrupt_at=-5)
    with pytest.raises(UnexpectedAnswer, match="DATASUM"):
        fetcher(archive).download(url, tmp_path / "y", deadline=soon())


def test_a_corrupted_header_is_found_by_its_checksum(
    archive: ArchiveServer, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    hdu = fits.PrimaryHDU(np.ones((4, 4), np.float32))
    hdu.header["CRVAL1"] = 10.12345
    hdu.writeto(stream, checksum=True)
    body = stream.getvalue()
    archive.file("/tile.fits", body)
    archive.fault(corrupt_at=body.index(b"10.12345"))
    with pytest.raises(UnexpectedAnswer, match="CHECKSUM is wrong"):
        fetcher(archive).download(f"{archive.url}/tile.fits", tmp_path / "x", deadline=soon())


@pytest.mark.parametrize("stated", [True, False])
def test_too_large_is_refused(archive: ArchiveServer, tmp_path: Path, stated: bool) -> None:
    archive.fault(no_length=not stated)
    with pytest.raises(RequestRefused, match="limit of 5000"):
        download(archive, tmp_path, max_bytes=5000)
    assert archive.count() == 1
    assert list(tmp_path.iterdir()) == []


def test_a_redirection_on_the_host_is_followed(archive: ArchiveServer, tmp_path: Path) -> None:
    archive.fault("/old", redirect="/cell.fits")
    target = fetcher(archive).download(f"{archive.url}/old", tmp_path / "x", deadline=soon())
    assert target.read_bytes() == fits_bytes()


def test_a_redirection_elsewhere_is_refused(archive: ArchiveServer, tmp_path: Path) -> None:
    with ArchiveServer() as other:
        other.file("/cell.fits", fits_bytes())
        archive.fault(redirect=f"{other.url}/cell.fits")
        with pytest.raises(ForbiddenAddress, match="not among those"):
            download(archive, tmp_path)
        assert other.count() == 0
        allowed = fetcher(archive, allowed_hosts=(archive.host, other.host))
        allowed.download(f"{archive.url}/cell.fits", tmp_path / "x", deadline=soon())
        assert other.count() == 1


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1"])
def test_a_redirection_to_another_scheme_is_refused(
    archive: ArchiveServer, tmp_path: Path, to: str
) -> None:
    archive.fault(redirect=to)
    with pytest.raises(ForbiddenAddress):
        download(archive, tmp_path)
    assert archive.count() == 1


def test_a_circle_of_redirections_ends(archive: ArchiveServer, tmp_path: Path) -> None:
    archive.fault(redirect="/cell.fits")
    with pytest.raises(UnexpectedAnswer, match="redirected more than 5 times"):
        download(archive, tmp_path, attempts=1)
    assert archive.count() == 6


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://alasky.cds.unistra.fr/x",
        "//alasky.cds.unistra.fr/x",
        "https://evil.example/x",
        "https://alasky.cds.unistra.fr.evil.example/x",
        "https://alasky.cds.unistra.fr:8443/x",
        "https://alasky.cds.unistra.fr@evil.example/x",
        "https://user:word@alasky.cds.unistra.fr/x",
        "https://evil.example\\@alasky.cds.unistra.fr/x",
        "https://alasky.cds.unistra.fr/x\r\nHost: evil.example",
        "https://alasky.cds.unistra.fr:port/x",
        "",
    ],
)
def test_addresses_that_are_not_allowed(url: str) -> None:
    policy = FetchPolicy(("alasky.cds.unistra.fr",))
    with pytest.raises(ForbiddenAddress) as caught:
        Fetcher(policy).get(url, deadline=soon())
    assert isinstance(caught.value, NoTemplate)
    assert not caught.value.retriable


def test_a_refused_connection_is_retriable(archive: ArchiveServer) -> None:
    with ArchiveServer() as gone:
        pass
    with pytest.raises(InputUnavailable, match="cannot be reached") as caught:
        Fetcher(FetchPolicy((gone.host,), backoff_seconds=0.01)).get(
            f"{gone.url}/x", deadline=soon()
        )
    assert "\n" not in str(caught.value)


def test_a_disk_that_fails_is_not_the_archives_fault(
    archive: ArchiveServer, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        fetcher(archive).download(
            f"{archive.url}/cell.fits", tmp_path / "none" / "x", deadline=soon()
        )
    assert archive.count() == 1


def test_nothing_of_a_netrc_is_sent(
    archive: ArchiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    fetcher(archive).get(f"{archive.url}/list.txt", deadline=soon())
    assert "Authorization" not in archive.requests[0].headers


def test_many_threads_share_a_fetcher_and_it_travels(archive: ArchiveServer) -> None:
    shared = pickle.loads(pickle.dumps(fetcher(archive)))
    got: list[bytes] = []

    def work() -> None:
        for _ in range(5):
            got.append(shared.get(f"{archive.url}/list.txt", deadline=soon()).content)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"projcell subcell\n1322 0\n"] * 20


def test_fits_is_not_read_into_memory(archive: ArchiveServer) -> None:
    with pytest.raises(ValueError, match="use download"):
        fetcher(archive).get(f"{archive.url}/x", deadline=soon(), expect=Content.FITS)


def test_long_queries_are_not_repeated_in_messages(archive: ArchiveServer) -> None:
    archive.fault(status=400)
    with pytest.raises(RequestRefused) as caught:
        fetcher(archive).get(f"{archive.url}/x", params={"wcs": "y" * 2000}, deadline=soon())
    assert len(str(caught.value)) < 300


def test_what_the_archive_says_is_passed_on(archive: ArchiveServer) -> None:
    words = b'{"title": "Bad request",\n "description": "no such\x1b[2J survey"}'
    archive.route("/x", lambda request: Answer(words, 400, "application/json"))
    with pytest.raises(RequestRefused, match=r"no such .*2J survey") as caught:
        fetcher(archive).get(f"{archive.url}/x", deadline=soon())
    assert str(caught.value).isprintable()


def test_deadline() -> None:
    now = [100.0]
    deadline = Deadline(10.0, clock=lambda: now[0])
    assert deadline.remaining() == 10
    assert deadline.shorter(3).remaining() == 3
    assert deadline.shorter(30).remaining() == 10
    now[0] = 111.0
    assert deadline.expired
    assert deadline.remaining() == 0
    assert deadline.shorter(30).expired
    assert Deadline.never().remaining() == float("inf")
    with pytest.raises(ValueError, match="NaN"):
        Deadline(float("nan"))


def test_without_a_deadline_patience_ends_too(
    archive: ArchiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError(f"{seconds} s are slept")

    monkeypatch.setattr("core.templates.fetching.fetcher.time.sleep", sleep)
    archive.fault(status=503, retry_after="86400")
    with pytest.raises(ArchiveUnavailable, match=r"asks for 8\.64e\+04 s of patience"):
        fetcher(archive).get(f"{archive.url}/list.txt", deadline=Deadline.never())
    assert archive.count() == 1


def test_a_nonsensical_length_is_ignored(archive: ArchiveServer) -> None:
    archive.route("/x", lambda request: Answer(b"words", headers={"Content-Length": "9" * 5000}))
    archive.fault("/x", no_length=True)
    assert fetcher(archive).get(f"{archive.url}/x", deadline=soon()).content == b"words"


def test_the_words_of_a_refusal_are_not_waited_for(archive: ArchiveServer) -> None:
    words = b"begins" + b"." * 280 + b"finis"
    archive.route("/x", lambda request: Answer(words, 400, "text/plain"))
    archive.fault("/x", trickle=0.4)
    with pytest.raises(RequestRefused, match="begins") as caught:
        fetcher(archive).get(f"{archive.url}/x", deadline=soon())
    assert "finis" not in str(caught.value)


def test_a_redirection_leads_to_nothing_less_secure() -> None:
    assert redirected("https://a.example/x", "/y") == "https://a.example/y"
    assert redirected("http://a.example/x", "https://a.example/y") == "https://a.example/y"
    with pytest.raises(ForbiddenAddress, match="not secure"):
        redirected("https://a.example/x", "http://a.example/y")


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@alasky.cds.unistra.fr/x",
        "https://user:se@secret@alasky.cds.unistra.fr/x",
        "https://user:secret @alasky.cds.unistra.fr/x",
        "https://user:secret@alasky.cds.unistra.fr:port/x",
        "https://user:secret@alasky.cds.unistra\u2100.fr/x",
        "//user:secret@alasky.cds.unistra.fr/x",
    ],
)
def test_a_password_is_in_no_message(url: str) -> None:
    policy = FetchPolicy(("alasky.cds.unistra.fr",))
    with pytest.raises(ForbiddenAddress) as caught:
        Fetcher(policy).get(url, deadline=soon())
    assert "secret" not in str(caught.value)
    assert "alasky" in str(caught.value)


def test_a_host_is_named_without_its_user() -> None:
    assert host_of("https://user:secret@A.example:8443/x") == "a.example:8443"
