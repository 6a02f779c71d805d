"""A real node: `noded --head --port 0` as a process of its own, in a cluster of its own name.

The session's NODED_RUN_DIR and NODED_HOME (see conftest.py) apply, so `noded.init(address=node.address)` in
the test finds the token. Faults are real: kill9() is SIGKILL, restart() starts another daemon for the same
node, which finds the spawner, the workers and the objects of the first.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from harness.processes import Process, all_processes, kill, mentioning
from harness.wait import wait_for
from noded.cli.control import request_status
from noded.config import node_in

REPOSITORY = Path(__file__).resolve().parents[2]
_numbers = itertools.count(1)


class Node:
    def __init__(
        self,
        *flags: str,
        num_cpus: float = 2,
        cluster: str | None = None,
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 20,
        root: Path = REPOSITORY,
    ) -> None:
        self.root = root
        """The tree whose noded runs; another one from the next start on is an upgrade."""
        self.cluster = cluster or f"test-{os.getpid()}-{next(_numbers)}"
        self.flags = ["--cluster", self.cluster, "--num-cpus", f"{num_cpus:g}", *flags]
        self.env = dict(env or {})
        self.ready: dict[str, Any] = {}
        self._ready_timeout = ready_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._output: Any = None

    # What the node has said of itself in its ready line.

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    @property
    def dir(self) -> str:
        return str(self.ready["dir"])

    @property
    def pid(self) -> int:
        assert self._process is not None, "the node was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Node:
        assert not self.running, f"the daemon runs already (pid {self.pid})"
        if self._output is None:
            self._output = tempfile.TemporaryFile(prefix="noded-test-output-")
        read_end, write_end = os.pipe()
        command = [*noded_command(), *self._role(), "--ready-fd", str(write_end), *self.flags]
        try:
            self._process = subprocess.Popen(
                self._in_place(command),
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                pass_fds=[write_end],
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        try:
            line = self._first_line(read_end)
        finally:
            os.close(read_end)
        try:
            self.ready = json.loads(line)
        except ValueError:
            self._give_up(f"the node did not start, it said {line!r}")
        return self

    def refused(self) -> str:
        """Start a daemon that must say why it does not take over what runs; what it said."""
        before = self.ready
        self.start()
        told, self.ready = self.ready, before
        assert "error" in told, f"it has taken over: {told}"
        assert self._process is not None
        self._process.wait(10)
        return str(told["error"])

    def forget(self) -> None:
        """Of one that has said why it does not start."""
        assert self._process is not None and "error" in self.ready
        self._process.wait(10)
        self._close_output()

    def kill9(self) -> None:
        """SIGKILL the daemon alone, and wait for its end. Works on a stopped one too."""
        assert self._process is not None and self.running, "the daemon is not running"
        self._process.kill()
        self._process.wait(10)

    def restart(self) -> Node:
        """kill9() where it still runs, then a new daemon for the same node."""
        if self.running:
            self.kill9()
        return self.start()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, timeout: float = 20) -> None:
        """`noded stop`, whatever state the node is in: afterwards no process of it is left."""
        if self.running or self.processes():
            done = subprocess.run(
                [*noded_command(), "stop", "--cluster", self.cluster],
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                timeout=timeout,
            )
            text = done.stdout.decode(errors="replace")
            assert done.returncode == 0, f"noded stop ended with {done.returncode}: {text}"
        if self._process is not None:
            self._process.wait(timeout)
        wait_for(lambda: not self.processes(), lambda: f"still running: {self._listing()}", timeout)
        self._close_output()

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself, as `noded status` gets it."""
        node = node_in(Path(self.dir))
        assert node is not None, f"there is no node in {self.dir}"
        return request_status(node)

    def settle(self, timeout: float = 20) -> dict[str, Any]:
        """Wait until no driver, lease or actor is left, nothing is in use, and the store is empty."""

        def left() -> str:
            status = self.status()
            busy = {
                name: status[name] for name in ("drivers", "actors", "leases", "demands", "objects") if status[name]
            }
            busy |= {name: used for name, used in status["resources"]["used"].items() if used}
            if status["store"]["used_bytes"] or status["store"]["on_disk"] or status["state"] != "READY":
                busy |= {"state": status["state"], "store": status["store"]}
            return str(busy) if busy else ""

        wait_for(lambda: not left(), lambda: f"still in use: {left()}", timeout)
        return self.status()

    def processes(self) -> list[Process]:
        """The node's daemon, spawner, templates and workers: what was started for its directory."""
        running = [process for process in all_processes().values() if process.state != "Z"]
        found = mentioning(running, [self.dir]) if self.ready else []
        if self.running and self.pid not in {process.pid for process in found}:
            found += [process for process in running if process.pid == self.pid]
        return [process for process in found if process.pid != os.getpid()]

    def workers(self) -> list[Process]:
        """Those that are forked and live, also stopped ones; oldest first."""
        template = b":template00000000\0"
        found = [p for p in self.processes() if "noded.template" in p.command and p.state not in "ZX"]
        return sorted((p for p in found if template not in p.started_with), key=lambda p: p.started)

    def spawners(self) -> list[Process]:
        """One, or none for the moment after it has ended."""
        return [p for p in self.processes() if "noded/spawner" in p.command and p.state not in "ZX"]

    def output(self) -> str:
        """The last lines that the daemon wrote."""
        if self._output is None:
            return "no output"
        size = os.fstat(self._output.fileno()).st_size
        text = os.pread(self._output.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
        return f"its last output:\n{text}" if text else "it wrote nothing"

    def __enter__(self) -> Node:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except BaseException:
            self._end_everything()
            if error is None:  # else the test's own failure is the story
                raise
        finally:
            self._close_output()

    def _role(self) -> list[str]:
        """What the command line says before the node's flags."""
        return ["--head", "--port", "0"]

    def _in_place(self, command: list[str]) -> list[str]:
        """The command that runs `command` where the node is to be, as the same process."""
        return command

    def _first_line(self, fd: int) -> str:
        data = b""
        deadline = time.monotonic() + self._ready_timeout
        while b"\n" not in data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                self._give_up(f"the node was not ready in {self._ready_timeout:g} s")
            chunk = os.read(fd, 65536)
            if not chunk:
                break
            data += chunk
        return data.decode(errors="replace").strip()

    def _give_up(self, reason: str) -> NoReturn:
        text = f"{reason}; {self.output()}"
        self._end_everything()
        self._close_output()
        raise AssertionError(text)

    def _close_output(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None

    def _end_everything(self) -> None:
        # The daemon first: else it would replace its spawner.
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        kill(self.processes())
        wait_for(lambda: not self.processes(), lambda: f"SIGKILL did not end: {self._listing()}")

    def _listing(self) -> str:
        return "; ".join(map(str, self.processes()))


def noded_command() -> list[str]:
    """`noded` of the checkout under test, by the interpreter that runs the tests."""
    return [sys.executable, "-m", "noded"]
