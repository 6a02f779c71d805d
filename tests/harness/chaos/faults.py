"""Carries out a schedule: each fault in a thread of its own, and daemons are started again as systemd would.

What is done is kept (`history`, for promises.py) and logged with its time. The plan keeps faults apart by what it
expects; here locks do it by what really happens, as a restart may take longer than planned.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from harness.chaos.load import add_line
from harness.chaos.promises import Happening
from harness.chaos.schedule import LOSES_A_NODE, OF_REDIS, VISIT, VISIT_KILLED, Fault
from harness.members import Member, Members
from harness.netns import Host
from harness.processes import Process
from harness.redis import Server

_PERIOD = 0.25
_LATE = 1.0
"""Seconds: all later faults come later as well."""
_REDIS = "redis"
Visit = Callable[[Fault], None]


class Faults:
    """`problems`: what must not be: a daemon that ended by itself, one that does not start again. `redis`: where the
    head keeps its state, if it does so there.
    """

    def __init__(self, cluster: Members, log: Path, visit: Visit, redis: Server | None = None) -> None:
        self.history: list[Happening] = []
        self.done: dict[str, int] = {}
        self.problems: list[str] = []
        self.position = 0
        self._cluster, self._log, self._visit, self._redis = cluster, log, visit, redis
        self._began = time.monotonic()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        # A fault holds its node's lock while daemon or spawner are touched, or that of Redis; the loss of a node all.
        self._locks = {name: threading.RLock() for name in (*cluster.all, _REDIS)}
        self._filter = threading.Lock()  # the Lan's packet filter is written as a whole
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def run(self, plan: Sequence[Fault], seconds: float, go_on: Callable[[], bool]) -> None:
        """Begin each at its time. Ends after so many seconds, with all faults, or as soon as `go_on()` is false."""
        late = 0.0
        for fault in plan:
            while (left := fault.at + late - self.seconds) > 0 and go_on():
                time.sleep(min(_PERIOD, left))
            if not go_on():
                break
            if -left > _LATE:  # the machine stood still: what was to happen one after the other still does
                late -= left
            self.position = fault.number
            self._threads.append(threading.Thread(target=self._carry_out, args=[fault], name=str(fault)))
            self._threads[-1].start()
        while self.seconds < seconds + late and go_on():
            time.sleep(_PERIOD)
        for thread in self._threads:
            thread.join(300)
            if thread.is_alive():
                self.problems.append(f"fault {thread.name} does not end")

    def note(self, text: str) -> None:
        add_line(self._log, f"{time.monotonic():.2f} {self.seconds:8.2f} {text}")

    def _carry_out(self, fault: Fault) -> None:
        try:
            if fault.kind in (VISIT, VISIT_KILLED):
                self.note(f"{fault}")
                self._visit(fault)
            else:
                own = _REDIS if fault.kind in OF_REDIS else fault.node
                locks = self._locks if fault.kind in LOSES_A_NODE else [own]
                touches = not fault.kind.startswith(("worker", "link"))
                held = [self._locks[name] for name in sorted(locks)] if touches else []
                for lock in held:
                    lock.acquire()
                try:
                    self._do(fault)
                finally:
                    for lock in reversed(held):
                        lock.release()
            self.done[fault.kind] = self.done.get(fault.kind, 0) + 1
        except BaseException:
            self.problems.append(f"{fault}: {traceback.format_exc()}")

    def _do(self, fault: Fault) -> None:
        member = self._cluster[fault.node]
        subject, _, deed = fault.kind.partition("-")
        happening = Happening(fault.kind, fault.node, time.monotonic())
        self.history.append(happening)
        self.note(f"{fault} begins")
        try:
            if subject == "link":
                self._link(member, deed, fault.seconds)
            elif subject == "worker":
                self._signal(happening, member.workers(), fault, deed)
            elif subject == "spawner":
                self._signal(happening, member.spawners(), fault, deed)
            elif fault.kind == "daemon-stop":
                member.signal(signal.SIGSTOP)
                time.sleep(fault.seconds)
                member.signal(signal.SIGCONT)
            elif fault.kind == "daemon-kill":
                member.kill9()
                time.sleep(fault.seconds)
                member.start()
            elif fault.kind in OF_REDIS:
                self._touch_redis(deed, fault.seconds)
            elif fault.kind == "node-crash":
                member.crash()
                time.sleep(fault.seconds)
                member.start()
            else:
                raise AssertionError(f"nobody knows how to do {fault.kind}")
        finally:
            happening.ended = time.monotonic()
            self.note(f"{fault} ends" + (f" (pid {happening.pid})" if happening.pid else ""))

    @staticmethod
    def _signal(happening: Happening, found: list[Process], fault: Fault, deed: str) -> None:
        """To one of these, which may end by itself meanwhile. A node that runs no worker has none."""
        if not found:
            assert fault.kind.startswith("worker"), f"there is no process for {fault}"
            return
        process = found[int(fault.pick * len(found))]
        happening.pid = process.pid
        with suppress(ProcessLookupError):
            if deed == "kill":
                os.kill(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(fault.seconds)
                os.kill(process.pid, signal.SIGCONT)

    def _touch_redis(self, deed: str, seconds: float) -> None:
        assert self._redis is not None, "the run is not on Redis"
        if deed == "kill":
            self._redis.kill9()
            time.sleep(seconds)
            self._redis.start()
        else:
            self._redis.signal(signal.SIGSTOP)
            time.sleep(seconds)
            self._redis.signal(signal.SIGCONT)

    def _link(self, member: Member, deed: str, seconds: float) -> None:
        host = member.host
        assert isinstance(host, Host)
        with self._filter:
            if deed == "down":
                host.cut()
            if deed in ("in", "both"):
                host.block("in")
            if deed in ("out", "both"):
                host.block("out")
        time.sleep(seconds)
        with self._filter:
            if deed == "down":
                host.join()
            else:
                host.unblock()

    def _keep(self) -> None:
        """No daemon may end by itself; one that did is started again, and told of."""
        while not self._stop.wait(_PERIOD):
            for name, member in self._cluster.all.items():
                if self._locks[name].acquire(blocking=False):
                    try:
                        if not member.running:
                            self.problems.append(f"the daemon of {name} ended by itself: {member.output()}")
                            self.note(f"the daemon of {name} ended by itself")
                            member.start()
                    except BaseException:
                        self.problems.append(f"the daemon of {name} did not start again: {traceback.format_exc()}")
                        return
                    finally:
                        self._locks[name].release()

    def __enter__(self) -> Faults:
        self._began = time.monotonic()
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._keeper.join(60)
