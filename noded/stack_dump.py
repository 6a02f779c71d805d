"""The Python stacks of a process, written by itself into a file when it gets a signal: by ``faulthandler``, in the
signal's handler, so also while the process is in C code or waits, and without any right to trace it.

The signal is a real-time one, which nobody uses by accident: SIGUSR1 and SIGUSR2 are the user's. Its handler has
SA_RESTART; still, as with any signal, the few system calls that are never restarted (``nanosleep``, ``poll``) end early
in C code that does not look whether they were interrupted. Python's own calls do look.

Who takes a stack must know whose pid it is (``is_it``): it is asked while a pidfd keeps the process from being another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

SIGNAL = signal.SIGRTMIN + 12
SUFFIX = ".stack"
SECONDS = 1.0
"""So long a process may take."""
_BIT = 1 << (SIGNAL - 1)
_LOOK = 0.001
_LOOK_MOST = 0.02
_MOST = 1 << 20
"""Bytes that are read."""


@dataclass(frozen=True)
class Dump:
    text: str
    """As ``faulthandler`` writes it: all threads, each with its most recent call first, 100 of either at most."""
    problem: str = ""
    """Why there is no text."""


# ---------------------------------------------------------------- the process itself


_fd = -1
"""Of the file that this process writes to."""


def install(path: str) -> None:
    """From now on this process writes its stacks to ``path`` when it gets SIGNAL. Raises OSError. In its children the
    signal does nothing, so that what they do never gets into this file.
    """
    global _fd
    before = _fd
    _fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    faulthandler.register(SIGNAL, file=_fd, all_threads=True, chain=False)
    if before >= 0:
        os.close(before)
    else:
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    faulthandler.unregister(SIGNAL)
    signal.signal(SIGNAL, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # the code that runs may have closed it
        os.close(_fd)


# ---------------------------------------------------------------- who asks, in a thread


def take(pid: int, path: str, is_it: Callable[[], bool], seconds: float = SECONDS) -> Dump:
    """The stacks of that process, which writes to ``path``. Blocks for up to ``seconds``."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return Dump("", f"pid {pid} has ended")
    try:
        if not is_it():
            return Dump("", f"pid {pid} has ended, and is another process now")
        before = _masks(pid)
        if problem := _unable(pid, before):
            return Dump("", problem)
        try:
            os.truncate(path, 0)  # what came too late for who asked before
            signal.pidfd_send_signal(pidfd, SIGNAL)
        except OSError as error:
            return Dump("", f"pid {pid} cannot be asked for its stack: {error.strerror}")
        return _await(pid, path, before, seconds)
    finally:
        os.close(pidfd)


def _unable(pid: int, masks: dict[int, int]) -> str:
    state, _, caught = _status(f"/proc/{pid}/status")
    if state in "Tt":
        return f"pid {pid} is stopped by a signal (state {state}): `kill -CONT {pid}` lets it go on, then ask again"
    if state in ("Z", ""):
        return f"pid {pid} has ended"
    if not caught & _BIT:
        return f"pid {pid} cannot tell its stack: it is just starting, or its code has taken signal {SIGNAL} for itself"
    if masks and all(blocked & _BIT for blocked in masks.values()):
        return (
            f"pid {pid} cannot tell its stack: code that it runs blocks signal {SIGNAL}, in all of its {len(masks)} "
            f"threads (state {state})"
        )
    return ""


def _await(pid: int, path: str, before: dict[int, int], seconds: float) -> Dump:
    """The handler has run when the signal is pending nowhere, and no thread blocks it that has not done so before: the
    kernel lets a thread block a signal while it handles it.
    """
    deadline, pause = time.monotonic() + seconds, _LOOK
    while True:
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_MOST)
        state, pending, _ = _status(f"/proc/{pid}/status")
        handling = any(blocked & _BIT and not before.get(tid, 0) & _BIT for tid, blocked in _masks(pid).items())
        text = _read(path)
        if text and not pending & _BIT and not handling:
            _clear(path)
            return Dump(text)
        if time.monotonic() > deadline:
            _clear(path)
            if state in ("Z", ""):
                return Dump("", f"pid {pid} has ended meanwhile")
            if text:
                return Dump(text + "\n(it had not written all of it in time)\n")
            where = "in the kernel, in a call that cannot be interrupted" if state == "D" else "without having been run"
            return Dump("", f"pid {pid} has not written its stack within {seconds:g} s (state {state}: {where})")


def _status(path: str) -> tuple[str, int, int]:
    """State, and the signals that are pending for the process, and caught; an empty state: it is gone."""
    fields = _fields(path)
    pending = int(fields.get("ShdPnd", "0"), 16) | int(fields.get("SigPnd", "0"), 16)
    return fields.get("State", "")[:1], pending, int(fields.get("SigCgt", "0"), 16)


def _masks(pid: int) -> dict[int, int]:
    """The signals that each thread blocks."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return {}
    found = {int(tid): _fields(f"/proc/{pid}/task/{tid}/status").get("SigBlk") for tid in threads}
    return {tid: int(mask, 16) for tid, mask in found.items() if mask}


def _fields(path: str) -> dict[str, str]:
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_MOST).decode(errors="replace").strip("\n")
    except OSError:
        return ""


def _clear(path: str) -> None:
    with contextlib.suppress(OSError):
        os.truncate(path, 0)
