"""Finding the cluster that ``init`` should connect to, among the nodes of this user on this host."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from noded import config


@dataclass(frozen=True)
class Found:
    run_dir: str
    cluster: str
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def running(env: Mapping[str, str]) -> list[Found]:
    """The nodes of this user that accept connections, private ones left out."""
    found: list[Found] = []
    base = str(config.run_base(env))
    for cluster in _entries(base):
        if cluster.startswith("private-"):
            continue
        for node in _entries(os.path.join(base, cluster)):
            run_dir = os.path.join(base, cluster, node)
            try:
                with open(os.path.join(run_dir, "node.json")) as file:
                    info = json.load(file)
            except (OSError, ValueError):
                continue
            if not info.get("private") and _accepts(os.path.join(run_dir, "control.sock")):
                found.append(Found(run_dir, cluster, info.get("host", "127.0.0.1"), int(info.get("port", 0))))
    return found


def _entries(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _accepts(path: str) -> bool:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(1)
    try:
        sock.connect(path)
    except OSError:
        return False
    finally:
        sock.close()
    return True


def find(address: str | None, env: Mapping[str, str]) -> Found | None:
    """The node to connect to; None: there is none and none was asked for. Raises ConnectionError, ValueError."""
    nodes = running(env)
    if address is None:
        if len({node.cluster for node in nodes}) > 1:
            raise ConnectionError(
                f"several clusters of this user run here ({', '.join(sorted(n.cluster for n in nodes))}): "
                "name one with noded.init(address=...) or NODED_ADDRESS, or force a private one with address='local'"
            )
        return nodes[0] if nodes else None
    if address == "auto":
        if not nodes:
            raise ConnectionError(
                "noded.init(address='auto'): no cluster of this user runs on this host; start one "
                "with `noded start --head`"
            )
        return nodes[0]
    for node in nodes:
        if address == node.cluster:
            return node
    host, colon, port = address.removeprefix("noded://").rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(
            f"address must be 'local', 'auto', host:port, or the name of a cluster running here, not {address!r}"
        )
    for node in nodes:
        if node.port == int(port) and host in (node.host, "localhost", "127.0.0.1", "[::1]", socket.gethostname()):
            return node
    raise ConnectionError(
        f"no noded node of this user on this host listens at {address}; `noded status` lists those "
        "that run, `noded start --head` starts one"
    )
