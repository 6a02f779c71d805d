"""Where this process runs, also without a connection to a cluster."""

from __future__ import annotations

import socket

from noded.client.runtime import current


def get_node_ip_address(address: str | None = None) -> str:
    """This node's IP address, as the cluster knows it; before ``init`` the one from which ``address`` would be reached
    (``host:port``; by default: hosts outside). No packet is sent.
    """
    connected = current()
    if connected is not None:
        return connected.node_ip
    host, _, port = (address or "8.8.8.8:53").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))
            return str(probe.getsockname()[0])
        except OSError:  # there is no network
            return "127.0.0.1"


def get_node_instance_id() -> str:
    """The cloud's id of this machine, for autoscalers: empty, as noded starts no machines."""
    return ""
