"""`ray.client("host:port").connect()`, Ray's older way of saying `ray.init(address)`."""

from __future__ import annotations

from typing import Any

from noded.client.api import ClientContext
from noded.compat.ray.start import init


class ClientBuilder:
    def __init__(self, address: str | None):
        self._address = address
        self._options: dict[str, Any] = {}

    def env(self, env: dict[str, Any]) -> ClientBuilder:
        self._options["runtime_env"] = env
        return self

    def namespace(self, namespace: str) -> ClientBuilder:
        self._options["namespace"] = namespace
        return self

    def connect(self) -> ClientContext:
        return init(self._address, **self._options)


def client(address: str | None = None, _deprecation_warn_enabled: bool = True) -> ClientBuilder:
    return ClientBuilder(address)


__all__ = ["ClientBuilder", "ClientContext", "client"]
