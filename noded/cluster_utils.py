"""``Cluster``: a cluster for tests, of real daemons on this machine, that ends with the program that makes it.

It has one node for now: the first ``add_node`` makes it, unless ``initialize_head`` has. Clusters of several nodes
come with a later version.
"""

from __future__ import annotations

import atexit
import os
import shutil
import time
from pathlib import Path
from typing import Any

from noded.client import discovery
from noded.client.api import init, shutdown
from noded.client.local_cluster import LocalCluster
from noded.client.options import check_sizes
from noded.client.runtime import current
from noded.config import home, node_in
from noded.policy.labels import check_own

_DEFAULTS: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 150 << 20}
_SIZES = ("num_cpus", "num_gpus", "memory", "resources", "object_store_memory")
_HARMLESS = ("include_dashboard", "dashboard_host", "dashboard_port", "node_ip_address", "log_to_driver")


class Node:
    """A node of a ``Cluster``."""

    def __init__(self, process: LocalCluster):
        found = node_in(Path(process.run_dir))
        self._process = process
        self.address = process.address
        self.node_id = found.node_id if found is not None else ""
        self.run_dir = process.run_dir

    @property
    def pid(self) -> int:
        """Of its daemon."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it takes connections."""
        return any(str(node.dir) == self.run_dir for node in discovery.running(os.environ))

    def __repr__(self) -> str:
        return f"Node({self.address}, {self.node_id})"


class Cluster:
    """``head_node_args`` and ``node_args`` are the sizes that ``noded.init`` takes; by default one CPU and 150 MiB of
    object store. ``connect``: this program is connected as well. Use it as a context manager, or call ``shutdown``.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: dict[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ):
        self.head_node: Node | None = None
        self.worker_nodes: set[Node] = set()
        self.connected = False
        if connect and not initialize_head:
            raise RuntimeError("Cannot connect to uninitialized cluster: pass initialize_head=True as well")
        if initialize_head:
            self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()
        if shutdown_at_exit:
            atexit.register(self.shutdown)

    @property
    def address(self) -> str | None:
        """For ``noded.init``; None before there is a node."""
        return self.head_node.address if self.head_node is not None else None

    gcs_address = address

    def add_node(self, wait: bool = True, labels: dict[str, str] | None = None, **node_args: Any) -> Node:
        """Start the node. Raises NotImplementedError for a second one."""
        if self.head_node is not None:
            raise NotImplementedError(
                "a Cluster has one node in this version of noded: several nodes come with a later one; give the first "
                "one the CPUs and resources that all would have"
            )
        unknown = [key for key in node_args if key not in (*_SIZES, *_HARMLESS) and not key.startswith("_")]
        if unknown:
            raise TypeError(f"add_node() does not know {', '.join(sorted(unknown))}; known are {', '.join(_SIZES)}")
        sizes = {**_DEFAULTS, **{key: value for key, value in node_args.items() if key in _SIZES}}
        check_sizes(sizes)
        if labels is not None:
            check_own(labels)
        process = LocalCluster({**sizes, "labels": labels, "log_level": "warning"}, private=False)
        process.start()
        self.head_node = Node(process)
        if wait:
            self.wait_for_nodes()
        return self.head_node

    def remove_node(self, node: Node, allow_graceful: bool = True) -> None:
        """End a node with all its work; without ``allow_graceful`` its processes are killed."""
        if node is not self.head_node:
            raise ValueError(f"{node!r} is not a node of this cluster")
        self.head_node = None
        connection = current()
        if connection is not None and connection.run_dir == node.run_dir and connection.kind == "driver":
            shutdown()
        process = node._process
        process.request_stop()
        process.stop(10.0 if allow_graceful else 0.0)
        shutil.rmtree(home(os.environ) / "clusters" / process.name, ignore_errors=True)

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Until every node takes connections. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while len(self.list_all_nodes()) < (self.head_node is not None):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the node {self.head_node!r} took no connections for {timeout:g} s")
            time.sleep(0.01)

    def list_all_nodes(self) -> list[Node]:
        """The nodes that take connections."""
        return [self.head_node] if self.head_node is not None and self.head_node.alive() else []

    def remaining_processes_alive(self) -> bool:
        """Whether no node has ended that was not removed."""
        return len(self.list_all_nodes()) == (self.head_node is not None)

    def connect(self, namespace: str | None = None) -> None:
        """Connect this program, as ``noded.init(cluster.address)`` does."""
        if self.address is None:
            raise RuntimeError("Cannot connect to uninitialized cluster: call add_node() first")
        if self.connected and current() is not None:
            raise RuntimeError("this program is connected already")
        init(self.address, namespace=namespace, ignore_reinit_error=True)
        self.connected = True

    def shutdown(self) -> None:
        """End the node and what belongs to it; a connection of this program to it is closed first."""
        if self.head_node is not None:
            self.remove_node(self.head_node)
        self.connected = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
