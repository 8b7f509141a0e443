"""The files of an event, fetched over HTTP and from an object store, or refused."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.errors import ExposureError, InputRefused, InputUnavailable, InvalidEvent, UnusableInput
from service.events import ExposureEvent
from service.input_addresses import parse_prefix
from service.input_folder import private_folder
from service.input_limits import InputLimits
from service.inputs import located
from tests.archive.server import ArchiveServer

BODY = os.urandom(300_000)
LIMIT = 1_000_000


def event(science: str, **fields: Any) -> ExposureEvent:
    return ExposureEvent(exposure_id="a", science_uri=science, band="r", mjd_mid=61000.0, **fields)


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
    with ArchiveServer() as made:
        made.file("/in/a.fits.gz", BODY)
        made.file("/in/mask é.fits", b"mask")
        made.file("/out/a.fits", b"outside")
        yield made


@pytest.fixture
def limits(server: ArchiveServer, tmp_path: Path) -> InputLimits:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "b.fits").write_bytes(b"local")
    (tmp_path / "downloads").mkdir()
    return InputLimits(
        roots=(tmp_path / "root",),
        prefixes=(parse_prefix(f"{server.url}/in/"),),
        max_file_bytes=LIMIT,
        timeout_seconds=1.0,
        fetch_seconds=10.0,
        download_folder=tmp_path / "downloads",
    )


def left(limits: InputLimits) -> list[Path]:
    assert limits.download_folder is not None
    return list(limits.download_folder.iterdir())


def refusal(limits: InputLimits, uri: str, kind: type[ExposureError], **fields: Any) -> Any:
    with pytest.raises(kind) as caught, located(event(uri, **fields), limits):
        pytest.fail("it was handed out")
    assert left(limits) == []
    assert "\n" not in str(caught.value)
    return caught.value


def test_files_are_fetched_and_gone_afterwards(server: ArchiveServer, limits: InputLimits) -> None:
    uri, mask = f"{server.url}/in/a.fits.gz", f"{server.url}/in/mask%20%C3%A9.fits"
    local = str(limits.roots[0] / "b.fits")
    with located(event(uri, mask_uri=mask, weight_uri=local), limits) as files:
        exposure = files.exposure
        assert Path(exposure.science).read_bytes() == BODY
        assert Path(exposure.science).name == "a.fits.gz"
        assert exposure.mask is not None
        assert Path(exposure.mask).read_bytes() == b"mask"
        assert (exposure.weight, exposure.variance, exposure.origin) == (local, None, uri)
        said = files.in_its_words(f"{exposure.science}: damaged; {exposure.mask} and {local} too")
        assert said == f"{uri}: damaged; {mask} and {local} too"
        (folder,) = left(limits)
        assert folder.stat().st_mode & 0o077 == 0
    assert left(limits) == []


def test_files_go_with_an_exception_too(server: ArchiveServer, limits: InputLimits) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        located(event(f"{server.url}/in/a.fits.gz"), limits),
    ):
        raise ZeroDivisionError
    assert left(limits) == []


def test_nothing_is_fetched_before_all_uris_are_looked_at(
    server: ArchiveServer, limits: InputLimits
) -> None:
    uri = f"{server.url}/in/a.fits.gz"
    error = refusal(limits, uri, InvalidEvent, weight_uri=f"{server.url}/out/a.fits")
    assert "weight_uri" in str(error)
    refusal(limits, uri, InvalidEvent, mask_uri="/etc/passwd")
    assert server.count() == 0


@pytest.mark.parametrize("status", [404, 410, 408, 429, 500, 502, 503])
def test_what_may_come_later(server: ArchiveServer, limits: InputLimits, status: int) -> None:
    server.fault(status=status, retry_after="7")
    error = refusal(limits, f"{server.url}/in/a.fits.gz", InputUnavailable)
    assert error.retriable
    assert f"HTTP {status}" in str(error)
    assert error.retry_after == (None if status in (404, 410) else 7.0)


@pytest.mark.parametrize("status", [400, 401, 403, 405, 407, 451, 204, 206])
def test_what_does_not_help_to_try_again(
    server: ArchiveServer, limits: InputLimits, status: int
) -> None:
    server.fault(status=status)
    error = refusal(limits, f"{server.url}/in/a.fits.gz", InputRefused)
    assert not error.retriable
    assert f"HTTP {status}" in str(error)
    if status in (401, 403):
        assert "credentials" in str(error)


def test_no_credentials_are_sent(
    server: ArchiveServer, limits: InputLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with located(event(f"{server.url}/in/a.fits.gz"), limits):
        assert "Authorization" not in server.requests[0].headers


def test_nobody_listens(limits: InputLimits) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    closed = InputLimits(
        prefixes=(parse_prefix(f"http://127.0.0.1:{port}/in/"),),
        download_folder=limits.download_folder,
    )
    error = refusal(closed, f"http://127.0.0.1:{port}/in/a.fits", InputUnavailable)
    assert error.retriable
    assert "cannot be reached" in str(error)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"break_off": 1000}, "br"),
        ({"promise_more": 10}, "in time"),
        ({"delay": 20.0}, "in time"),
        ({"trickle_headers": 0.05}, "in time"),
    ],
)
def test_an_answer_that_does_not_come_whole(
    server: ArchiveServer, limits: InputLimits, fault: dict[str, Any], said: str
) -> None:
    server.fault(**fault)
    error = refusal(limits, f"{server.url}/in/a.fits.gz", InputUnavailable)
    assert error.retriable
    assert said in str(error)


def test_a_trickle_does_not_outlast_the_deadline(
    server: ArchiveServer, limits: InputLimits
) -> None:
    server.fault(trickle=0.01)
    started = time.monotonic()
    short = InputLimits(**{**vars(limits), "fetch_seconds": 0.5})
    error = refusal(short, f"{server.url}/in/a.fits.gz", InputUnavailable)
    assert "within the time" in str(error)
    assert time.monotonic() - started < 30  # all of it would take 47 s


def test_announced_size_is_looked_at_before_a_byte_is_read(
    server: ArchiveServer, limits: InputLimits
) -> None:
    server.file("/in/large.fits", bytes(LIMIT + 1))
    server.fault("large", trickle=10.0)  # whoever reads waits
    error = refusal(limits, f"{server.url}/in/large.fits", UnusableInput)
    assert "input.max_file_bytes" in str(error)


def test_a_body_without_end_is_cut_off(server: ArchiveServer, limits: InputLimits) -> None:
    server.file("/in/large.fits", bytes(5 * LIMIT))
    server.fault("large", no_length=True)
    error = refusal(limits, f"{server.url}/in/large.fits", UnusableInput)
    assert "input.max_file_bytes" in str(error)


def test_no_more_is_read_than_was_announced(limits: InputLimits) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + BODY)

        threading.Thread(target=answer, daemon=True).start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        terms = InputLimits(prefixes=(parse_prefix(base),), download_folder=limits.download_folder)
        with located(event(f"{base}liar.fits"), terms) as files:
            assert Path(files.exposure.science).stat().st_size == 1000


def test_local_files_have_a_largest_size_too(limits: InputLimits) -> None:
    with (limits.roots[0] / "large.fits").open("wb") as stream:
        stream.truncate(LIMIT + 1)
    error = refusal(limits, str(limits.roots[0] / "large.fits"), UnusableInput)
    assert "input.max_file_bytes" in str(error)


@pytest.mark.parametrize(
    "target",
    [
        "/out/a.fits",
        "http://localhost/in/a.fits.gz",
        "//evil.example.org/in/a.fits.gz",
        "https://127.0.0.1/in/a.fits.gz",
        "file:///etc/passwd",
        "ftp://127.0.0.1/in/a.fits.gz",
        "s3://in/a.fits.gz",
        "/in/../out/a.fits",
        "/in/%252e%252e/out/a.fits",
        "http://127.0.0.1:port@evil.example.org/in/a.fits.gz",
        "http://[::1",
        "",
    ],
)
def test_redirections_to_elsewhere(server: ArchiveServer, limits: InputLimits, target: str) -> None:
    server.fault("/in/a.fits.gz", redirect=target)
    error = refusal(limits, f"{server.url}/in/a.fits.gz", InputRefused)
    assert not error.retriable
    assert server.count() == (6 if target == "" else 1)


def test_redirections_below_the_prefix(server: ArchiveServer, limits: InputLimits) -> None:
    server.fault("/in/old.fits", redirect="a.fits.gz")
    with located(event(f"{server.url}/in/old.fits"), limits) as files:
        assert Path(files.exposure.science).read_bytes() == BODY


def test_from_https_to_http(server: ArchiveServer, limits: InputLimits) -> None:
    from core.deadline import Deadline
    from service.input_http import _redirected
    from service.input_limits import FetchTerms

    prefixes = tuple(parse_prefix(f"{scheme}://host/") for scheme in ("http", "https"))
    terms = FetchTerms(prefixes, LIMIT, 1.0, Deadline(1.0))
    secure, plain = (parse_prefix(f"{scheme}://host/") for scheme in ("https", "http"))
    with pytest.raises(InputRefused, match="scheme"):
        _redirected(secure, "http://host/a.fits", terms)
    assert _redirected(plain, "https://host/a.fits", terms).url == "https://host/a.fits"


def test_what_a_killed_worker_left_is_removed(limits: InputLimits) -> None:
    folder = limits.download_folder
    code = (
        "import sys, time; from pathlib import Path; from service.input_folder import *\n"
        f"with private_folder(Path({str(folder)!r})) as made:\n"
        "    (made / 'x').write_bytes(b'x'); print(made, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        made = Path(process.stdout.readline().decode().strip())
        with private_folder(folder):
            assert (made / "x").exists()  # its process is alive
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert made.exists()
    with private_folder(folder):
        assert not made.exists()


def test_no_folder_for_downloads(server: ArchiveServer, limits: InputLimits) -> None:
    nowhere = InputLimits(**{**vars(limits), "download_folder": limits.roots[0] / "b.fits"})
    with (
        pytest.raises(InputUnavailable, match=r"input\.download_folder"),
        located(event(f"{server.url}/in/a.fits.gz"), nowhere),
    ):
        pytest.fail("there is no folder")


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """An S3 server with a bucket; yields its file system."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3").clear_instance_cache()
        system = fsspec.filesystem("s3")
        system.mkdir("camera")
        system.pipe_file("camera/raw/night/a b%20c.fits", BODY)
        system.pipe_file("camera/other/a.fits", b"other")
        yield system
    server.stop()


