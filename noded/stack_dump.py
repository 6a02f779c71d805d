"""The Python stacks of a process, written by itself into a file when it gets a signal: by ``faulthandler``, in the
signal's handler, so also while the process is in C code or waits, and without any right to trace it. For those that
cannot tell them with Python's lock (``stack_text.py``): the frames have to stand still, see ``stack_threads.py``.

The signal is a real-time one, which nobody uses by accident: SIGUSR1 and SIGUSR2 are the user's. It goes to the thread
that runs, if one does; else to a thread of noded's own (``call_helper``). So no system call of the user's code is
interrupted, as some are never restarted, whatever the handler's flags say.

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

import msgspec

from noded.stack_threads import BIT, HELPER, SIGNAL, Thread, Watch, fields_of, threads_of

SUFFIX = ".stack"
_SAFE_SECONDS = 2.0
"""So long it is waited until a process may be interrupted."""
_SECONDS = 1.0
"""So long it may take to write then."""
_WATCH = 0.025
_NO_CPU = 0.1
"""Seconds of the CPU: who has got less in that time gets none."""
_LOOK = 0.001
_LOOK_MOST = 0.02
_MOST = 1 << 20
"""Bytes that are read."""


class Dump(msgspec.Struct, frozen=True):
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


def take(
    pid: int,
    path: str,
    is_it: Callable[[], bool],
    *,
    told: threading.Event | None = None,
    deadline: float | None = None,
) -> Dump:
    """The stacks of that process, which writes to ``path``. Blocks for up to 3 s, but not after ``deadline``
    (``time.monotonic``). Empty once ``told`` is set: it has told them otherwise.
    """
    told = told or threading.Event()
    deadline = time.monotonic() + _SAFE_SECONDS + _SECONDS if deadline is None else deadline
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return Dump("", f"pid {pid} has ended")
    try:
        target, threads, problem = _until_still(pid, told, min(time.monotonic() + _SAFE_SECONDS, deadline))
        if problem or told.is_set():
            return Dump("", problem)
        try:
            os.truncate(path, 0)  # what came too late for who asked before
            if not is_it():
                return Dump("", f"pid {pid} has ended, and is another process now")
            if not _send(pid, pidfd, target, threads):
                return Dump("", f"pid {pid} cannot be asked for its stack: its thread {target} cannot be sent a signal")
        except OSError as error:
            return Dump("", f"pid {pid} cannot be asked for its stack: {error.strerror}")
        blocked = {tid for tid, thread in threads.items() if thread.blocks}
        return _await(pid, path, blocked, min(_SECONDS, deadline - time.monotonic()))
    finally:
        os.close(pidfd)


def _until_still(pid: int, told: threading.Event, deadline: float) -> tuple[int, dict[int, Thread], str]:
    """The thread to interrupt, and all threads; or why none may be."""
    began, watch = time.monotonic(), Watch()
    while True:
        threads = threads_of(pid)
        if problem := _unable(pid, threads):
            return -1, threads, problem
        if (target := watch.look(threads)) >= 0:
            return target, threads, ""
        if time.monotonic() > deadline:
            return -1, threads, _moves(pid, watch.used(), time.monotonic() - began)
        if told.wait(_WATCH):
            return -1, threads, ""


def _moves(pid: int, used: float, seconds: float) -> str:
    if used < _NO_CPU:
        why = f"it gets no CPU (it has used {used:.2f} s): is the machine overloaded, or its cgroup throttled?"
    else:
        why = "its threads run by turns, so that it cannot be interrupted without harm; ask again"
    return f"pid {pid} has not told its stack within {seconds:.1f} s: {why} (`top -H -p {pid}` shows its threads)"


def _unable(pid: int, threads: dict[int, Thread]) -> str:
    fields = fields_of(f"/proc/{pid}/status")
    state = fields.get("State", "Z")[0]
    if state in "Tt":
        return f"pid {pid} is stopped by a signal (state {state}): `kill -CONT {pid}` lets it go on, then ask again"
    if state == "Z":
        return f"pid {pid} has ended"
    if not int(fields.get("SigCgt", "0"), 16) & BIT:
        return f"pid {pid} cannot tell its stack: it is just starting, or its code has taken signal {SIGNAL} for itself"
    if all(thread.blocks for thread in threads.values()):
        return (
            f"pid {pid} cannot tell its stack: code that it runs blocks signal {SIGNAL}, in all of its {len(threads)} "
            f"threads (state {state})"
        )
    return ""


def _send(pid: int, pidfd: int, target: int, threads: dict[int, Thread]) -> bool:
    if target != pid and _to_thread(pid, target):
        return True
    if target != pid and threads[target].state == "R":
        return False
    signal.pidfd_send_signal(pidfd, SIGNAL)  # the kernel prefers the main thread
    return True


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
        fields, threads, text = fields_of(f"/proc/{pid}/status"), threads_of(pid), _read(path)
        pending = int(fields.get("ShdPnd", "0"), 16) & BIT or any(thread.pending for thread in threads.values())
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


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_MOST).decode(errors="replace").strip("\n")
    except OSError:
        return ""


def _clear(path: str) -> None:
    with contextlib.suppress(OSError):
        os.truncate(path, 0)
