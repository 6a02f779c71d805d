"""A node that ends with this program: the private cluster of ``noded.init()`` without an address, or a node of a
``cluster_utils.Cluster``.

This process supervises the daemon: when it dies it is started again in the same run directory, where the
spawner has kept everything. Only one that was killed by ``kill()`` stays away until ``restart()``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from noded.config import remove_node_dir
from noded.exceptions import NodedSystemError
from noded.spawner import protocol


class LocalCluster:
    """``start()`` returns when the daemon is ready; ``stop()`` when nothing of it is left. One that is not ``private``
    is for other programs as well; it ends with this one all the same. With ``head``, the address of one, it is a node
    ``node_name`` of that one's ``cluster``.
    """

    def __init__(
        self, flags: dict[str, Any], *, private: bool = True, cluster: str = "", head: str = "", node_name: str = ""
    ):
        self._flags = flags
        self._private = private
        self._name = cluster or f"{'private' if private else 'cluster'}-{os.getpid()}-{secrets.token_hex(3)}"
        self._head = head
        self._node_name = node_name
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._supervised = threading.Event()
        """Not set while the daemon is to stay away."""
        self._supervised.set()
        self._watcher: threading.Thread | None = None
        self.run_dir = ""
        self.address = ""

    def start(self, timeout: float = 30.0) -> None:
        self._launch(timeout)
        self._watcher = threading.Thread(target=self._watch, name="noded-supervisor", daemon=True)
        self._watcher.start()

    def _launch(self, timeout: float) -> None:
        read_fd, write_fd = os.pipe()
        try:
            self._process = self._spawn(write_fd)
        finally:
            os.close(write_fd)
        try:
            ready = self._await_ready(read_fd, timeout)
        finally:
            os.close(read_fd)
        self.run_dir, self.address = ready["dir"], ready["address"]

    def _spawn(self, ready_fd: int | None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "noded", *(["--address", self._head] if self._head else ["--head"])]
        # One that starts over, because its spawner died as well, is where the others look for it.
        port = "0" if self._private else self.address.rpartition(":")[2] or "0"
        command += ["--port", port, "--cluster", self._name, "--owner-pid", str(os.getpid())]
        command += [*(["--node-name", self._node_name] if self._node_name else [])]
        command += [*(["--private"] if self._private else [])]
        for key, value in self._flags.items():
            if value is not None:
                command += [f"--{key.replace('_', '-')}", json.dumps(value) if isinstance(value, dict) else str(value)]
        fds: tuple[int, ...] = ()
        if ready_fd is not None:
            command += ["--ready-fd", str(ready_fd)]
            fds = (ready_fd,)
        environment = dict(os.environ)
        package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        if package_parent not in sys.path[1:] or os.environ.get("PYTHONPATH"):
            environment["PYTHONPATH"] = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
        # A session of its own: Ctrl-C is for the program, not for its daemon.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=fds,
            env=environment,
            start_new_session=True,
            cwd="/",
        )

    def _await_ready(self, fd: int, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        text = b""
        while not text.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                self._kill()
                raise NodedSystemError(f"the noded daemon was not ready after {timeout:g} s")
            got = os.read(fd, 65536)
            if not got:
                break
            text += got
        try:
            ready: dict[str, Any] = json.loads(text)
        except ValueError:
            ready = {"error": text.decode(errors="replace")}
        if "error" in ready or not ready:
            self._kill()
            raise NodedSystemError(f"the noded daemon did not start: {ready.get('error') or 'see its output above'}")
        return ready

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _watch(self) -> None:
        pause = 0.0
        while not self._stopping.is_set():
            assert self._process is not None
            started = time.monotonic()
            self._process.wait()
            if self._stopping.is_set():
                return
            if not self._supervised.is_set():
                self._supervised.wait()
                continue
            pause = 0.0 if time.monotonic() - started > 10 else min(2.0, pause * 2 + 0.05)
            if not os.path.exists(os.path.join(self.run_dir, "spawner.sock")) and not os.path.isdir(self.run_dir):
                return
            if not self._stopping.wait(pause if pause > 0.05 else 0):
                self._process = self._spawn(None)

    # ------------------------------------------------------------ faults, for tests

    def kill(self) -> None:
        """SIGKILL the daemon alone: spawner and workers live on without it, for its grace, or until ``restart()``."""
        self._supervised.clear()
        self._kill()

    def restart(self, timeout: float = 30.0) -> None:
        """Another daemon for the same node; the one that runs is killed. Returns when it is ready."""
        self.kill()
        try:
            self._launch(timeout)
        finally:
            self._supervised.set()

    def kill_all(self) -> None:
        """SIGKILL everything of this node at once: what its spawner would have ended in order."""
        self._end_supervision()
        if self._process is not None:
            self._kill()
        while pids := list(_processes_of(self.run_dir)):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        self._finish()

    @property
    def name(self) -> str:
        return self._name

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def expect_end(self) -> None:
        """From here on the daemon's end is not a fault."""
        self._end_supervision()

    def request_stop(self) -> None:
        """Ask the daemon to end the node, for those who are not connected to it."""
        self.expect_end()
        if self._process is not None:
            self._process.terminate()

    def stop(self, timeout: float = 10.0) -> None:
        """After the daemon was asked to stop: wait for its end, force it if need be."""
        self._end_supervision()
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill()
        stop_spawner(self.run_dir)
        self._finish()

    def _end_supervision(self) -> None:
        self._stopping.set()
        self._supervised.set()

    def _finish(self) -> None:
        if self._watcher is not None:
            self._watcher.join(5)
        if self.run_dir:
            remove_node_dir(Path(self.run_dir))


def _processes_of(run_dir: str) -> Iterator[int]:
    """Spawner, templates, workers, and all that workers have started: by command line or mark."""
    tag = hashlib.blake2b(run_dir.encode(), digest_size=8).hexdigest()
    place = b"\0--dir\0" + os.fsencode(run_dir) + b"\0"
    mark = f"\0{protocol.MARK}={tag}:".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or is somebody else's
            started_with = (Path("/proc", entry, "cmdline").read_bytes(), Path("/proc", entry, "environ").read_bytes())
            if place in started_with[0] or mark in b"\0" + started_with[1]:
                yield int(entry)


def stop_spawner(run_dir: str) -> None:
    """End a spawner whose daemon is gone; it sweeps its workers. Nothing happens when there is none."""
    try:
        sock, welcome = protocol.connect(os.path.join(run_dir, "spawner.sock"), 10)
        with sock:
            protocol.close_all(welcome.fds.values())
            protocol.send(sock, {"t": "stop"})
            while True:
                protocol.close_all(protocol.recv(sock)[1])
    except (OSError, EOFError, protocol.ProtocolError):
        pass
