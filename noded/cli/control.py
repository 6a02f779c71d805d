"""Asking a running daemon something: `request_status`, `request_stop`. The only place that knows how.

It is done over the node's control socket, which is there for programs of the same user: no token, no HTTP,
and a daemon that is only looked at need not import an HTTP library. Not here: finding nodes
(`noded.config`), and what to do when the daemon does not answer (`stop`, `status`).
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from typing import Any

import msgspec

from noded.config import NodeInfo, process_state
from noded.wire import messages as m
from noded.wire.link import FrameError, Link, LinkClosed

SECONDS = 5.0


class ControlError(Exception):
    """The daemon did not do what was asked; the text says why."""


def request_status(node: NodeInfo) -> dict[str, Any]:
    status = _ask(node, "status")
    if not isinstance(status, dict):
        raise ControlError(f"{_named(node)} answered with {status!r:.100}, which is no status")
    return status


def request_stop(node: NodeInfo) -> None:
    """Returns when the daemon has begun to stop."""
    _ask(node, "stop")


def _named(node: NodeInfo) -> str:
    return f"node {node.node} of cluster {node.cluster} (pid {node.pid})"


def _ask(node: NodeInfo, what: str) -> Any:
    state = process_state(node.pid)
    if state is not None and state[0] in "Tt":
        raise ControlError(f"{_named(node)} is stopped by a signal: `kill -CONT {node.pid}` lets it go on")
    deadline = time.monotonic() + SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(SECONDS)
        try:
            sock.connect(str(node.dir / "control.sock"))
            return _exchange(Link(sock, m.decode_to_client), what, deadline)
        except TimeoutError:
            reason = f"nothing came within {SECONDS:g} s"
        except OSError as error:
            reason = error.strerror or str(error)
        except LinkClosed:
            reason = "it closed the connection; its log may say why"
        except (FrameError, msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
            reason = f"what it says is not understood, its version is {node.version}: {error}"
        except _Refusal as refusal:
            raise ControlError(f"{_named(node)} refused to be asked for {what!r}: {refusal}") from None
    raise ControlError(f"{_named(node)} does not answer: {reason}")


class _Refusal(Exception):
    """The daemon has answered, and it was a no."""


def _exchange(link: Link, what: str, deadline: float) -> Any:
    answers: list[Any] = []

    def on_message(message: Any, payload: bytes | memoryview) -> None:
        if isinstance(message, m.Refused):
            raise _Refusal(message.reason)
        if isinstance(message, m.Answer):
            answer = json.loads(bytes(payload))
            if not message.ok:
                raise _Refusal(str(answer))
            answers.append(answer)

    link.send(m.Attach(version=m.PROTOCOL_VERSION, kind="tool", prefix=os.urandom(7), pid=os.getpid()))
    link.send(m.Ask(1, what), b"{}")
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
