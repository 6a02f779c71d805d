"""The HTTP side behind a real listener: who may ask what, and how connections come to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop

from noded.http.auth import FREE_PATHS, host_name
from noded.http.gateway import Gateway
from noded.http.server import make_app
from noded.node.listener import Listener, bind

ROOT = Path(__file__).resolve().parents[2]
TOKEN = b"0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN.decode()}"}
SECONDS = 5.0


class View:
    def __init__(self) -> None:
        self.stops = 0
        self.broken = False

    def status(self) -> dict[str, Any]:
        if self.broken:
            raise RuntimeError("broken on purpose")
        return {"cluster": "default", "resources": {"total": {"CPU": 2.0}}}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"node": "head"}]

    def request_stop(self) -> None:
        self.stops += 1


class Node:
    def __init__(self, host: str = "127.0.0.1") -> None:
        self.view = View()
        self.gateway = Gateway(self.view, TOKEN, (host, "noded.example"), "1.2.3")
        self.listener = Listener(bind(host, 0), TOKEN, self.gateway.on_http, lambda sock, *_: sock.close())
        self.port = self.listener.port

    def start(self) -> Node:
        self.listener.start(asyncio.get_running_loop())
        return self

    async def stop(self) -> None:
        self.listener.stop()
        await self.gateway.stop()

    async def ask(
        self, path: str, method: str = "GET", *, token: bool = True, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        sent = (BEARER if token else {}) | {name.replace("_", "-"): value for name, value in headers.items()}
        return await asyncio.to_thread(self._ask, path, method, sent)

    def _ask(self, path: str, method: str, headers: dict[str, str]) -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read()
            return response.status, json.loads(body) if body else None, response.headers
        finally:
            connection.close()

    async def talk(self, *pieces: bytes) -> bytes:
        """Send these bytes one after the other; all that comes until the other side closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await asyncio.wait_for(reader.read(), SECONDS)
        finally:
            writer.close()
            await writer.wait_closed()


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    made = Node().start()
    yield made
    await made.stop()


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    head = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: {BEARER['Authorization']}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode()


# --- the routes ------------------------------------------------------------------------------------------


async def test_answers(node: Node) -> None:
    assert (await node.ask("/api/version"))[:2] == (200, {"version": "1.2.3", "api": "v0"})
    assert (await node.ask("/api/v0/status"))[:2] == (200, node.view.status())
    status, content, headers = await node.ask("/api/v0/nodes")
    assert (status, content) == (200, {"nodes": [{"node": "head"}]})
    assert headers["Content-Type"].startswith("application/json") and headers["Cache-Control"] == "no-store"
    assert (await node.ask("/api/v0/stop", "POST"))[:2] == (202, {"stopping": True})
    assert node.view.stops == 1


async def test_wrong_paths_and_methods_are_json_too(node: Node) -> None:
    assert (await node.ask("/nothing"))[:2] == (404, {"error": "Not Found: GET /nothing"})
    status, content, headers = await node.ask("/api/v0/stop")
    assert status == 405 and headers["Allow"] == "POST" and "Method Not Allowed" in content["error"]
    assert node.view.stops == 0


