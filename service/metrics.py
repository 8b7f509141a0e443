"""Every metric of the service, declared together; all of them live in the parent process."""

from __future__ import annotations

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from service.status import SOFTWARE, Record
from service.template_tally import TemplateCounts

OUTCOMES = (
    "published",
    "no_template",
    "rejected_quality",
    "invalid_event",
    "input_unavailable",
    "expired",
    "failed",
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
_AGES = (60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400)
_LATENCY = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        of = self.registry
        self.exposures = Counter(
            "skydelta_exposures", "Exposures, by what became of them.", ["outcome"], registry=of
        )
        self.alerts = Counter("skydelta_alerts_published", "Alert packets published.", registry=of)
        self.dead_letters = Counter(
            "skydelta_dead_letters", "Events copied to the dead-letter topic.", registry=of
        )
        self.retries = Counter(
            "skydelta_retries", "Exposures tried again, by why.", ["why"], registry=of
        )
        self.handed_back = Counter(
            "skydelta_handed_back",
            "Exposures left to another process: partition revoked, lost, or shutdown.",
            registry=of,
        )
        self.publish_failures = Counter(
            "skydelta_transactions_aborted", "Transactions that had to be aborted.", registry=of
        )
        self.worker_restarts = Counter(
            "skydelta_worker_restarts", "Worker processes that had to be replaced.", registry=of
        )
        self.in_flight = Gauge(
            "skydelta_exposures_in_flight", "Exposures being worked on now.", registry=of
        )
        self.waiting = Gauge(
            "skydelta_exposures_waiting", "Exposures received and not yet worked on.", registry=of
        )
        self.partitions = Gauge(
            "skydelta_partitions_assigned", "Input partitions of this process.", registry=of
        )
        self.stage_seconds = Histogram(
            "skydelta_stage_seconds",
            "Wall time of a stage of the pipeline.",
            ["stage"],
            buckets=_SECONDS,
            registry=of,
        )
        self.exposure_seconds = Histogram(
            "skydelta_exposure_seconds",
            "From the arrival of an event to its commit.",
            buckets=_SECONDS,
            registry=of,
        )
        self.transaction_seconds = Histogram(
            "skydelta_transaction_seconds",
            "From the beginning of a transaction to its commit.",
            buckets=_SECONDS,
            registry=of,
        )
        self.latency_seconds = Histogram(
            "skydelta_exposure_to_packet_seconds",
            "From mid-exposure to the commit of its packets.",
            buckets=_LATENCY,
            registry=of,
        )
        self.template_requests = Counter(
            "skydelta_template_requests",
            "Requests for a template, by provider and what came of them.",
            ["provider", "result"],
            registry=of,
        )
        self.template_cache_events = Counter(
            "skydelta_template_cache_events",
            "What happened in the template cache, by kind of entry.",
            ["kind", "event"],
            registry=of,
        )
        self.template_cache_bytes = Counter(
            "skydelta_template_cache_event_bytes",
            "Bytes of the entries to which it happened.",
            ["kind", "event"],
            registry=of,
        )
        self.template_cache_age = Histogram(
            "skydelta_template_cache_age_seconds",
            "Age of the entries that were found in the template cache.",
            ["kind"],
            buckets=_AGES,
            registry=of,
        )
        self.template_cache_size = Gauge(
            "skydelta_template_cache_bytes", "Bytes in the template cache.", registry=of
        )
        self.template_fetched_bytes = Counter(
            "skydelta_template_fetched_bytes", "Bytes that archives sent.", ["host"], registry=of
        )
        self.template_fetch_seconds = Histogram(
            "skydelta_template_fetch_seconds",
            "Wall time of a request to an archive.",
            ["host"],
            buckets=_SECONDS,
            registry=of,
        )
        self.prefetches = Counter(
            "skydelta_template_prefetches",
            "Templates fetched ahead, by for whom (pointing, exposure) and what came of it.",
            ["source", "result"],
            registry=of,
        )
        self.last_success = Gauge(
            "skydelta_last_success_timestamp_seconds",
            "Unix time of the last exposure that was published.",
            registry=of,
        )
        Info("skydelta_build", "Version of the software.", registry=of).info({"software": SOFTWARE})
        for outcome in OUTCOMES:  # so that a rate exists before the first one happens
            self.exposures.labels(outcome)

    def committed(self, record: Record, *, dead_letter: bool, transaction_seconds: float) -> None:
        """Count an exposure whose transaction was committed."""
        self.exposures.labels(record["outcome"]).inc()
        self.alerts.inc(record["alerts"])
        self.dead_letters.inc(int(dead_letter))
        self.transaction_seconds.observe(transaction_seconds)
        for stage, seconds in record["seconds"].items():
            self.stage_seconds.labels(stage).observe(seconds)
        self.exposure_seconds.observe(record["total_seconds"])
        if record["outcome"] == "published":
            self.last_success.set(time.time())
            if record["mjd_mid"] is not None:
                mid_exposure = (record["mjd_mid"] - 40587.0) * 86400.0  # MJD of 1970-01-01
                self.latency_seconds.observe(max(0.0, time.time() - mid_exposure))

    def templates(self, counts: TemplateCounts) -> None:
        """Add what a worker counted about templates."""
        for labels, number in counts.requests.items():
            self.template_requests.labels(*labels).inc(number)
        for labels, number in counts.cache_events.items():
            self.template_cache_events.labels(*labels).inc(number)
        for labels, size in counts.cache_bytes.items():
            self.template_cache_bytes.labels(*labels).inc(size)
        for kind, age in counts.ages:
            self.template_cache_age.labels(kind).observe(age)
        for host, size in counts.fetched_bytes.items():
            self.template_fetched_bytes.labels(host).inc(size)
        if counts.cache_size is not None:
            self.template_cache_size.set(counts.cache_size)
        for host, seconds in counts.fetch_seconds:
            self.template_fetch_seconds.labels(host).observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
