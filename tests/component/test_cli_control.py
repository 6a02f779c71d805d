"""`noded status` and `noded stop` ask over the control socket: what they say when that goes wrong.

The other end is a script; that a real daemon answers is shown by tests/e2e/test_start_and_stop.py.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from noded.cli import control
from noded.cli.control import ControlError, request_status, request_stop
from noded.config import NodeInfo
from noded.wire import messages as m
from noded.wire.link import Link

Script = Callable[[socket.socket], None]


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> NodeInfo:
    directory = tmp_path_factory.mktemp("d")
    return NodeInfo("c", "n", os.getpid(), 1, "127.0.0.1", "ab", "1", False, dir=directory)


@contextmanager
def daemon(node: NodeInfo, script: Script) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(Path(node.dir, "control.sock")))
        listener.listen()
        listener.settimeout(20)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(20)
                script(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(20)
        assert not thread.is_alive()


def answering(*messages: Any, payload: bytes = b"") -> Script:
    def script(sock: socket.socket) -> None:
        asked: list[Any] = []
        link = Link(sock, m.decode_to_daemon)
        sock.settimeout(20)
        while len(asked) < 2:
            link.receive(lambda message, _: asked.append(message), rounds=1)
        assert [type(message) for message in asked] == [m.Attach, m.Ask]
        assert asked[0].kind == "tool"
        for message in messages:
            link.send(message, payload if isinstance(message, m.Answer) else b"")
        assert link.flush()

    return script


def garbage(sock: socket.socket) -> None:
    sock.sendall(b"\xff" * 64)
    silent(sock)  # closing on what it has not read would be a reset, which may overtake


def silent(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def test_the_answer(node: NodeInfo) -> None:
    status = {"state": "READY", "long": "x" * 300_000}
    with daemon(node, answering(m.Bye(), m.Answer(1, True), payload=json.dumps(status).encode())):
        assert request_status(node) == status


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (answering(m.Refused("it speaks protocol 9")), "refused to be asked for 'stop': it speaks protocol 9"),
        (answering(m.Answer(1, False), payload=b'"not now"'), "refused to be asked for 'stop': not now"),
        (lambda sock: None, "does not answer: it closed the connection"),
        (garbage, "does not answer: what it says is not understood"),
        (answering(m.Answer(1, True), payload=b"{"), "does not answer: what it says is not understood"),
        (silent, "does not answer: nothing came within 0.3 s"),
    ],
    ids=["refused", "no", "closed", "garbage", "no JSON", "silent"],
)
def test_what_goes_wrong(node: NodeInfo, script: Script, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if script is silent:
        monkeypatch.setattr(control, "SECONDS", 0.3)
    with daemon(node, script), pytest.raises(ControlError, match=rf"^node n of cluster c \(pid \d+\) ({told})"):
        request_stop(node)


def test_an_odd_status(node: NodeInfo) -> None:
    with daemon(node, answering(m.Answer(1, True), payload=b"7")), pytest.raises(ControlError, match="7, which is no"):
        request_status(node)


def test_nobody_listens(node: NodeInfo) -> None:
    with pytest.raises(ControlError, match="does not answer: No such file or directory"):
        request_status(node)
