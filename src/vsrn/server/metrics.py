"""What Prometheus reads at /metrics. Each service counts for itself."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service."""

    def __init__(self, num_photos: Callable[[], float]) -> None:
        """`num_photos` is asked whenever somebody reads."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vsrn_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "vsrn_http_request_seconds", "From request to answer.", ["route"], registry=self.registry, buckets=SECONDS
        )
        self.running = Gauge("vsrn_http_requests_running", "Requests in work or waiting.", registry=self.registry)
        self.batches = Histogram(
            "vsrn_encoder_batch", "Requests per encoder call.", ["input"], registry=self.registry, buckets=BATCHES
        )
        photos = Gauge("vsrn_index_photos", "Photos that can be found.", registry=self.registry)
        photos.set_function(num_photos)
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self.registry)
