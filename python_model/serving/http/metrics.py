"""What an HTTP server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
REQUESTS = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one server; gauges: name → (what it is, its value when it is asked for)."""

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "argus_requests", "Answered requests, by path and status.", ("path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "argus_request_seconds", "Seconds from a request's first byte to its answer, by path.", ("path",),
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._batches = Histogram(
            "argus_batch_requests", "Requests that one batch answered.", buckets=REQUESTS, registry=self._registry
        )
        for name, (what, value) in gauges.items():
            Gauge(f"argus_{name}", what, registry=self._registry).set_function(value)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, requests: int) -> None:
        """Counts a batch."""
        self._batches.observe(requests)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
