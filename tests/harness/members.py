"""Several real nodes of one cluster: all on this machine, or each on a host of a Lan (see netns.py).

    with Lan() as lan, Members(host=lan.host("a")) as cluster:
        n1 = cluster.add(name="n1", host=lan.host("b"))
        with lan.host("b").driver(source) as driver: ...

A member is a Node (see cluster.py) with the same faults: kill9(), restart(), signal(). Those without a host share the
session's directories, as nodes of one machine do. Its stop() ends this member alone; Members.stop() is `noded stop`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.cluster import Node
from harness.netns import Host
from harness.processes import Process, kill
from harness.wait import wait_for
from noded.config import remove_node_dir


class Member(Node):
    """The head (`head=True`), or a node that joins the head at `address`."""

    def __init__(
        self,
        *flags: str,
        head: bool = False,
        address: str = "",
        name: str = "",
        host: Host | None = None,
        num_cpus: float = 2,
        cluster: str | None = None,
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 20,
    ) -> None:
        assert head or (address and name and cluster), "what joins has an address, a name, and the cluster's name"
        assert not (head and address), "the head joins nobody"
        place = dict(host.env) if host else {}
        super().__init__(
            *flags, num_cpus=num_cpus, cluster=cluster, env={**place, **(env or {})}, ready_timeout=ready_timeout
        )
        self.head = head
        self.joins = address
        self.name = name or "head"
        self.host = host

    def stop(self, timeout: float = 20) -> None:
        """End this member alone: SIGTERM to its daemon; where that is gone, what is left of it is killed."""
        if self.running:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
            assert self._process is not None
            self._process.wait(timeout)
            wait_for(lambda: not self.processes(), lambda: f"still running: {self._listing()}", timeout)
        elif self.processes():
            self._end_everything()
            remove_node_dir(Path(self.dir))
        self._close_output()

    def crash(self) -> None:
        """SIGKILL daemon and spawner at once, and the kernel ends the workers: start() begins a new incarnation."""
        spawners = self.spawners()
        assert spawners and self._process is not None, f"{self} has no spawner"
        # Stopped first, so that neither sees the other's end.
        for process in spawners:
            os.kill(process.pid, signal.SIGSTOP)
        self._process.kill()
        kill(spawners)
        self._process.wait(10)
        gone = {process.pid for process in spawners}
        wait_for(
            lambda: not self.workers() and not gone & {process.pid for process in self.spawners()},
            lambda: f"still running after the crash: {self._listing()}",
        )

    def stop_by_command(self, timeout: float = 20) -> None:
        """`noded stop` where this member is: it ends all of the cluster that shares its run directory."""
        super().stop(timeout)

    def _role(self) -> list[str]:
        role = ["--head"] if self.head else ["--address", self.joins]
        # A head that starts over is where its members look for it.
        port = self.address.rpartition(":")[2] if self.head and self.ready else "0"
        return [*role, "--node-name", self.name, "--port", port, *(["--host", self.host.ip] if self.host else [])]

    def _in_place(self, command: list[str]) -> list[str]:
        return self.host.command(command) if self.host else command

    def __str__(self) -> str:
        return f"member {self.name} of {self.cluster}" + (f" on {self.host.name}" if self.host else "")


class Members:
    """A head and what has joined it; all end at the end, the head last. `flags`, `env`, `ready_timeout`: of all."""

    def __init__(
        self,
        *flags: str,
        host: Host | None = None,
        num_cpus: float = 2,
        cluster: str | None = None,
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 20,
    ) -> None:
        self.flags = flags
        self.env = dict(env or {})
        self._ready_timeout = ready_timeout
        self.head = Member(
            *flags,
            head=True,
            host=host,
            num_cpus=num_cpus,
            cluster=cluster,
            env=self.env,
            ready_timeout=ready_timeout,
        )
        self.all: dict[str, Member] = {"head": self.head}
        self._stack = ExitStack()

    @property
    def address(self) -> str:
        return self.head.address

    def __getitem__(self, name: str) -> Member:
        return self.all[name]

    def add(
        self,
        *flags: str,
        name: str = "",
        host: Host | None = None,
        num_cpus: float = 2,
        env: Mapping[str, str] | None = None,
    ) -> Member:
        """Start a node that joins; n1, n2, … unless it has a name."""
        name = name or f"n{len(self.all)}"
        assert name not in self.all, f"there is a member {name}"
        member = Member(
            *self.flags,
            *flags,
            address=self.address,
            name=name,
            host=host,
            num_cpus=num_cpus,
            cluster=self.head.cluster,
            env={**self.env, **(env or {})},
            ready_timeout=self._ready_timeout,
        )
        self._stack.enter_context(member)
        self.all[name] = member
        return member

    def stop(self, timeout: float = 20) -> None:
        """`noded stop` on each host."""
        for member in reversed(self.all.values()):
            member.stop_by_command(timeout)

    def move_head(self, *flags: str, name: str, host: Host | None = None) -> Member:
        """Another head, with the same storage and address, where nothing is of the one before, which has crashed."""
        port = self.head.address.rpartition(":")[2]
        flags = (*self.flags, "--port", port, *flags)
        head = Member(*flags, head=True, name=name, host=host, num_cpus=0, cluster=self.head.cluster, env=self.env)
        self.head = self.all[name] = self._stack.enter_context(head)
        return head

    def processes(self) -> list[Process]:
        return [process for member in self.all.values() for process in member.processes()]

    def settle(self, timeout: float = 20) -> dict[str, dict[str, Any]]:
        """Node.settle() of each member that runs; their status by name."""
        return {name: member.settle(timeout) for name, member in self.all.items() if member.running}

    def __enter__(self) -> Members:
        self._stack.enter_context(self.head)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
