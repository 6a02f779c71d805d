"""Finding the cluster that ``init`` should connect to, among the nodes of this user on this host."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from noded.config import NodeInfo, find_nodes, home, read_token

if TYPE_CHECKING:
    from noded.client.remote_driver import Remote


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


def find(address: str | None, env: Mapping[str, str]) -> NodeInfo | str | None:
    """The node to connect to, or the address of one elsewhere; None: there is none and none was asked for. Raises
    ConnectionError, ValueError.
    """
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
    plain = address.removeprefix("noded://")
    host, colon, port = plain.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(
            f"address must be 'local', 'auto', host:port, or the name of a cluster running here, not {address!r}"
        )
    found = running(env, private=True)  # who knows the address was told it by the program whose node it is
    for node in found:
        if node.port == int(port) and host in (node.host, "localhost", "127.0.0.1", "[::1]", socket.gethostname()):
            return node
    for node in found:
        if node.head == plain:  # a node of that cluster is here: by it, objects are in shared memory
            return node
    return plain


def remote(address: str, env: Mapping[str, str]) -> Remote:
    """The way to a node of another host. Raises ConnectionError, ConfigError."""
    from noded.client.remote_driver import Remote

    token = read_token(home(env), env)
    if token is None:
        raise ConnectionError(
            f"no noded node of this user on this host listens at {address}, and to connect to one of another host this "
            "program needs the cluster's token: set NODED_TOKEN or NODED_TOKEN_FILE to the head's "
            "($NODED_HOME/token there)"
        )
    names = ("NODED_TLS_CERT", "NODED_TLS_KEY", "NODED_TLS_CA")
    files = [Path(env[name]) for name in names if env.get(name)]
    if not files:
        return Remote(address, token, None)
    if len(files) < len(names):
        raise ConnectionError(f"TLS needs all of {', '.join(names)}")
    from noded.wire.tls import TlsFiles, client_context

    return Remote(address, token, client_context(TlsFiles(*files)))
