"""Tasks and actors that end in the way they are told, and what their callers are told then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import noded
from harness.gates import Notes

TIMEOUT = 60


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


def fails(kind: type[Any], ref: Any) -> Any:
    """The error of this kind that `get` raises."""
    with pytest.raises(kind) as caught:
        get(ref)
    return caught.value


@noded.remote(max_retries=0)
def end(how: Callable[[], Any]) -> Any:
    how()
    signal.pause()


@noded.remote(max_retries=0)
def hang(notes: Notes) -> None:
    notes.add(os.getpid())
    signal.pause()


@noded.remote
class Worker:
    def pid(self) -> int:
        return os.getpid()

    def do(self, how: Callable[[], Any]) -> Any:
        return how()

    def hang(self, notes: Notes) -> None:
        notes.add(os.getpid())
        signal.pause()


def pid_of(notes: Notes) -> int:
    return int(notes.wait(1)[0])