@pytest.fixture
def s3_limits(store: Any, limits: InputLimits) -> InputLimits:
    return InputLimits(**{**vars(limits), "prefixes": (parse_prefix("s3://camera/raw/"),)})


def test_from_an_object_store(store: Any, s3_limits: InputLimits) -> None:
    store.pipe_file("camera/raw/a%20b.fits", BODY)
    uri = "s3://camera/raw/a%20b.fits"  # keys are literal
    with located(event(uri), s3_limits) as files:
        assert Path(files.exposure.science).read_bytes() == BODY
        assert files.exposure.origin == uri
    assert left(s3_limits) == []


def test_an_object_that_comes_later_is_seen(store: Any, s3_limits: InputLimits) -> None:
    error = refusal(s3_limits, "s3://camera/raw/later.fits", InputUnavailable)
    assert error.retriable
    assert "no such object" in str(error)
    store.pipe_file("camera/raw/later.fits", b"now")
    with located(event("s3://camera/raw/later.fits"), s3_limits) as files:
        assert Path(files.exposure.science).read_bytes() == b"now"


def test_an_object_that_is_too_large(store: Any, s3_limits: InputLimits) -> None:
    store.pipe_file("camera/raw/large.fits", bytes(LIMIT + 1))
    error = refusal(s3_limits, "s3://camera/raw/large.fits", UnusableInput)
    assert "input.max_file_bytes" in str(error)


