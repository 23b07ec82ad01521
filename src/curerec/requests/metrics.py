"""Prometheus metrics of the service: counts, times and budgets; no id, no path, no title."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from curerec.requests.maintain import status
from curerec.requests.schedule import Clerk
from curerec.requests.store import Store

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """What ``GET /metrics`` says.

    Args:
        store: read at every scrape.
        clerk: that starts workers.
    """

    def __init__(self, store: Store, clerk: Clerk | None = None) -> None:
        self.clerk = clerk
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "curerec_http_seconds",
            "Time to answer",
            ["route", "status"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.store = store
        self.registry.register(self)  # type: ignore[arg-type]

    def observe(self, route: str, status: int, time_s: float) -> None:
        """Note an answer; ``route`` is the pattern, not the path that was asked."""
        self.seconds.labels(route, str(status)).observe(time_s)

    def collect(self) -> Iterator[Any]:
        """Gauges from the ledger."""
        seen = status(self.store)
        states = GaugeMetricFamily("curerec_requests", "Requests by state", labels=["state"])
        for name, count in seen["requests"].items():
            states.add_metric([name], count)
        yield states
        drift = seen["drift"]
        for name, text, value in (
            ("overdue", "Requests that are not done and whose date has passed", seen["overdue"]),
            ("running", "Whether a run is at work", int(seen["running"])),
            ("records", "Records in the chain", seen["records"]),
            ("drift_distance", "Drift since the last training", drift["distance"]),
            ("drift_distance_budget", "Its budget", drift["distance_budget"]),
            (
                "drift_auc_fall",
                "Fall of the AUC on validation data since the last training",
                drift["auc_drop"],
            ),
            ("drift_auc_fall_budget", "Its budget", drift["auc_budget"]),
            ("retrain_due", "Whether only a retrain can go on", int(seen["retrain_due"] is not None)),
            ("worker_starts", "Workers started by this service", self.clerk.desk.starts if self.clerk else 0),
            ("worker_failures", "Workers that died one after the other", self._failures()),
        ):
            yield GaugeMetricFamily(f"curerec_{name}", text, value=value)

    def _failures(self) -> int:
        return self.clerk.failures if self.clerk else 0

    def text(self) -> bytes:
        """In the exposition format."""
        return generate_latest(self.registry)
