"""Rows for actor calls: one to one, one to n, n to n; plain, threaded and asyncio actors.

n is half the machine's cores, at least 1. Servers and clients ask for no CPU, so that they fit on any
machine. In the 1:n rows one client actor calls n servers; in the n:n rows four tasks call n servers in turn;
in the row with an argument each of n clients calls a server of its own with the ref of an object it put.
"""

from __future__ import annotations

from typing import Any

from bench.systems import Context
from bench.timing import Measurement, rate

CALLS = 1000
CALLERS = 4
THREADS = 16


def one_to_one_sync(context: Context, asynchronous: bool = False) -> Measurement:
    api = context.api
    server = _server_class(api, asynchronous).remote()
    return rate(lambda: api.get(server.value.remote()), 1, context.timing)


def one_to_one_async(context: Context, asynchronous: bool = False) -> Measurement:
    return _bursts(context, _server_class(context.api, asynchronous).remote())


def one_to_one_concurrent(context: Context) -> Measurement:
    """The same burst of calls on an actor with 16 threads."""
    return _bursts(context, _server_class(context.api, False).options(max_concurrency=THREADS).remote())


def one_to_one_with_args_async(context: Context) -> Measurement:
    api = context.api
    server = _server_class(api, True).remote()

    def step() -> None:
        api.get([server.echo.remote(number) for number in range(CALLS)])

    return rate(step, CALLS, context.timing)


def one_to_n_async(context: Context, asynchronous: bool = False) -> Measurement:
    api = context.api
    servers = _servers(context, asynchronous)
    client = _client_class(api).remote(servers)

    def step() -> None:
        api.get(client.call_all.remote(CALLS))

    return rate(step, CALLS * len(servers), context.timing)


def n_to_n_async(context: Context, asynchronous: bool = False) -> Measurement:
    api = context.api
    servers = _servers(context, asynchronous)

    def call_in_turn(targets: list[Any], calls: int) -> None:
        api.get([targets[i % len(targets)].value.remote() for i in range(calls)])

    caller = api.remote(call_in_turn)

    def step() -> None:
        api.get([caller.remote(servers, CALLS) for _ in range(CALLERS)])

    return rate(step, CALLERS * CALLS, context.timing)


def n_to_n_with_arg_async(context: Context) -> Measurement:
    api = context.api
    client_class = _client_class(api)
    clients = [client_class.remote([server]) for server in _servers(context, False)]

    def step() -> None:
        api.get([client.call_all_with_ref.remote(CALLS) for client in clients])

    return rate(step, CALLS * len(clients), context.timing)


def _bursts(context: Context, server: Any) -> Measurement:
    api = context.api

    def step() -> None:
        api.get([server.value.remote() for _ in range(CALLS)])

    return rate(step, CALLS, context.timing)


def _servers(context: Context, asynchronous: bool) -> list[Any]:
    server_class = _server_class(context.api, asynchronous)
    servers = [server_class.remote() for _ in range(max(1, context.cores // 2))]
    context.api.get([server.value.remote() for server in servers])
    return servers


def _server_class(api: Any, asynchronous: bool) -> Any:
    class Server:
        def value(self) -> bytes:
            return b"ok"

        def echo(self, _: object) -> bytes:
            return b"ok"

    class AsyncServer:
        async def value(self) -> bytes:
            return b"ok"

        async def echo(self, _: object) -> bytes:
            return b"ok"

    return api.remote(num_cpus=0)(AsyncServer if asynchronous else Server)


def _client_class(api: Any) -> Any:
    class Client:
        def __init__(self, servers: list[Any]) -> None:
            self.servers = servers

        def call_all(self, calls: int) -> None:
            api.get([server.value.remote() for server in self.servers for _ in range(calls)])

        def call_all_with_ref(self, calls: int) -> None:
            ref = api.put(0)
            api.get([server.echo.remote(ref) for server in self.servers for _ in range(calls)])

    return api.remote(num_cpus=0)(Client)
