"""One question to a cluster, by a program that may or may not be connected to it.

Who is connected asks over its connection. Others find a node of the cluster on this machine, or dial one elsewhere with
the cluster's token. A daemon that is away for a moment is asked again: its restart must not fail a question.
"""

from __future__ import annotations

import os
import time
from typing import Any

from noded import exceptions as ex
from noded.client import discovery
from noded.client.runtime import current
from noded.config import ConfigError, NodeInfo
from noded.wire import question
from noded.wire.handshake import HandshakeError
from noded.wire.link import FrameError, LinkClosed

_PAUSE = 0.1
_CONNECT_SECONDS = 5.0


class Refused(ValueError):
    """The cluster's answer is a no; the text is its own."""


class Unanswered(Exception):
    """Nobody has answered in time; the text says who was asked, and why not."""


def ask(what: str, arguments: dict[str, Any], *, address: str | None, timeout: float) -> Any:
    """``address``: as ``noded.init`` takes it; None: the cluster that this program is connected to, else the one that
    it would connect to. ``timeout``: seconds. Raises Refused, Unanswered.
    """
    runtime = current()
    if runtime is not None and address is None:
        try:
            return runtime.ask(what, timeout=timeout, **arguments)
        except ValueError as refusal:
            raise Refused(str(refusal)) from None
        except (ex.GetTimeoutError, ex.LocalDaemonDiedError) as error:
            raise Unanswered(str(error)) from None
    try:
        found = discovery.find(address or os.environ.get("NODED_ADDRESS") or None, os.environ)
    except (ConnectionError, ValueError) as error:
        raise Unanswered(str(error)) from None
    if found is None:
        raise Unanswered(
            "no cluster of this user runs on this host: start one with `noded start --head`, connect with "
            "noded.init(), or give the address= of one"
        )
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _ask_once(found, what, arguments, max(0.1, deadline - time.monotonic()))
        except question.Refused as refusal:
            raise Refused(str(refusal)) from None
        except (OSError, LinkClosed, FrameError, HandshakeError) as error:
            if time.monotonic() + _PAUSE > deadline or isinstance(error, HandshakeError):
                where = found if isinstance(found, str) else f"node {found.node} of cluster {found.cluster}"
                raise Unanswered(
                    f"{where} has not answered {what!r} within {timeout:g} s: {error or 'too slow'}"
                ) from None
        time.sleep(_PAUSE)


def _ask_once(node: NodeInfo | str, what: str, arguments: dict[str, Any], seconds: float) -> Any:
    if isinstance(node, NodeInfo):
        return question.ask(str(node.dir / "control.sock"), what, arguments, seconds=seconds)
    try:
        remote = discovery.remote(node, os.environ)
    except (ConnectionError, ConfigError) as error:
        raise Unanswered(str(error)) from None
    with remote.connect(timeout=min(seconds, _CONNECT_SECONDS)) as sock:
        return question.ask_over(sock, what, arguments, seconds=seconds)
