"""Finding processes by their mark and killing them.

Everything that descends from a worker or a template has `NODED_MARK=<tag>:<worker id>` in its environment,
which survives setsid and double forks. A scan reads /proc/PID/environ of this user's processes, about 20
microseconds each, so callers scan once for a batch of ended workers. Not here: deciding whose processes
must die (`children`).
"""

from __future__ import annotations

import os
import signal

from noded.spawner import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A scan can miss a process whose parent forks it and ends meanwhile. Each round that killed something is
# followed by another; so many rounds without an end mean a fork bomb, which the next scan meets again.
ROUNDS = 50
READ = 32768


def processes() -> list[int]:
    """All pids but our own."""
    me = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != me]


def ours(pid: int) -> bool:
    """True when the process belongs to this user."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False


def parent(pid: int) -> int:
    """The parent's pid; 0 when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command name in parentheses may itself contain spaces and parentheses.
            return int(file.read(4096).rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def session(pid: int) -> int:
    """The session of the process; 0 when it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def ancestors() -> set[int]:
    """The pids above this process."""
    found = {os.getpid()}
    pid = os.getppid()
    while pid and pid not in found:
        found.add(pid)
        pid = parent(pid)
    return found


def wid_of(pid: int, tag: str) -> str | None:
    """The worker id in the mark of the process; None when it has no mark of this node."""
    environment = _environment(pid)
    wanted = f"\0{protocol.MARK}={tag}:".encode()
    at = environment.find(wanted)
    if at < 0:
        return None
    start = at + len(wanted)
    return environment[start : environment.find(b"\0", start)].decode("ascii", "replace")


def _environment(pid: int) -> bytes:
    """The initial environment block between zero bytes; only the frame when it cannot be read."""
    content = b"\0"
    try:
        fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return content
    try:
        while piece := os.read(fd, READ):
            content += piece
            if len(piece) < READ:
                break
    except OSError:
        pass  # it ended while being read: what was read may still hold its mark
    finally:
        os.close(fd)
    return content + b"\0"


def kill_all(belongs: Callable[[int], bool]) -> int:
    """SIGKILL every process of this user for which `belongs` holds, until a scan finds no new one."""
    killed: set[int] = set()
    for _ in range(ROUNDS):
        fresh = [pid for pid in processes() if pid not in killed and ours(pid) and belongs(pid)]
        for pid in fresh:
            _kill(pid, belongs)
        if not fresh:
            break
        killed.update(fresh)
    return len(killed)


def _kill(pid: int, belongs: Callable[[int], bool]) -> None:
    """Through a pidfd, with a second look: the pid may have passed to a stranger since the first."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if belongs(pid):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        pass  # gone meanwhile, or not ours to kill
    finally:
        os.close(pidfd)