async def test_our_own_failures_are_told_without_their_inside(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.view.broken = True
    status, content, _ = await node.ask("/api/v0/status")
    assert status == 500 and "the node's log" in content["error"] and "purpose" not in content["error"]
    assert "broken on purpose" in caplog.text


# --- who may ask -----------------------------------------------------------------------------------------


async def test_every_route_needs_token_and_host(node: Node) -> None:
    app = make_app(node.view, TOKEN, (), "1")
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    assert len(routes) >= 9
    paths = {path for _, path in routes} | {"/nothing"}
    for path in paths - FREE_PATHS:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            status, _, headers = await node.ask(path, method, token=False)
            assert status == 401, f"{method} {path} without a token"
            assert headers["WWW-Authenticate"].startswith("Bearer") and headers["Connection"] == "close"
            status, _, _ = await node.ask(path, method, Host="evil.example")
            assert status == 403, f"{method} {path} for a foreign host"
    assert node.view.stops == 0


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer 0123456789abcdeX", "Basic 0123456789abcdef", "Bearer \xe9\xff"]
    + ["0123456789abcdef", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0"],
)
async def test_wrong_tokens(node: Node, value: str) -> None:
    status, content, _ = await node.ask("/api/version", token=False, Authorization=value)
    assert status == 401 and "Authorization: Bearer" in content["error"]


async def test_scheme_is_read_without_case(node: Node) -> None:
    assert (await node.ask("/api/version", token=False, Authorization=f"bearer {TOKEN.decode()}"))[0] == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("127.0.0.1:99", True),
        ("[::1]:8265", True),
        ("[::1]", True),
    ]
    + [("noded.example", True), ("noded.example.:80", True), ("evil.example", False), ("", False)]
    + [("localhost.evil.example", False), ("127.0.0.2", False), ("evil.example:127.0.0.1", False)],
)
async def test_hosts(node: Node, host: str, allowed: bool) -> None:
    assert (await node.ask("/api/version", Host=host))[0] == (200 if allowed else 403)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Host": "localhost:8265", "Origin": "http://localhost:8265"}, True),
        ({"Host": "localhost:8265", "Origin": "https://LOCALHOST:8265"}, True),
        ({"Host": "localhost:8265", "Origin": "http://localhost:3000"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "Cross-Site"}, False),
    ],
)
async def test_pages_elsewhere_are_refused(node: Node, headers: dict[str, str], allowed: bool) -> None:
    for token in (True, False):  # before the token is looked at
        expected = 403 if not allowed else 200 if token else 401
        assert (await node.ask("/api/version", token=token, **headers))[0] == expected


async def test_bound_to_all_addresses_the_one_reached_is_allowed() -> None:
    node = Node("0.0.0.0").start()
    try:
        assert (await node.ask("/api/version", Host="127.0.0.1"))[0] == 200
        assert (await node.ask("/api/version", Host="192.0.2.7"))[0] == 403
    finally:
        await node.stop()


def test_names_of_hosts() -> None:
    texts = ("a:1", "A.b.", "[::1]:2", "::1", "", "[::1")
    assert [host_name(text) for text in texts] == ["a", "a.b", "::1", "::1", "", "::1"]


# --- connections -----------------------------------------------------------------------------------------


async def test_a_request_in_pieces_and_a_second_one_on_the_connection(node: Node) -> None:
    first = request("/api/version")
    answer = await node.talk(first[:10], first[10:], request("/healthz"), request("/api/v0/nodes", "Connection: close"))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert b'"1.2.3"' in answer and b'"loop_age_ms":0' in answer and b'{"nodes":' in answer


async def test_what_the_listener_has_read_comes_first(node: Node) -> None:
    body = b"x" * 100
    post = request("/api/v0/stop", f"Content-Length: {len(body)}", method="POST")
    answer = await node.talk(post + body[:50], body[50:])
    assert answer.startswith(b"HTTP/1.1 202 ") and node.view.stops == 1


async def test_health_needs_nothing(node: Node) -> None:
    status, content, _ = await node.ask("/healthz", token=False, Host="10.0.0.7")
    assert (status, content["status"]) == (200, "ok")


async def test_many_at_once_from_the_first_moment(node: Node) -> None:
    answers = await asyncio.gather(*(node.ask("/api/version") for _ in range(20)))
    assert {status for status, _, _ in answers} == {200}


async def test_stop_ends_idle_connections_and_takes_no_more(node: Node) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(request("/api/version"))
    await reader.readuntil(b"}")
    await node.gateway.stop()
    assert await asyncio.wait_for(reader.read(), SECONDS) == b""
    writer.close()
    await writer.wait_closed()
    assert await node.talk(request("/api/version")) == b""


async def test_stop_before_the_first_request() -> None:
    node = Node().start()
    await node.stop()


@pytest.mark.may_leak("libuv keeps one pipe for the life of the process")
def test_the_same_on_uvloop() -> None:
    async def session() -> None:
        node = Node().start()
        try:
            answer = await node.talk(request("/api/version"), request("/api/v0/nodes", "Connection: close"))
            assert answer.count(b"HTTP/1.1 200 OK") == 2
        finally:
            await node.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(session())


def test_nothing_is_imported_before_the_first_request() -> None:
    code = "import sys, noded.http.gateway; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "False", done.stderr
