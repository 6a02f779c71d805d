"""``Cluster``: a cluster for tests, of real daemons on this machine, that ends with the program that makes it.

The first ``add_node`` makes the head, unless ``initialize_head`` has; all further nodes join it. A node's daemon that
dies is started again, as a service manager would, unless ``kill`` ended it: then ``restart`` does.
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
from noded.wire import question

_DEFAULTS: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 150 << 20}
_SIZES = ("num_cpus", "num_gpus", "memory", "resources", "object_store_memory")
_HARMLESS = ("include_dashboard", "dashboard_host", "dashboard_port", "node_ip_address", "log_to_driver")
_ASK_SECONDS = 2.0
_LEAVE_SECONDS = 10.0


class Node:
    """A node of a ``Cluster``."""

    def __init__(self, process: LocalCluster, name: str):
        self._process = process
        self.name = name
        self.run_dir = process.run_dir

    @property
    def address(self) -> str:
        return self._process.address

    @property
    def node_id(self) -> str:
        """The same when its daemon was killed and started again; another when the whole node started over."""
        found = node_in(Path(self.run_dir))
        return found.node_id if found is not None else ""

    @property
    def pid(self) -> int:
        """Of its daemon."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it takes connections, also while its daemon is away for a moment."""
        return any(str(node.dir) == self.run_dir for node in discovery.running(os.environ))

    def ask(self, what: str, arguments: dict[str, Any] | None = None) -> Any:
        """What its daemon answers to a question such as ``status``. Raises OSError, ``wire.question.Refused``, …"""
        return question.ask(os.path.join(self.run_dir, "control.sock"), what, arguments, seconds=_ASK_SECONDS)

    def __repr__(self) -> str:
        return f"Node({self.name}, {self.address}, {self.node_id})"


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
        self._name = ""
        self._names = 0
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

    @property
    def name(self) -> str:
        """For ``noded.init`` and ``--cluster``; empty before there is a node."""
        return self._name

    # ------------------------------------------------------------ nodes come and go

    def add_node(
        self, wait: bool = True, labels: dict[str, str] | None = None, node_name: str | None = None, **node_args: Any
    ) -> Node:
        """Start a node: the head, or one that joins it. ``wait``: until the head counts it among the living."""
        unknown = [key for key in node_args if key not in (*_SIZES, *_HARMLESS) and not key.startswith("_")]
        if unknown:
            known = ", ".join((*_SIZES, "labels", "node_name"))
            raise TypeError(f"add_node() does not know {', '.join(sorted(unknown))}; known are {known}")
        sizes = {**_DEFAULTS, **{key: value for key, value in node_args.items() if key in _SIZES}}
        check_sizes(sizes)
        if labels is not None:
            check_own(labels)
        flags = {**sizes, "labels": labels, "log_level": "warning"}
        if self.head_node is None and self.worker_nodes:
            raise RuntimeError("the head of this cluster was removed: call shutdown(), which removes the rest as well")
        name = node_name or self._next_name()
        if name in {node.name for node in self._nodes()}:
            raise ValueError(f"there is a node {name!r} already: give another node_name")
        if self.head_node is None:
            process = LocalCluster(flags, private=False, node_name=node_name or "")
        else:
            process = LocalCluster(
                flags, private=False, cluster=self._name, head=self.head_node.address, node_name=name
            )
        process.start()
        node = Node(process, name)
        if self.head_node is None:
            self.head_node, self._name = node, process.name
        else:
            self.worker_nodes.add(node)
        if wait:
            self._wait_for([node], 30)
        return node

    def _next_name(self) -> str:
        if self.head_node is None:
            return "head"
        self._names += 1
        return f"n{self._names}"

    def remove_node(self, node: Node, allow_graceful: bool = True) -> None:
        """End a node with all its work, as ``noded stop`` would; the head's end is that of all others. Without
        ``allow_graceful`` its daemon, spawner and workers are killed, and the head is left to find that out.
        """
        self._check(node)
        ends = [node]
        if node is self.head_node and allow_graceful:
            ends += self.worker_nodes
            for member in self.worker_nodes:
                member._process.expect_end()
        for one in ends:
            self._end(one, allow_graceful)
        if not self._nodes():
            shutil.rmtree(home(os.environ) / "clusters" / self._name, ignore_errors=True)

    def _end(self, node: Node, graceful: bool) -> None:
        connection = current()
        if connection is not None and connection.run_dir == node.run_dir and connection.kind == "driver":
            shutdown()
            self.connected = False
        if graceful:
            node._process.request_stop()
            node._process.stop(_LEAVE_SECONDS)
        else:
            node._process.kill_all()
        if node is self.head_node:
            self.head_node = None
        else:
            self.worker_nodes.discard(node)
            shutil.rmtree(home(os.environ) / "clusters" / self._name / "nodes" / node.name, ignore_errors=True)

    def kill(self, node: Node) -> None:
        """SIGKILL the node's daemon alone. It stays away until ``restart``; what runs on the node goes on, for a minute
        at most.
        """
        self._check(node)
        node._process.kill()

    def restart(self, node: Node, wait: bool = True) -> None:
        """Start the node's daemon again, which finds what it had; one that runs is killed."""
        self._check(node)
        node._process.restart()
        if wait:
            self._wait_for([node], 30)

    def _check(self, node: Node) -> None:
        if node not in self._nodes():
            raise ValueError(f"{node!r} is not a node of this cluster")

    # ------------------------------------------------------------ which there are

    def _nodes(self) -> list[Node]:
        head = [self.head_node] if self.head_node is not None else []
        return head + sorted(self.worker_nodes, key=lambda node: node.name)

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Until the head counts these nodes, and no others, among the living. Raises TimeoutError."""
        self._wait_for(None, timeout)

    def _wait_for(self, nodes: list[Node] | None, timeout: float) -> None:
        """For these; None: for all, and for the end of all others."""
        deadline = time.monotonic() + timeout
        while True:
            wanted = {node.node_id for node in (self._nodes() if nodes is None else nodes)}
            living, problem = self._living()
            if living == wanted if nodes is None else living >= wanted:
                return
            if time.monotonic() > deadline:
                text = f"after {timeout:g} s the head counts {len(living)} nodes, not {len(wanted)}"
                raise TimeoutError(problem or f"{text}: {', '.join(sorted(living)) or 'none'} are alive")
            time.sleep(0.01)

    def _living(self) -> tuple[set[str], str]:
        """Ids of the nodes that the head takes for alive; why that is not known."""
        if self.head_node is None:
            return set(), ""
        try:
            found = self.head_node.ask("cluster")["nodes"]
        except Exception as error:  # whatever it is: the head may be there in a moment
            return set(), f"the head {self.head_node!r} does not answer: {type(error).__name__}: {error}"
        return {node["id"] for node in found if node["state"] in ("ALIVE", "DRAINING")}, ""

    def list_all_nodes(self) -> list[Node]:
        """The nodes that take connections, the head first."""
        return [node for node in self._nodes() if node.alive()]

    def remaining_processes_alive(self) -> bool:
        """Whether no node has ended that was not removed."""
        return len(self.list_all_nodes()) == len(self._nodes())

    # ------------------------------------------------------------ this program

    def connect(self, namespace: str | None = None) -> None:
        """Connect this program, as ``noded.init(cluster.address)`` does."""
        if self.address is None:
            raise RuntimeError("Cannot connect to uninitialized cluster: call add_node() first")
        if self.connected and current() is not None:
            raise RuntimeError("this program is connected already")
        init(self.address, namespace=namespace, ignore_reinit_error=True)
        self.connected = True

    def shutdown(self) -> None:
        """End all nodes and what belongs to them; a connection of this program to one of them is closed first."""
        connection = current()
        if connection is not None and connection.kind == "driver":
            if connection.run_dir in {node.run_dir for node in self._nodes()}:
                shutdown()
        if self.head_node is not None:
            self.remove_node(self.head_node)
        for node in list(self.worker_nodes):
            self.remove_node(node)
        self.connected = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
