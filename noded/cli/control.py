"""Asking a running daemon something, and saying in words what went wrong.

How a question is asked is in `wire/question.py`. Not here: finding nodes (`noded.config`), and what to do when the
daemon does not answer (`stop`, `status`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from noded.config import NodeInfo, process_state
from noded.wire import question
from noded.wire.link import FrameError, LinkClosed

SECONDS = 5.0


class ControlError(Exception):
    """The daemon did not do what was asked; the text says why."""


class Refusal(ControlError):
    """It has answered, and it was a no; `words` are its own."""

    def __init__(self, text: str, words: str):
        super().__init__(text)
        self.words = words


def request_status(node: NodeInfo) -> dict[str, Any]:
    status = request(node, "status")
    if not isinstance(status, dict):
        raise ControlError(f"{_named(node)} answered with {status!r:.100}, which is no status")
    return status


def request_stop(node: NodeInfo) -> None:
    """Returns when the daemon has begun to stop."""
    request(node, "stop")


def request(node: NodeInfo, what: str, arguments: dict[str, Any] | None = None, seconds: float | None = None) -> Any:
    """The answer. Raises ControlError."""
    state = process_state(node.pid)
    if state is not None and state[0] in "Tt":
        raise ControlError(f"{_named(node)} is stopped by a signal: `kill -CONT {node.pid}` lets it go on")
    seconds = SECONDS if seconds is None else seconds
    try:
        return question.ask(str(node.dir / "control.sock"), what, arguments, seconds=seconds)
    except TimeoutError:
        reason = f"nothing came within {seconds:g} s"
    except OSError as error:
        reason = error.strerror or str(error)
    except LinkClosed:
        reason = "it closed the connection; its log may say why"
    except (FrameError, msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        reason = f"what it says is not understood, its version is {node.version}: {error}"
    except question.Refused as refusal:
        text = f"{_named(node)} refused to be asked for {what!r}: {refusal}"
        raise Refusal(text, str(refusal)) from None
    raise ControlError(f"{_named(node)} does not answer: {reason}")


def _named(node: NodeInfo) -> str:
    return f"node {node.node} of cluster {node.cluster} (pid {node.pid})"
