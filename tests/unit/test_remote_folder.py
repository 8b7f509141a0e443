"""Templates in an object store or on a web server, fetched once and then used from the cache."""

import base64
import gzip
import shutil
import ssl
import subprocess
import threading
from contextlib import contextmanager, nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from astropy.io import fits

from core.deadline import Deadline
from core.errors import ArchiveUnavailable, InputUnavailable, NoTemplate
from core.image import MaskBit
from core.templates.cache import TemplateCache
from core.templates.directory import DirectoryTemplates
from tests.unit.test_templates_directory import put, request, tan

BIG = (400, 500)  # 800 kB: more than a range


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with its listing; notes what is asked, and obeys ranges if it may."""

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        with self.server.together if ".fits" in self.path else nullcontext():
            self.answer()

    def answer(self):
        if self.refused():
            return
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header(self.server.redirect_header, self.server.redirects[self.path])
            self.end_headers()
            return
        path = Path(self.translate_path(self.path))
        if self.path in self.server.broken:
            self.send_error(503)
        elif self.server.ranges and path.is_file():
            self.answer_part(path.read_bytes())
        else:
            super().do_GET()

    def do_HEAD(self):
        self.server.asked.append((self.command, self.path, None))
        with self.server.together:
            self.answer_head()

    def answer_head(self):
        if self.refused():
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        self.send_response(200)
        if self.server.sizes:
            self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def refused(self):
        if self.server.wanted in (None, self.headers.get("Authorization")):
            return False
        self.send_error(401)
        return True

    def answer_part(self, data):
        part, first, wanted = data, 0, self.headers.get("Range")
        if wanted:
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Say nothing: who needs headers only breaks the connection off."""


class Together:
    """Counts who is in it at a time; those of some number wait for each other."""

    def __init__(self, wanted=1):
        self.most, self._inside = 0, 0
        self._wanted = wanted
        self._change = threading.Condition()

    def __enter__(self):
        with self._change:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self._change.notify_all()
            if not self._change.wait_for(lambda: self.most >= self._wanted, timeout=5):
                self._wanted = 1  # they do not come together; nobody waits any more

    def __exit__(self, *error):
        with self._change:
            self._inside -= 1


