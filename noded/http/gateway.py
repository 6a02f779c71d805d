"""Takes HTTP connections from the listener and serves them; imports the HTTP library with the first one.

The import takes a fifth of a second, so it happens in a thread while the first connections wait. Bytes that
the listener has read already are replayed into the protocol before any from the socket. Not here: routes
(`server`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING

from noded.http.view import NodeView

if TYPE_CHECKING:
    from aiohttp import web

# The address of ours by which this connection came. A transport does not know it where there is TLS: its socket
# is the plain end of a tunnel.
reached_address: ContextVar[str] = ContextVar("reached_address", default="127.0.0.1")

log = logging.getLogger(__name__)


class Gateway:
    """`on_http` is the listener's callback. `allowed_hosts`: the bound host and those of --allowed-host."""

    def __init__(self, view: NodeView, token: bytes, allowed_hosts: Iterable[str], version: str) -> None:
        self._view = view
        self._token = token
        self._allowed_hosts = tuple(allowed_hosts)
        self._version = version
        self._starting: asyncio.Task[web.AppRunner] | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._stopped = False

    def on_http(self, sock: socket.socket, data: bytes) -> None:
        """On the loop: serve this connection, whose first bytes are `data`."""
        if self._stopped:
            sock.close()
            return
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="http-start")
        task = asyncio.create_task(self._connect(self._starting, sock, data), name="http-connect")
        self._connecting.add(task)
        task.add_done_callback(lambda task: self._on_connected(task, sock))

    async def stop(self) -> None:
        """Close all connections; requests under way get a moment to end."""
        self._stopped = True
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        if self._starting is not None:
            (runner,) = await asyncio.gather(self._starting, return_exceptions=True)
            if not isinstance(runner, BaseException):
                await runner.cleanup()

    def _on_connected(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._connecting.discard(task)
        if task.cancelled():  # perhaps before its first step
            sock.close()

    async def _start(self) -> web.AppRunner:
        # A thread of its own: the loop's may all be busy, and this one is needed only once.
        with ThreadPoolExecutor(1, "http-import") as thread:
            server = await asyncio.get_running_loop().run_in_executor(thread, _import_server)
        app = server.make_app(self._view, self._token, self._allowed_hosts, self._version)
        runner: web.AppRunner = await server.start_runner(app)
        return runner

    async def _connect(self, starting: asyncio.Task[web.AppRunner], sock: socket.socket, data: bytes) -> None:
        try:
            # Shielded: this connection's end must not end the start for all others.
            runner = await asyncio.shield(starting)
            assert runner.server is not None, "a runner that was set up has a server"
            protocol = runner.server()
            address = str(sock.getsockname()[0])
            await asyncio.get_running_loop().connect_accepted_socket(lambda: _Replay(protocol, data, address), sock)
        except OSError as error:
            log.debug("an HTTP connection ended before it was served: %s", error)
            sock.close()
        except Exception:
            log.exception("an HTTP connection could not be served and was closed")
            sock.close()
            if starting.done() and not starting.cancelled() and starting.exception():
                self._starting = None  # the next connection tries again


class _Replay(asyncio.Protocol):
    """Stands in for the real protocol until it has been given what was read before."""

    def __init__(self, protocol: asyncio.Protocol, data: bytes, address: str) -> None:
        self._protocol = protocol
        self._data = data
        self._address = address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        before = reached_address.set(self._address)
        try:
            self._protocol.connection_made(transport)  # starts the task that answers, in this context
        finally:
            reached_address.reset(before)
        transport.set_protocol(self._protocol)
        self._protocol.data_received(self._data)


def _import_server() -> ModuleType:
    from noded.http import server

    return server
