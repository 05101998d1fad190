"""Every request is counted and timed, for Prometheus, and no more are taken than can be in work at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsrn.server.answers import problem

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service."""

    def __init__(self, num_photos: Callable[[], float]) -> None:
        """`num_photos` is asked whenever somebody reads."""
        self.registry = to = CollectorRegistry()
        labels = ["method", "route", "status"]
        self.requests = Counter("vsrn_http_requests", "Requests answered.", labels, registry=to)
        self.seconds = Histogram(
            "vsrn_http_request_seconds", "From request to answer.", ["route"], registry=to, buckets=SECONDS
        )
        self.running = Gauge("vsrn_http_requests_running", "Requests in work or waiting.", registry=to)
        self.batches = Histogram(
            "vsrn_encoder_batch", "Requests per encoder call.", ["input"], registry=to, buckets=BATCHES
        )
        Gauge("vsrn_index_photos", "Photos that can be found.", registry=to).set_function(num_photos)
        ProcessCollector(registry=to)


# Whether a service is alive must be known when it is busy above all.
UNCOUNTED = ("/healthz", "/readyz", "/metrics")


class Traffic:
    """Counts, times, and answers 429 where too many requests are in work."""

    def __init__(self, app: ASGIApp, metrics: Metrics, most: int) -> None:
        self.app, self.metrics, self.most = app, metrics, most
        self._running = 0
        metrics.running.set_function(lambda: self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"] in UNCOUNTED:
            await self.app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._running += 1
        try:
            app = self.app
            if self._running > self.most:
                app = problem(429, "the service is busy; ask again in a moment.", {"Retry-After": "1"})
            await app(scope, receive, send_counted)
        finally:
            self._running -= 1
            # A route's own path, since strangers may invent any number of others.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)