@contextmanager
def serving(folder, *, ranges=True, sizes=True, tls=None):
    handler = partial(Handler, directory=str(folder))
    with Server(("127.0.0.1", 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.asked, server.redirects, server.broken = [], {}, set()
        server.redirect_header = "Location"
        server.together = Together()
        server.wanted = None
        server.ranges, server.sizes = ranges, sizes
        server.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def survey(tmp_path):
    folder = tmp_path / "survey"
    put(folder / "deep" / "a.fits", tan(shape=BIG), shape=BIG, FILTER="r", MAGZP=25.0, MAGLIM=23.0)
    mask = np.zeros(BIG, np.uint8)
    mask[10, 20] = 1
    fits.PrimaryHDU(mask).writeto(folder / "deep" / "a.mask.fits")
    put(folder / "b.fits", tan(shape=BIG), shape=BIG, FILTER="r", MAGZP=25.0, MAGLIM=21.0)
    put(folder / "far.fits", tan(40.0), FILTER="r")
    put(folder / ".unfinished.fits", tan(), FILTER="r", MAGLIM=30.0)
    (folder / "notes.txt").write_text("not mine")
    return folder


def upload(folder, system, root):
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"{root}/{path.relative_to(folder)}", path.read_bytes())


def check_found(templates, folder, url):
    template = templates.find(request())
    assert template.facts.template_id == "deep/a.fits"
    assert template.image.name == "a.fits"
    assert template.facts.zero_point == 25.0
    np.testing.assert_array_equal(template.image.data, fits.getdata(folder / "deep" / "a.fits"))
    assert template.image.mask[10, 20] == MaskBit.BAD
    assert template.identity == templates.identify(request())
    assert any(f"{url}/deep/a.fits " in part for part in template.identity)
    return template


@pytest.fixture
def memory(survey):
    system = fsspec.filesystem("memory")
    upload(survey, system, "/survey")
    yield system
    system.rm("/survey", recursive=True)


def test_in_memory(memory, survey, tmp_path):
    cache = TemplateCache(tmp_path / "cache")
    check_found(DirectoryTemplates("memory://survey", cache=cache), survey, "memory:///survey")
    kinds = cache.statistics().kinds
    assert kinds["template-file"].entries == 2
    assert kinds["template-headers"].entries == 3
    assert kinds["template-headers"].size < 20_000


def test_a_change_is_seen_when_it_is_looked_for(memory, survey, tmp_path):
    cache = TemplateCache(tmp_path / "cache")
    patient = DirectoryTemplates("memory://survey", cache=cache, refresh_seconds=1e6)
    eager = DirectoryTemplates("memory://survey", cache=cache, refresh_seconds=0)
    before = patient.find(request())
    changed = put(survey / "deep" / "a.fits", tan(shape=BIG), shape=BIG, seed=9, FILTER="r")
    memory.pipe_file("/survey/deep/a.fits", changed.read_bytes())
    assert patient.find(request()).identity == before.identity
    assert eager.find(request()).facts.template_id == "b.fits"  # it has lost its depth
    memory.rm("/survey/b.fits")
    after = eager.find(request())
    assert after.identity != before.identity
    np.testing.assert_array_equal(after.image.data, fits.getdata(changed))


def test_a_file_that_is_not_as_long_as_listed_is_not_used(memory, survey, tmp_path):
    templates = DirectoryTemplates("memory://survey", refresh_seconds=1e6)
    templates.identify(request())
    for name in ("deep/a.fits", "b.fits"):
        memory.pipe_file(f"/survey/{name}", (survey / name).read_bytes()[:-100])
    with pytest.raises(ArchiveUnavailable, match="the listing says"):
        templates.find(request())


def test_by_http_with_ranges(survey, tmp_path):
    pytest.importorskip("aiohttp")
    cache = TemplateCache(tmp_path / "cache")
    with serving(survey) as server:
        templates = DirectoryTemplates(server.url, cache=cache)
        templates.identify(request())
        fetched = [each for each in server.asked if each[0] == "GET" and ".fits" in each[1]]
        assert {path for _, path, _ in fetched} == {"/b.fits", "/deep/a.fits", "/far.fits"}
        assert len(fetched) == 3
        assert all(int(wanted.rpartition("-")[2]) < 100_000 for _, _, wanted in fetched)
        check_found(templates, survey, server.url)
        whole = len(server.asked)
        check_found(templates, survey, server.url)
        assert len(server.asked) == whole
        another = DirectoryTemplates(server.url, cache=cache)
        check_found(another, survey, server.url)
        assert not [each for each in server.asked[whole:] if each[0] == "GET" and "fits" in each[1]]


@pytest.mark.parametrize("sizes", [True, False])
def test_by_http_without_ranges(survey, tmp_path, monkeypatch, sizes):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("core.templates.remote_folder._CHUNK", 100_000)
    with serving(survey, ranges=False, sizes=sizes) as server:
        templates = DirectoryTemplates(server.url, cache=TemplateCache(tmp_path / "cache"))
        check_found(templates, survey, server.url)
        gets = [
            path for command, path, _ in server.asked if (command, path[-5:]) == ("GET", ".fits")
        ]
        if sizes:
            assert gets.count("/deep/a.fits") == 2  # once for its headers, broken off, and whole


def test_another_host_is_not_asked(survey, tmp_path):
    """Neither by a redirection nor by a link of the listing."""
    pytest.importorskip("aiohttp")
    other_folder = tmp_path / "other"
    put(other_folder / "z.fits", tan(shape=BIG), shape=BIG, FILTER="r", MAGLIM=29.0)
    with serving(other_folder) as other, serving(survey) as server:
        (survey / "index.html").write_text(
            f'<a href="{other.url}/z.fits">z</a> <a href="../../z.fits">up</a>'
            f'<a href="b.fits">b</a> <a href="moved.fits">m</a>'
        )
        put(survey / "moved.fits", tan(), FILTER="r", MAGLIM=29.0)
        templates = DirectoryTemplates(server.url)
        assert [f.name for f in templates._folder.files(None)] == ["b.fits", "moved.fits"]
        server.redirects["/moved.fits"] = f"{other.url}/z.fits"
        assert templates.find(request()).facts.template_id == "b.fits"
        assert other.asked == []


def many(folder, number=20, **cards):
    for k in range(number):
        put(folder / f"a{k:02d}.fits", tan(10 + 2.0 * k, shape=BIG), shape=BIG, FILTER="r", **cards)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_headers_are_asked_for_side_by_side_but_not_all_at_once(tmp_path, method):
    pytest.importorskip("aiohttp")
    many(tmp_path / "survey")
    with serving(tmp_path / "survey") as server:
        templates = DirectoryTemplates(server.url, refresh_seconds=1e6)
        if method == "GET":
            assert len(templates._folder.files(None)) == 20
        server.together = Together(8)
        templates.identify(request())
        assert server.together.most == 8
        assert [name for _, name, _ in server.asked].count("/a19.fits") == 2  # HEAD, then GET


def test_only_headers_are_fetched_and_each_with_one_request(tmp_path):
    """Of 800 kB a file, 14 kB of which are its header."""
    pytest.importorskip("aiohttp")
    many(tmp_path / "survey", 5, **{f"KEY{k:05d}": float(k) for k in range(150)})
    with serving(tmp_path / "survey") as server:
        DirectoryTemplates(server.url).identify(request())
        parts = [part for method, path, part in server.asked if "fits" in path and method == "GET"]
        assert parts == ["bytes=0-31679"] * 5
        assert len(server.asked) == 12  # two for the listing; the size of each is asked for once


def test_a_long_header_takes_several_parts(tmp_path):
    pytest.importorskip("aiohttp")
    many(tmp_path / "survey", 1, **{f"KEY{k:05d}": float(k) for k in range(900)})
    with serving(tmp_path / "survey") as server:
        assert DirectoryTemplates(server.url).identify(request())
        parts = [part for method, path, part in server.asked if "fits" in path and method == "GET"]
        assert parts == ["bytes=0-31679", "bytes=31680-63359", "bytes=63360-95039"]


def test_of_a_server_without_parts_a_file_with_a_long_header_is_fetched_whole(tmp_path):
    pytest.importorskip("aiohttp")
    many(tmp_path / "survey", 1, **{f"KEY{k:05d}": float(k) for k in range(900)})
    with serving(tmp_path / "survey", ranges=False) as server:
        cache = TemplateCache(tmp_path / "cache")
        assert DirectoryTemplates(server.url, cache=cache).identify(request())
        assert cache.statistics().kinds["template-file"].entries == 1


def test_a_server_that_breaks_down_is_not_asked_for_everything(tmp_path):
    pytest.importorskip("aiohttp")
    many(tmp_path / "survey", 60)
    with serving(tmp_path / "survey") as server:
        server.broken = {f"/a{k:02d}.fits" for k in range(60)}
        templates = DirectoryTemplates(server.url)
        with pytest.raises(ArchiveUnavailable, match="a02"):
            templates.identify(request())
        assert len({path for method, path, _ in server.asked if method == "GET"}) < 40
        server.broken = set()
        assert templates.identify(request())


@pytest.mark.parametrize(
    ("header", "location"),
    [
        ("Location", "{other}/z.fits"),
        ("URI", "{other}/z.fits"),  # which aiohttp follows too
        ("Location", "//{host}/z.fits"),
        ("Location", "file:///etc/passwd"),
        ("Location", "ftp://127.0.0.1/z.fits"),
        ("Location", "http://[::1/z.fits"),
    ],
)
def test_a_redirection_leads_nowhere_else(survey, tmp_path, header, location, caplog):
    pytest.importorskip("aiohttp")
    put(tmp_path / "other" / "z.fits", tan(shape=BIG), shape=BIG, FILTER="r", MAGLIM=29.0)
    with serving(tmp_path / "other") as other, serving(survey) as server:
        server.redirect_header = header
        host = other.url.removeprefix("http://")
        server.redirects["/deep/a.fits"] = location.format(other=other.url, host=host)
        templates = DirectoryTemplates(server.url)
        assert templates.find(request()).facts.template_id == "b.fits"
        assert other.asked == []
    assert "deep/a.fits: the server sends us to" in caplog.text


@pytest.fixture
def tls(tmp_path):
    """Both ends of a connection to 127.0.0.1: the server's context, and the client's."""
    openssl = shutil.which("openssl") or pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    files = ["-keyout", key, "-out", certificate]
    names = ["-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*make, *files, *names], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


@pytest.mark.parametrize("to", ["{host}", "{other}"])
def test_a_secure_server_does_not_lead_to_an_insecure_one(survey, tmp_path, tls, to, caplog):
    """Not even one of the same host and port: anybody may answer there."""
    pytest.importorskip("aiohttp")
    server_side, client_side = tls
    put(tmp_path / "other" / "z.fits", tan(shape=BIG), shape=BIG, FILTER="r", MAGLIM=29.0)
    with serving(tmp_path / "other") as other, serving(survey, tls=server_side) as server:
        where = {"host": server.url.partition("//")[2], "other": other.url.partition("//")[2]}
        templates = DirectoryTemplates(server.url, options={"ssl": client_side})
        assert templates.find(request()).facts.template_id == "deep/a.fits"
        server.asked.clear()
        server.redirects["/deep/a.fits"] = f"http://{to.format(**where)}/z.fits"
        templates = DirectoryTemplates(server.url, options={"ssl": client_side})
        assert templates.find(request()).facts.template_id == "b.fits"
        assert other.asked == []
        assert not any("z.fits" in path for _, path, _ in server.asked)
        assert f"sends us to http://{to.format(**where)}" in caplog.text
        # Where it stays on the server it is followed.
        server.redirects["/deep/a.fits"] = "/b.fits"
        caplog.clear()
        assert DirectoryTemplates(server.url, options={"ssl": client_side}).find(request())
        assert "sends us" not in caplog.text


def test_a_server_that_is_not_there_may_come_back(survey, tmp_path):
    pytest.importorskip("aiohttp")
    with serving(survey) as server:
        url = server.url
    with pytest.raises(InputUnavailable) as raised:
        DirectoryTemplates(url).find(request())
    assert raised.value.retriable


def test_what_is_in_the_cache_is_used_while_the_server_is_away(survey, tmp_path):
    pytest.importorskip("aiohttp")
    with serving(survey) as server:
        cache = TemplateCache(tmp_path / "cache")
        templates = DirectoryTemplates(server.url, cache=cache, refresh_seconds=0)
        check_found(templates, survey, server.url)
    check_found(templates, survey, server.url)


def test_a_file_that_cannot_be_fetched_now_is_tried_again(survey, tmp_path):
    pytest.importorskip("aiohttp")
    with serving(survey) as server:
        server.broken.add("/deep/a.fits")
        templates = DirectoryTemplates(server.url, cache=TemplateCache(tmp_path / "cache"))
        assert templates.find(request()).facts.template_id == "b.fits"
        server.broken.clear()
        check_found(templates, survey, server.url)


def test_a_file_is_named_by_where_it_comes_from(memory, survey, tmp_path):
    flat = fits.PrimaryHDU(np.ones(BIG, np.float32), fits.getheader(survey / "b.fits"))
    flat.writeto(survey / "b.fits", overwrite=True)
    memory.pipe_file("/survey/b.fits", (survey / "b.fits").read_bytes())
    memory.rm("/survey/deep", recursive=True)
    templates = DirectoryTemplates("memory://survey", cache=TemplateCache(tmp_path / "cache"))
    with pytest.raises(NoTemplate, match=r"1 failed \(memory:///survey/b.fits: is constant"):
        templates.find(request())


def test_it_ends_with_the_deadline(memory):
    with pytest.raises(ArchiveUnavailable, match="within the time"):
        DirectoryTemplates("memory://survey").find(request(deadline=Deadline(0)))


def test_a_folder_that_is_not_there_is_no_empty_folder(memory):
    with pytest.raises(InputUnavailable, match="memory://nothing: is not there"):
        DirectoryTemplates("memory://nothing").find(request())
    memory.makedirs("/survey/empty")
    with pytest.raises(NoTemplate, match="0 images looked at"):
        DirectoryTemplates("memory://survey/empty").find(request())


def test_a_scheme_that_nobody_knows_is_said_at_once():
    with pytest.raises(ValueError, match="fsspec knows no nonsense://"):
        DirectoryTemplates("nonsense://survey")


def test_compressed_files(tmp_path):
    system = fsspec.filesystem("memory")
    path = put(tmp_path / "a.fits", tan(shape=BIG), shape=BIG, FILTER="r")
    system.pipe_file("/packed/a.fits.gz", gzip.compress(path.read_bytes()))
    with fits.open(path) as hdus:
        packed = fits.CompImageHDU(
            hdus[0].data, hdus[0].header, compression_type="GZIP_2", quantize_level=0
        )
        packed.writeto(tmp_path / "b.fits.fz")
    try:
        expected = fits.getdata(path)
        for name in ("a.fits.gz", "b.fits.fz"):
            if name[0] == "b":
                system.rm("/packed/a.fits.gz")
                system.pipe_file(f"/packed/{name}", (tmp_path / name).read_bytes())
            template = DirectoryTemplates("memory://packed").find(request())
            assert template.facts.template_id == name
            np.testing.assert_array_equal(template.image.data, expected)
    finally:
        system.rm("/packed", recursive=True)


def test_in_an_object_store(survey, tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
        system = fsspec.filesystem("s3", **options)
        system.mkdir("survey")
        upload(survey, system, "survey")
        cache = TemplateCache(tmp_path / "cache")
        templates = DirectoryTemplates("s3://survey", cache=cache, options=options)
        check_found(templates, survey, "s3://survey")
        eager = DirectoryTemplates("s3://survey", cache=cache, options=options, refresh_seconds=0)
        check_found(eager, survey, "s3://survey")
        other = fsspec.filesystem("s3", skip_instance_cache=True, **options)
        other.rm_file("survey/deep/a.fits")  # as another program would
        assert eager.find(request()).facts.template_id == "b.fits"
        missing = DirectoryTemplates("s3://nowhere", options=options)
        with pytest.raises(InputUnavailable):
            missing.find(request())
    finally:
        server.stop()


def test_a_password_is_used_and_never_shown(survey, tmp_path, caplog):
    pytest.importorskip("aiohttp")
    caplog.set_level("DEBUG", logger="core")
    with serving(survey) as server:
        server.wanted = "Basic " + base64.b64encode(b"me:secret").decode()
        url = server.url.replace("://", "://me:secret@")
        cache = TemplateCache(tmp_path / "cache")
        templates = DirectoryTemplates(url, cache=cache)
        check_found(templates, survey, server.url)
        with pytest.raises(NoTemplate) as none:
            templates.find(request(band="u"))
        server.broken.add("/")
        with pytest.raises(InputUnavailable) as away:
            DirectoryTemplates(url).find(request())
        with pytest.raises(InputUnavailable):  # the password is needed
            DirectoryTemplates(server.url).find(request())
    kept = [repr(entry) for entry in cache.entries()]
    said = [str(none.value), str(away.value), caplog.text, *templates.identify(request()), *kept]
    assert not [text for text in said if "secret" in text]
