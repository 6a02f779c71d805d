"""The daemon's link to the spawner: connects to the one that is there, or starts one.

Speaks ``spawner/protocol.py``; what the packets mean for workers is ``workers.py``'s business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from noded.config import without_secrets
from noded.spawner import protocol

log = logging.getLogger("noded.spawner_link")

_START_SECONDS = 10
_STOP_SECONDS = 10
_ATTEMPTS = 5


class SpawnerLink:
    """``on_packet(packet)`` gets every packet after the welcome; ``on_lost()`` when the spawner has died. Without
    ``may_start`` somebody else starts the spawner, and it is waited for.
    """

    def __init__(
        self,
        run_dir: str,
        tag: str,
        *,
        grace: float,
        owner_pid: int | None,
        on_packet: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
        may_start: bool = True,
    ):
        self.run_dir = run_dir
        self.tag = tag
        self._grace = grace
        self._owner_pid = owner_pid
        self._on_packet = on_packet
        self._on_lost = on_lost
        self._may_start = may_start
        self._sock: socket.socket | None = None
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._gone = asyncio.Event()
        self.spawner_pid = 0
        self.protocol = protocol.PROTOCOL
        """Which both sides have: the older one's."""

    @property
    def given(self) -> bool:
        """Somebody else started the spawner; false before the start."""
        return self._sock is not None and self._process is None

    @property
    def connected(self) -> bool:
        return self._sock is not None

    async def start(self, epoch: int) -> protocol.Welcome:
        """Connect (killing a daemon that is connected already, which the spawner does) or start a spawner. Returns its
        welcome.
        """
        return await asyncio.to_thread(self._connect_or_spawn, epoch)

    def _connect_or_spawn(self, epoch: int) -> protocol.Welcome:
        for attempt in range(_ATTEMPTS):
            try:
                if not self._listens():
                    if self._may_start:
                        self._spawn()
                    else:
                        self._await_given()
                return self._greet(epoch)
            except protocol.ProtocolError as error:
                raise RuntimeError(str(error)) from None
            except (EOFError, FileNotFoundError, ConnectionError) as error:
                # It ended meanwhile: killed, or at the end of its grace.
                log.warning("the spawner ended when it was needed (%s), attempt %s", error, attempt + 1)
        raise RuntimeError(f"the spawner ends as soon as it is started; see spawner.log in {self.run_dir}")

    @property
    def _path(self) -> str:
        return os.path.join(self.run_dir, "spawner.sock")

    def _greet(self, epoch: int) -> protocol.Welcome:
        sock, welcome = protocol.connect(self._path, _START_SECONDS, epoch)
        self.spawner_pid = welcome.spawner_pid
        self.protocol = welcome.protocol
        sock.setblocking(False)
        self._sock = sock
        self._gone.clear()
        return welcome

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            try:
                probe.connect(self._path)
            except OSError:
                return False
            return True

    def _await_given(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no spawner has come to listen in {self.run_dir} within {_START_SECONDS} s, and this daemon was "
                    "told that somebody else starts it: look at that service (noded-workers.service), or start the "
                    "daemon without --given-spawner"
                )
            time.sleep(0.02)

    def _spawn(self) -> None:
        if self._process is not None:
            self._exit_code()  # no zombie stays
        main = os.path.join(os.path.dirname(os.path.abspath(protocol.__file__)), "__main__.py")
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-I", "-S", main, "--dir", self.run_dir, "--tag", self.tag]
        command += ["--grace", f"{self._grace:g}", "--ready-fd", str(write_fd)]
        if self._owner_pid is not None:
            command += ["--owner-pid", str(self._owner_pid)]
        with open(os.path.join(self.run_dir, "spawner.log"), "ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(write_fd,),
                env=without_secrets(os.environ),
                start_new_session=True,
                cwd="/",
            )
        os.close(write_fd)
        try:
            if not select.select([read_fd], [], [], _START_SECONDS)[0] or not os.read(read_fd, 1):
                if self._exit_code() < 0:
                    raise ConnectionError("it was killed")
                with open(os.path.join(self.run_dir, "spawner.log"), errors="replace") as file:
                    raise RuntimeError(f"the spawner did not start: {file.read()[-2000:] or 'no output'}")
        finally:
            os.close(read_fd)

    def _exit_code(self) -> int:
        """Of the spawner that has closed its connections; 0 when it hangs."""
        assert self._process is not None
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            return 0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to read packets on the loop."""
        assert self._sock is not None
        self._loop = loop
        loop.add_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        for _ in range(64):
            if self._sock is None:
                return
            try:
                packet, fds = protocol.recv(self._sock)
            except (BlockingIOError, InterruptedError):
                return
            except (EOFError, OSError, protocol.ProtocolError) as error:
                self._drop()
                if not self._stopping:
                    log.warning("the spawner is gone: %s", error)
                    self._on_lost()
                return
            protocol.close_all(fds)
            self._on_packet(packet)

    def _drop(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self._gone.set()
        self._out.clear()
        if self._process is not None:
            self._process.poll()

    def send(self, packet: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Queue a packet; dropped when the spawner is gone, because everything it had is gone with it."""
        if self._sock is None:
            return
        self._out.append((protocol.encode(packet), list(fds)))
        self._flush()

    def _flush(self) -> None:
        while self._out and self._sock is not None:
            data, fds = self._out[0]
            try:
                protocol.send_bytes(self._sock, data, fds)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                return  # the reader sees the end
            self._out.popleft()
        if self._sock is not None:
            self._loop.remove_writer(self._sock.fileno())

    def keep(self, name: str, fd: int) -> None:
        self.send({"t": "keep", "name": name}, (fd,))

    async def stop(self) -> None:
        """Full stop: the spawner ends all workers and itself; returns when it is gone."""
        self._stopping = True
        self.send({"t": "stop"})
        if self._sock is not None:
            try:
                await asyncio.wait_for(self._gone.wait(), _STOP_SECONDS)
            except TimeoutError:
                log.error("the spawner (pid %s) has not stopped within %s s", self.spawner_pid, _STOP_SECONDS)
        self._drop()
        if self._process is not None:
            try:
                await asyncio.to_thread(self._process.wait, 5)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def close(self) -> None:
        self._stopping = True
        self._drop()
