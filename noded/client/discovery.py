"""Finding the cluster that ``init`` should connect to, among the nodes of this user on this host."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from noded.config import NodeInfo, find_nodes


def running(env: Mapping[str, str], *, private: bool = False) -> list[NodeInfo]:
    """The nodes of this user that accept connections, also while their daemon is away. ``private``: those as well."""
    return [node for node in find_nodes(env) if (private or not node.private) and _accepts(node)]


def _accepts(node: NodeInfo) -> bool:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(1)
    try:
        sock.connect(os.path.join(node.dir, "control.sock"))
    except OSError:
        return False
    finally:
        sock.close()
    return True


def find(address: str | None, env: Mapping[str, str]) -> NodeInfo | None:
    """The node to connect to; None: there is none and none was asked for. Raises ConnectionError, ValueError."""
    nodes = running(env)
    if address is None:
        clusters = sorted({node.cluster for node in nodes})
        if len(clusters) > 1:
            raise ConnectionError(
                f"several clusters of this user run here ({', '.join(clusters)}): name one with "
                "noded.init(address=...) or NODED_ADDRESS, or force a private one with address='local'"
            )
        return nodes[0] if nodes else None
    if address == "auto":
        if not nodes:
            raise ConnectionError(
                "noded.init(address='auto'): no cluster of this user runs on this host; "
                "start one with `noded start --head`"
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
    for node in running(env, private=True):  # who knows the address was told it by the program whose node it is
        if node.port == int(port) and host in (node.host, "localhost", "127.0.0.1", "[::1]", socket.gethostname()):
            return node
    raise ConnectionError(
        f"no noded node of this user on this host listens at {address}; `noded status` lists those that run, "
        "`noded start --head` starts one"
    )
