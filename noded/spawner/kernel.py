"""Small calls to the kernel that the spawner needs and the standard library does not offer, and its log line.

Covers prctl, the OOM score, pidfds and the signals of its children. Not here: finding processes (`sweep`).
"""

from __future__ import annotations

import os
import select
import signal

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
OOM_SCORE = -900
# Ignored here, and ignoring is inherited by exec: children get the default back.
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE)


def prctl(option: int, value: int) -> None:
    """prctl(option, value), or OSError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")


def protect_from_oom() -> str | None:
    """Make the OOM killer prefer others. Returns the score for children, None if it may not be changed."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            before = int(file.read())
            file.seek(0)
            file.write(str(OOM_SCORE))
        # A daemon that protects itself, too, has started this process: that is not for children.
        return str(max(before, 0))
    except OSError:
        return None


def set_oom_score(pid: int, score: str) -> None:
    """Give a child the score the spawner had; best effort, the child may be gone."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(score)
    except OSError:
        return


def ended(pidfd: int) -> bool:
    """True when the process of this pidfd has ended (it may still be a zombie)."""
    return bool(_poll(pidfd, select.POLLIN))


def hung_up(fd: int) -> bool:
    """True when the other end of this socket is closed."""
    return bool(_poll(fd, 0) & (select.POLLHUP | select.POLLERR))


def _poll(fd: int, mask: int) -> int:
    poll = select.poll()
    poll.register(fd, mask)
    return next((events for _, events in poll.poll(0)), 0)


def is_zombie(pid: int) -> bool:
    """True for a child that has ended. It stays unreaped and keeps its pid: no signal can hit a stranger."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def first_zombie() -> int | None:
    """The pid of some child that has ended; it stays unreaped."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found else None


def code_and_signal(status: int) -> tuple[int | None, int | None]:
    """A wait status as (exit code, signal), one of which is None."""
    code = os.waitstatus_to_exitcode(status)
    return (None, -code) if code < 0 else (code, None)


def say(message: str) -> None:
    """One line on stderr, dropped when stderr does not take it at once: nothing may stall the spawner."""
    try:
        if _poll(2, select.POLLOUT) & select.POLLOUT:
            os.write(2, f"noded spawner {os.getpid()}: {message}\n".encode()[:4000])
    except OSError:
        return
