"""The small HTTP server: probes follow their checks, metrics parse, the rest is 404."""

import http.client
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.exposure import Exposure, ExposureResult
from service.metrics import Metrics
from service.status import Journey, status_record
from service.web.health import HealthServer


def get(server: HealthServer, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.address, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_probes_follow_their_checks() -> None:
    why: dict[str, str | None] = {"healthy": None, "ready": "workers are not warm yet"}
    with HealthServer(
        "127.0.0.1",
        0,
        healthy=lambda: why["healthy"],
        ready=lambda: why["ready"],
        metrics=lambda: b"x 1\n",
    ) as server:
        assert get(server, "/healthz") == (200, "ok\n")
        assert get(server, "/readyz") == (503, "workers are not warm yet\n")
        why.update(healthy="stalled", ready=None)
        assert get(server, "/healthz") == (503, "stalled\n")
        assert get(server, "/readyz?verbose") == (200, "ok\n")
        assert get(server, "/readyz", "HEAD") == (200, "")
        assert get(server, "/metrics") == (200, "x 1\n")
        assert get(server, "/../etc/passwd")[0] == 404
        assert get(server, "/metrics", "POST")[0] == 501
    with pytest.raises(OSError, match="refused"):
        get(server, "/healthz")


def test_metrics_count_what_was_committed() -> None:
    metrics = Metrics()
    now = datetime.now(UTC)
    journey = Journey("t", 0, 0, now, now)
    result = ExposureResult(
        Exposure("e", "/s", mjd_mid=61000.0), "published", seconds={"read": 0.2, "subtract": 1.0}
    )
    record = status_record(result, alerts=5, journey=journey)
    metrics.committed(record, dead_letter=False, transaction_seconds=0.1)
    failed = status_record(ExposureResult(Exposure("f", "/s"), "failed"), journey=journey)
    metrics.committed(failed, dead_letter=True, transaction_seconds=0.1)
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    assert samples["skydelta_exposures_total", ("published",)] == 1
    assert samples["skydelta_exposures_total", ("failed",)] == 1
    assert samples["skydelta_exposures_total", ("expired",)] == 0
    assert samples["skydelta_alerts_published_total", ()] == 5
    assert samples["skydelta_dead_letters_total", ()] == 1
    assert samples["skydelta_stage_seconds_sum", ("subtract",)] == 1.0
    assert samples["skydelta_exposure_to_packet_seconds_count", ()] == 1
    assert samples["skydelta_last_success_timestamp_seconds", ()] >= now.timestamp() - 1
