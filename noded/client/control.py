"""The control link to the node's daemon, and the helper thread that owns it.

The daemon may be away at any moment. Nothing here is lost then: what is sent while the link is down is
dropped on purpose, because on re-attach the client re-tells its whole state (``retell``), which contains it.
The helper also ticks every few milliseconds while work is outstanding: it flushes, reads data sockets when
nobody does, and watches the clock for the runtime. It sleeps without a timeout when nothing is outstanding.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from noded.exceptions import LocalDaemonDiedError
from noded.wire import messages as m
from noded.wire.handshake import HandshakeError
from noded.wire.link import FrameError, Link, LinkClosed

TICK = 0.005
RELEASE_TICK = 0.2
_CONTROL_PAYLOAD_LIMIT = 256 << 20


class Control:
    """``attach()`` builds the first message, ``on_welcome`` takes what comes with the answer, ``retell``
    sends the state, ``handle`` gets every other message.
    """

    def __init__(
        self,
        path: str,
        lock: Any,
        *,
        attach: Callable[[], m.Attach],
        on_welcome: Callable[[m.Welcome, int], None],
        retell: Callable[[], None],
        handle: Callable[[Any, Any], None],
        tick: Callable[[], float | None],
        holds_something: Callable[[], bool],
        on_lost: Callable[[str], None],
        grace: float,
        name: str,
        connect: Callable[[float], socket.socket] | None = None,
        on_named: Callable[[bytes], None] = lambda prefix: None,
    ):
        self.path = path
        self._dial = connect or self._connect_here
        self._remote = connect is not None
        self.refused = False
        """Nobody listens there."""
        self._on_named = on_named
        self.lock = lock
        self.seq = 0
        self.link: Link | None = None
        self.lost: str = ""
        self.problem = ""
        """Why there is no connection."""
        self._attach = attach
        self._on_welcome = on_welcome
        self._retell = retell
        self._handle = handle
        self._tick = tick
        self._holds_something = holds_something
        self._on_lost = on_lost
        self.grace = grace
        self._name = name
        self._stopping = False
        self._sleeping = False
        self._for_good = False
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self.helper: threading.Thread | None = None
        """Which reads and writes the connection."""

    # ------------------------------------------------------------ any thread, under the lock

    def send(self, message: Any, payload: bytes | memoryview = b"") -> None:
        """Queue a message; dropped while the link is down, where ``retell`` takes its place."""
        if self.link is not None:
            self.link.send(message, payload)

    def take_fd(self) -> int:
        """The descriptor that came with the message that is being handled; -1: none did."""
        return self.link.fds.pop(0) if self.link is not None and self.link.fds else -1

    def _connect_here(self, timeout: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        return sock

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def flush(self) -> None:
        """Write what goes without waiting; the helper does the rest."""
        link = self.link
        if link is None or not link.out:
            return
        try:
            if not link.flush():
                self._epoll.modify(link.fileno(), select.EPOLLIN | select.EPOLLOUT)
        except LinkClosed:  # the helper sees it too, and re-attaches
            pass

    def wake(self) -> None:
        """Call after work became outstanding: the helper may be asleep for good."""
        if self._sleeping:
            self._sleeping = False
            self.poke()

    def stir(self) -> None:
        """Call after the first hold was taken: a helper that sleeps for good would not see it dropped."""
        if self._for_good:
            self._for_good = False
            self.poke()

    def poke(self) -> None:
        try:
            os.eventfd_write(self._wake_fd, 1)
        except OSError:  # closed at shutdown
            pass

    # ------------------------------------------------------------ life

    def start(self, timeout: float) -> None:
        """Attach for the first time (in this thread) and start the helper. Raises LocalDaemonDiedError,
        ConnectionError.
        """
        deadline = time.monotonic() + timeout
        while not self._connect(deadline):
            if self.refused:
                raise LocalDaemonDiedError(
                    f"no noded node of this user on this host listens at {self.path}; `noded status` lists those that "
                    f"run, `noded start --head` starts one (over the network: {self.problem})"
                )
            if time.monotonic() > deadline:
                raise LocalDaemonDiedError(
                    f"no noded daemon answers at {self.path} within {timeout:g} s; look at `noded "
                    "status`, or start one with `noded start --head`"
                )
            time.sleep(0.01)
        self.helper = threading.Thread(target=self._run, name=self._name, daemon=True)
        self.helper.start()

    def stop(self) -> None:
        """End the helper and close the link."""
        self._stopping = True
        self.poke()
        if self.helper is not None and self.helper is not threading.current_thread():
            self.helper.join(5)
        if self.link is not None:
            self.link.close()
            self.link = None
        self._epoll.close()
        os.close(self._wake_fd)

    def abandon(self) -> None:
        """In a forked child: drop our copies of the descriptors without a word to anybody."""
        self._epoll.close()
        os.close(self._wake_fd)
        if self.link is not None:
            self.link.sock.close()

    # ------------------------------------------------------------ helper thread

    def _run(self) -> None:
        while not self._stopping:
            if self.link is None and not self._reattach():
                return
            pause = self._tick()
            if pause is None:
                self._sleeping = True
                pause = self._tick()
            # Said before it is looked whether anything is held: a hold taken right now sees one or the other.
            self._for_good = True
            timeout = self._idle_seconds() if pause is None else pause
            self._for_good = timeout is None
            try:
                events = self._epoll.poll(timeout, 8)
            except InterruptedError:
                continue
            self._sleeping = False
            for fd, what in events:
                if fd == self._wake_fd:
                    try:
                        os.eventfd_read(self._wake_fd)
                    except BlockingIOError:
                        pass
                elif self.link is not None and fd == self.link.fileno():
                    self._on_event(what)

    def _idle_seconds(self) -> float | None:
        """Finalizers must not wake us, so while the process holds anything we look now and then whether it
        was dropped.
        """
        return RELEASE_TICK if self._holds_something() else None

    def _on_event(self, what: int) -> None:
        link = self.link
        assert link is not None
        try:
            with self.lock:
                if what & select.EPOLLOUT and link.flush():
                    self._epoll.modify(link.fileno(), select.EPOLLIN)
                if what & ~select.EPOLLOUT:
                    link.receive_with_fds(self._handle)
                link.flush()
        except (LinkClosed, FrameError):
            self._drop()

    def _drop(self) -> None:
        with self.lock:
            if self.link is not None:
                try:
                    self._epoll.unregister(self.link.fileno())
                except OSError:
                    pass
                self.link.close()
                self.link = None

    def _reattach(self) -> bool:
        deadline = time.monotonic() + self.grace
        pause = 0.005
        while not self._stopping:
            try:
                if self._connect(min(deadline, time.monotonic() + 30)):
                    return True
            except LocalDaemonDiedError as refused:
                self.lost = str(refused)
                break
            if time.monotonic() > deadline:
                self.lost = f"the noded daemon at {self.path} has not come back within its grace of {self.grace:g} s"
                break
            self._tick()
            time.sleep(pause)
            pause = min(0.1, pause * 1.5)
        if self.lost and not self._stopping:
            self._on_lost(self.lost)
        return False

    def _connect(self, deadline: float) -> bool:
        """One try: connect, attach, welcome, re-tell. False when nobody listens or the daemon went away
        meanwhile.
        """
        try:
            sock = self._dial(max(0.1, deadline - time.monotonic()))
        except HandshakeError as refusal:
            raise LocalDaemonDiedError(f"{self.path} does not let this program in: {refusal}") from None
        except OSError as problem:
            self.problem = f"{problem}"
            self.refused = self._remote and isinstance(problem, ConnectionRefusedError)
            return False
        link = Link(sock, m.decode_to_client, payload_limit=_CONTROL_PAYLOAD_LIMIT)
        answer: list[Any] = []
        rest: list[tuple[Any, Any]] = []

        def on_message(message: Any, payload: Any) -> None:
            if answer:
                rest.append((message, payload))
            elif type(message) is m.Named:
                self._on_named(message.prefix)
                link.send(self._attach())
                link.flush()
            elif isinstance(message, (m.Welcome, m.Refused)):
                answer.append(message)
            else:  # was on its way already
                rest.append((message, payload))

        try:
            link.send(self._attach())
            poller = select.poll()
            poller.register(sock, select.POLLIN)
            link.flush()
            while not answer:
                if time.monotonic() > deadline or self._stopping:
                    link.close()
                    return False
                # The daemon may be away for long, with this connection in its backlog: work goes on meanwhile.
                pause = self._tick()
                if poller.poll(100 if pause is None else pause * 1000):
                    link.receive_with_fds(on_message)
        except (LinkClosed, FrameError):
            link.close()
            return False
        welcome = answer[0]
        if isinstance(welcome, m.Refused):
            link.close()
            raise LocalDaemonDiedError(f"the daemon at {self.path} refused this client: {welcome.reason}")
        with self.lock:
            fd = link.fds.pop(0) if link.fds else -1
            self.link = link
            self._epoll.register(link.fileno(), select.EPOLLIN)
            self._on_welcome(welcome, fd)
            self._retell()
            for message, payload in rest:
                self._handle(message, payload)
            self.flush()
        return True
