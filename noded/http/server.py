"""The routes, and the aiohttp application behind them. Imported by `gateway` with the first request only.

A handler asks the view and answers; it keeps nothing. Not here: sockets and their hand-over (`gateway`), who
may ask (`auth`).
"""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from noded.http.answers import answer, errors_as_json
from noded.http.auth import guard
from noded.http.metrics import Exposition
from noded.http.view import NodeView

API = "v0"
# A connection between two requests; the first request is complete before it comes here.
KEEPALIVE_SECONDS = 30.0
SHUTDOWN_SECONDS = 2.0
LARGEST_BODY = 1 << 20


class Handlers:
    def __init__(self, view: NodeView, version: str) -> None:
        self._view = view
        self._version = version
        self._exposition = Exposition()

    async def version(self, request: web.Request) -> web.Response:
        return answer({"version": self._version, "api": API})

    async def status(self, request: web.Request) -> web.Response:
        return answer(self._view.status())

    async def nodes(self, request: web.Request) -> web.Response:
        return answer({"nodes": self._view.nodes()})

    async def metrics(self, request: web.Request) -> web.Response:
        return await self._exposition.answer(request, await self._view.metrics())

    async def targets(self, request: web.Request) -> web.Response:
        return answer(self._view.targets())

    async def clean_up(self, app: web.Application) -> None:
        self._exposition.stop()

    async def stop(self, request: web.Request) -> web.Response:
        self._view.request_stop()
        response = answer({"stopping": True}, status=202)
        response.force_close()
        return response

    async def health(self, request: web.Request) -> web.Response:
        """On a connection that came for something else first: the loop has just turned to run this."""
        return answer({"status": "ok", "loop_age_ms": 0})


def make_app(view: NodeView, token: bytes, allowed_hosts: Iterable[str], version: str) -> web.Application:
    app = web.Application(middlewares=[guard(token, allowed_hosts), errors_as_json], client_max_size=LARGEST_BODY)
    handlers = Handlers(view, version)
    app.router.add_get("/api/version", handlers.version)
    app.router.add_get(f"/api/{API}/status", handlers.status)
    app.router.add_get(f"/api/{API}/nodes", handlers.nodes)
    app.router.add_post(f"/api/{API}/stop", handlers.stop)
    app.router.add_get("/healthz", handlers.health)
    app.router.add_get("/metrics", handlers.metrics)
    app.router.add_get("/sd", handlers.targets)
    app.on_cleanup.append(handlers.clean_up)
    return app


async def start_runner(app: web.Application) -> web.AppRunner:
    """`runner.server` then makes a protocol per connection; `runner.cleanup()` ends them all."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    return runner
