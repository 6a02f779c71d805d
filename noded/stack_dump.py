"""The Python stacks of a process, written by itself into a file when it gets a signal: by ``faulthandler``, in the
signal's handler, so also while the process is in C code or waits, and without any right to trace it.

The signal is a real-time one, which nobody uses by accident: SIGUSR1 and SIGUSR2 are the user's. It goes to the thread
that runs, if one does, whose frames stand still in the handler; else to a thread of noded's own (``call_helper``). So
no system call of the user's code is interrupted, as some are never restarted, whatever the handler's flags say.

Who takes a stack must know whose pid it is (``is_it``): it is asked while a pidfd keeps the process from being another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

SIGNAL = signal.SIGRTMIN + 12
SUFFIX = ".stack"
HELPER = "noded-helper"
"""The name of a thread that may be interrupted, for the kernel."""
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


def call_helper(thread: threading.Thread) -> None:
    """This thread of the process is noded's own, and may be interrupted. Raises OSError."""
    with open(f"/proc/self/task/{thread.native_id}/comm", "w") as file:
        file.write(HELPER)


# ---------------------------------------------------------------- who asks, in a thread


@dataclass(frozen=True)
class _Thread:
    state: str
    name: str
    blocks: bool
    pending: bool


def take(pid: int, path: str, is_it: Callable[[], bool], seconds: float = SECONDS) -> Dump:
    """The stacks of that process, which writes to ``path``. Blocks for up to ``seconds``."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return Dump("", f"pid {pid} has ended")
    try:
        threads = _threads(pid)
        if problem := _unable(pid, threads):
            return Dump("", problem)
        try:
            os.truncate(path, 0)  # what came too late for who asked before
            if not is_it():
                return Dump("", f"pid {pid} has ended, and is another process now")
            _send(pid, pidfd, threads)
        except OSError as error:
            return Dump("", f"pid {pid} cannot be asked for its stack: {error.strerror}")
        return _await(pid, path, {tid for tid, thread in threads.items() if thread.blocks}, seconds)
    finally:
        os.close(pidfd)


def _unable(pid: int, threads: dict[int, _Thread]) -> str:
    fields = _fields(f"/proc/{pid}/status")
    state = fields.get("State", "Z")[0]
    if state in "Tt":
        return f"pid {pid} is stopped by a signal (state {state}): `kill -CONT {pid}` lets it go on, then ask again"
    if state == "Z":
        return f"pid {pid} has ended"
    if not int(fields.get("SigCgt", "0"), 16) & _BIT:
        return f"pid {pid} cannot tell its stack: it is just starting, or its code has taken signal {SIGNAL} for itself"
    if all(thread.blocks for thread in threads.values()):
        return (
            f"pid {pid} cannot tell its stack: code that it runs blocks signal {SIGNAL}, in all of its {len(threads)} "
            f"threads (state {state})"
        )
    return ""


def _send(pid: int, pidfd: int, threads: dict[int, _Thread]) -> None:
    may = {tid: thread for tid, thread in threads.items() if not thread.blocks}
    running = [tid for tid, thread in may.items() if thread.state == "R"]
    helpers = [tid for tid, thread in may.items() if thread.name == HELPER]
    tid = pid if pid in running else next(iter(running or helpers), pid)
    if tid == pid or not _to_thread(pid, tid):
        signal.pidfd_send_signal(pidfd, SIGNAL)  # the kernel prefers the main thread


def _to_thread(pid: int, tid: int) -> bool:
    """False: it is gone, or this C library has no such call."""
    import ctypes

    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    return tgkill is not None and tgkill(pid, tid, int(SIGNAL)) == 0


def _await(pid: int, path: str, blocked: set[int], seconds: float) -> Dump:
    """The handler has run when the signal is pending nowhere, and no thread blocks it that has not done so before: the
    kernel lets a thread block a signal while it handles it.
    """
    deadline, pause = time.monotonic() + seconds, _LOOK
    while True:
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_MOST)
        fields, threads, text = _fields(f"/proc/{pid}/status"), _threads(pid), _read(path)
        pending = int(fields.get("ShdPnd", "0"), 16) & _BIT or any(thread.pending for thread in threads.values())
        handling = any(thread.blocks for tid, thread in threads.items() if tid not in blocked)
        if text and not pending and not handling:
            _clear(path)
            return Dump(text)
        if time.monotonic() > deadline:
            _clear(path)
            return _late(pid, fields.get("State", "Z")[0], text, seconds)


def _late(pid: int, state: str, text: str, seconds: float) -> Dump:
    if state == "Z":
        return Dump(text, "" if text else f"pid {pid} has ended meanwhile")
    if text:
        return Dump(f"{text}\n(it had not written all of it in time)")
    where = "in a system call that cannot be interrupted" if state == "D" else "it has not come to handle the signal"
    return Dump("", f"pid {pid} has not written its stack within {seconds:g} s (state {state}: {where})")


def _threads(pid: int) -> dict[int, _Thread]:
    found: dict[int, _Thread] = {}
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for tid in tids:
        fields = _fields(f"/proc/{pid}/task/{tid}/status")
        if fields:
            blocks, pending = (bool(int(fields.get(name, "0"), 16) & _BIT) for name in ("SigBlk", "SigPnd"))
            found[int(tid)] = _Thread(fields["State"][0], fields["Name"], blocks, pending)
    return found


def _fields(path: str) -> dict[str, str]:
    """Of a process or thread; empty when it is gone."""
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
