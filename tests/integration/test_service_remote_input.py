"""Images that are fetched over HTTP and from an object store, through the whole service."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pytest
from confluent_kafka import Message

from core.simulation.survey import SimulatedSurvey
from tests.archive.server import ArchiveServer
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server with the bucket ``telescope``; yields its file system."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.filesystem("s3").clear_instance_cache()
    system = fsspec.filesystem("s3")
    system.mkdir("telescope")
    yield system
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def test_images_from_everywhere(
    make_service: Callable[..., ServiceProcess],
    read_topic: Callable[..., list[Message]],
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
    bucket: Any,
    tmp_path: Path,
) -> None:
    original = small_survey.exposures[0].event
    science = local(original["science_uri"])
    downloads = tmp_path / "downloads"
    downloads.mkdir()

    def event(name: str, uri: str, **fields: Any) -> dict[str, Any]:
        return original | {"exposure_id": name, "science_uri": uri} | fields

    with ArchiveServer() as server:
        server.tree("/in/", science.parent)
        server.tree("/out/", science.parent)
        server.fault("away.fits", redirect="/out/" + science.name)
        server.fault("secret.fits", status=403)
        server.fault("busy.fits", status=503, retry_after="0", times=2)
        server.route("/in/busy.fits", server_file(science))
        server.file("/in/page.fits", b"<html>no image</html>" * 300)
        bucket.put_file(str(science), "telescope/raw/a.fits")
        masks = {}
        if original.get("mask_uri"):
            mask = local(original["mask_uri"])
            bucket.put_file(str(mask), "telescope/raw/mask.fits")
            masks = {"mask_uri": "s3://telescope/raw/mask.fits"}
        web = f"{server.url}/in/"
        events = [
            event("disk", original["science_uri"]),
            event("web", web + science.name, **masks),
            event("store", "s3://telescope/raw/a.fits"),
            event("busy", web + "busy.fits"),
            event("away", web + "away.fits"),
            event("secret", web + "secret.fits"),
            event("page", web + "page.fits"),
            event("out", f"{server.url}/out/{science.name}"),
            event("missing", "s3://telescope/raw/missing.fits"),
            event("bucket", "s3://other/raw/a.fits"),
            event("again", web + science.name),
        ]
        service = make_service(
            input={
                "roots": [str(small_survey.template_dir.parent)],
                "prefixes": [web, "s3://telescope/raw/"],
                "download_folder": str(downloads),
            }
        ).start()
        send_events(kafka_bootstrap, topics.exposures, list(events))
        found = [read_record(m) for m in read_topic(topics.status, len(events), timeout=120)]
        assert service.stop() == 0
    by_id = {status["exposure_id"]: status for status in found}
    outcomes = {name: status["outcome"] for name, status in by_id.items()}
    assert outcomes == {
        "disk": "published", "web": "published", "store": "published", "busy": "published",
        "away": "input_unavailable", "secret": "input_unavailable", "page": "failed",
        "out": "invalid_event", "missing": "input_unavailable", "bucket": "invalid_event",
        "again": "published",
    }, [(s["exposure_id"], s["reason"]) for s in found]  # fmt: skip
    counts = {name: by_id[name]["alerts"] for name in ("disk", "web", "store", "busy", "again")}
    assert len(set(counts.values())) == 1
    assert counts["disk"] > 0
    assert {name: by_id[name]["attempts"] for name in outcomes} == dict.fromkeys(outcomes, 1) | {
        "busy": 3, "missing": 3,
    }  # fmt: skip
    assert "input.prefixes" in by_id["away"]["reason"]
    assert "credentials" in by_id["secret"]["reason"]
    assert web + "page.fits" in by_id["page"]["reason"]  # and not where the copy lay
    assert "fetch" in by_id["store"]["seconds"]
    assert not any(str(downloads) in str(status) for status in found)
    assert list(downloads.iterdir()) == []
    letters = [message.key().decode() for message in read_topic(topics.dead_letters, 3)]
    assert sorted(letters) == ["bucket", "out", "page"]


def server_file(path: Path) -> Callable[[Any], Any]:
    from tests.archive.server import Answer

    return lambda request: Answer(path.read_bytes())
