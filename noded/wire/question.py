"""One question to a node's daemon over its control socket, by something that is no client: a command, a test's cluster.

No token and no HTTP: the socket is there for programs of the same user. Not here: finding nodes, and what to do when
the daemon does not answer.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from typing import Any

from noded.wire import messages as m
from noded.wire.link import Link, LinkClosed


class Refused(Exception):
    """The daemon has answered, and it was a no; the text is its own."""


def ask(path: str, what: str, arguments: dict[str, Any] | None = None, *, seconds: float) -> Any:
    """``path``: the control socket. Raises Refused, TimeoutError, OSError, LinkClosed, and what garbage leads to:
    FrameError, msgspec's errors, ValueError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        sock.connect(path)
        return ask_over(sock, what, arguments, seconds=seconds)


def ask_over(sock: socket.socket, what: str, arguments: dict[str, Any] | None, *, seconds: float) -> Any:
    """As ``ask``, over a connection with a daemon that has let us in."""
    deadline = time.monotonic() + seconds
    return _exchange(Link(sock, m.decode_to_client), what, arguments or {}, deadline)


def _exchange(link: Link, what: str, arguments: dict[str, Any], deadline: float) -> Any:
    answers: list[Any] = []

    def on_message(message: Any, payload: bytes | memoryview) -> None:
        if isinstance(message, m.Refused):
            raise Refused(message.reason)
        if isinstance(message, m.Answer):
            answer = json.loads(bytes(payload))
            if not message.ok:
                raise Refused(str(answer))
            answers.append(answer)

    link.send(m.Attach(version=m.PROTOCOL_VERSION, kind="tool", prefix=os.urandom(7), pid=os.getpid()))
    link.send(m.Ask(1, what), json.dumps(arguments).encode())
    while not answers:
        sent = link.flush()
        left = deadline - time.monotonic()
        if left <= 0 or not any(select.select([link], [] if sent else [link], [], left)):
            raise TimeoutError
        try:
            link.receive(on_message)
        except LinkClosed:  # a daemon that stops may close right behind its answer
            if not answers:
                raise
    return answers[0]
