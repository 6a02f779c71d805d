"""A private cluster for ``noded.init()`` without an address: a daemon of our own that ends with the program.

This process supervises the daemon: when it dies it is started again in the same run directory, where the
spawner has kept everything.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from noded.exceptions import NodedSystemError
from noded.spawner import protocol


class LocalCluster:
    """``start()`` returns when the daemon is ready; ``stop()`` when nothing of it is left. One that is not ``private``
    is for other programs as well; it ends with this one all the same.
    """

    def __init__(self, flags: dict[str, Any], *, private: bool = True):
        self._flags = flags
        self._private = private
        self._name = f"{'private' if private else 'cluster'}-{os.getpid()}-{secrets.token_hex(3)}"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self.run_dir = ""
        self.address = ""

    def start(self, timeout: float = 30.0) -> None:
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
        self._watcher = threading.Thread(target=self._watch, name="noded-supervisor", daemon=True)
        self._watcher.start()

    def _spawn(self, ready_fd: int | None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "noded", "--head", "--port", "0", "--cluster", self._name]
        command += ["--owner-pid", str(os.getpid()), *(["--private"] if self._private else [])]
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
                raise NodedSystemError(f"the private noded daemon was not ready after {timeout:g} s")
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
            raise NodedSystemError(
                f"the private noded daemon did not start: {ready.get('error') or 'see its output above'}"
            )
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
            pause = 0.0 if time.monotonic() - started > 10 else min(2.0, pause * 2 + 0.05)
            if not os.path.exists(os.path.join(self.run_dir, "spawner.sock")) and not os.path.isdir(self.run_dir):
                return
            if not self._stopping.wait(pause if pause > 0.05 else 0):
                self._process = self._spawn(None)

    @property
    def name(self) -> str:
        return self._name

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def expect_end(self) -> None:
        """From here on the daemon's end is not a fault."""
        self._stopping.set()

    def request_stop(self) -> None:
        """Ask the daemon to end the node, for those who are not connected to it."""
        self.expect_end()
        if self._process is not None:
            self._process.terminate()

    def stop(self, timeout: float = 10.0) -> None:
        """After the daemon was asked to stop: wait for its end, force it if need be."""
        self._stopping.set()
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill()
        stop_spawner(self.run_dir)
        if self._watcher is not None:
            self._watcher.join(5)
        parent = os.path.dirname(self.run_dir)
        if os.path.basename(parent) == self._name:
            shutil.rmtree(parent, ignore_errors=True)


def stop_spawner(run_dir: str) -> None:
    """End a spawner whose daemon is gone; it sweeps its workers. Nothing happens when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    try:
        sock.connect(os.path.join(run_dir, "spawner.sock"))
        protocol.send(sock, {"t": "hello", "protocol": protocol.PROTOCOL})
        protocol.send(sock, {"t": "stop"})
        while sock.recv(65536):
            pass
    except OSError:
        pass
    finally:
        sock.close()
