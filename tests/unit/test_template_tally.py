"""What workers count about templates reaches the metrics, whole and once."""

from __future__ import annotations

import pickle
import threading

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics
from service.template_tally import TemplateTally


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    text = metrics.text().decode()
    return {  # labels sorted by value
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("skydelta_template")
    }


def test_counts_of_two_workers_add_up() -> None:
    metrics = Metrics()
    for age in (30.0, 7200.0):
        tally = TemplateTally()
        tally.requested("hips", "found")
        tally.cache("hips-tile", "hit", 1000, age)
        tally.cache("hips-tile", "miss")
        tally.fetched("archive.org", 500, 0.2)
        metrics.templates(pickle.loads(pickle.dumps(tally.take(cache_size=int(age)))))
        metrics.templates(tally.take())  # nothing is reported twice
    found = values(metrics)
    assert found["skydelta_template_requests_total", "found", "hips"] == 2
    assert found["skydelta_template_cache_events_total", "hips-tile", "hit"] == 2
    assert found["skydelta_template_cache_event_bytes_total", "hips-tile", "hit"] == 2000
    assert found["skydelta_template_fetched_bytes_total", "archive.org"] == 1000
    assert found[("skydelta_template_cache_bytes",)] == 7200  # as the last of them saw it
    assert found["skydelta_template_fetch_seconds_count", "archive.org"] == 2
    assert found["skydelta_template_cache_age_seconds_bucket", "60.0", "hips-tile"] == 1
    assert found["skydelta_template_cache_age_seconds_count", "hips-tile"] == 2


def test_nothing_is_lost_between_threads() -> None:
    tally = TemplateTally()
    taken = []

    def work() -> None:
        for _ in range(2000):
            tally.requested("directory", "none")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken.append(tally.take())
    taken.append(tally.take())
    assert sum(counts.requests["directory", "none"] for counts in taken) == 8000


def test_samples_are_bounded_and_counts_are_not() -> None:
    tally = TemplateTally()
    for _ in range(1500):
        tally.cache("hips-tile", "hit", 1, 5.0)
    counts = tally.take()
    assert len(counts.ages) == 1000
    assert counts.cache_events["hips-tile", "hit"] == 1500
