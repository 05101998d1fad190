"""Every request is counted and timed, and no more are taken than can be in work at once."""

from __future__ import annotations

import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsrn.server.metrics import Metrics

# Whether a service is alive must be known when it is busy above all.
UNCOUNTED = ("/healthz", "/readyz", "/metrics")


class Traffic:
    """Counts, times, and answers 429 where too many requests are in work."""

    def __init__(self, app: ASGIApp, metrics: Metrics, most: int) -> None:
        self.app, self.metrics, self.most = app, metrics, most
        self._running = 0

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

        self._count(1)
        try:
            app = self.app if self._running <= self.most else busy()
            await app(scope, receive, send_counted)
        finally:
            self._count(-1)
            # A route's own path, since strangers may invent any number of others.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(_known(scope["method"]), route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def _count(self, more: int) -> None:
        self._running += more
        self.metrics.running.set(self._running)


def busy() -> JSONResponse:
    """The answer to one request too many."""
    return JSONResponse({"detail": "the service is busy; ask again in a moment."}, 429, {"Retry-After": "1"})


def _known(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST") else "other"