def test_ways_out_of_the_bucket(store: Any, s3_limits: InputLimits) -> None:
    for uri in ("s3://camera/raw/../other/a.fits", "s3://camera/other/a.fits", "s3://x/raw/a.fits"):
        refusal(s3_limits, uri, InvalidEvent)
    refusal(s3_limits, "s3://camera/raw/night", UnusableInput)


def test_a_store_that_is_away(s3_limits: InputLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    fsspec.filesystem("s3").clear_instance_cache()
    error = refusal(s3_limits, "s3://camera/raw/a.fits", InputUnavailable)
    assert error.retriable
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_store_that_refuses(s3_limits: InputLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        fsspec.filesystem("s3").clear_instance_cache()
        error = refusal(s3_limits, "s3://camera/raw/a.fits", InputUnavailable)
        fsspec.filesystem("s3").clear_instance_cache()
        server.shutdown()
    assert isinstance(error, InputRefused)
    assert "credentials" in str(error)


#: Opened by shutil.rmtree, relative to the folder that it removes; the hook does not hear of that.
REMOVED = ("science", "mask")


class Watch:
    """Keeps what this process opens and connects to while it is on; there is no way to take an
    audit hook off again."""

    def __init__(self) -> None:
        self.on = False
        self.opened: list[str] = []
        self.connected: list[Any] = []
        self.run: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, name: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if name in ("open", "os.open") and isinstance(args[0], str | bytes | os.PathLike):
            path = os.fsdecode(args[0])
            if path not in REMOVED:
                self.opened.append(os.path.realpath(path))
        elif name == "socket.connect":
            self.connected.append(args[1])
        elif name in ("os.system", "subprocess.Popen", "exec", "compile", "os.exec"):
            self.run.append(name)


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


PIECES = st.sampled_from(
    ["/", "..", "../", "./", "%2e%2e/", "%252e%252e/", "%2f", "link", "dirlink/", "secret",
     "b.fits", "a.fits.gz", "in/", "out/", "to-file", "to-out", "file:", "file://", "http:", "s3:",
     "@", "?", "#", ";", "$(touch x)", "`id`", "\\", "%00", "é", "|id", "{0.__class__}", "%s", " "]
)  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(begin=2, parts=["to-out"], end="")
@example(begin=2, parts=["to-file"], end="")
@example(begin=0, parts=["link"], end="")
@example(begin=0, parts=["dirlink/", "secret"], end="")
@given(begin=st.integers(0, 4), parts=st.lists(PIECES, max_size=8), end=st.text(max_size=4))
def test_whatever_an_event_says_nothing_outside_is_opened(
    server: ArchiveServer,
    limits: InputLimits,
    watch: Watch,
    begin: int,
    parts: list[str],
    end: str,
) -> None:
    root = limits.roots[0]
    if not (root / "link").is_symlink():
        (root.parent / "secret").write_bytes(b"secret")
        (root / "link").symlink_to(root.parent / "secret")
        (root / "dirlink").symlink_to(root.parent)
        server.fault("/to-file", redirect=f"file://{root.parent}/secret")
        server.fault("/to-out", redirect="/out/a.fits")
    beginning = (f"{root}/", f"file://{root}/", f"{server.url}/in/", "s3://camera/raw/", "")[begin]
    uri = beginning + "".join(parts) + end
    server.forget()
    watch.opened.clear()
    watch.connected.clear()
    watch.run.clear()
    try:
        asked = event(uri)
    except ValueError:
        return  # not even an event
    short = InputLimits(**{**vars(limits), "fetch_seconds": 5.0})
    watch.on = True
    try:
        with located(asked, short) as files, open(files.exposure.science, "rb") as stream:
            stream.read(1)
    except ExposureError:
        pass
    finally:
        watch.on = False
    host, port = server.host.split(":")
    assert limits.download_folder is not None
    allowed = (os.path.realpath(root), os.path.realpath(limits.download_folder))
    system = (sys.prefix, sys.base_prefix, "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf")
    outside = [p for p in watch.opened if not p.startswith((*allowed, *system))]
    assert outside == [], uri
    assert os.path.realpath(root.parent / "secret") not in watch.opened
    assert set(watch.connected) <= {(host, int(port))}
    assert watch.run == []
    assert all(request.path.startswith("/in/") for request in server.requests)
