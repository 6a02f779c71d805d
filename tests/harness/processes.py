"""Read /proc: which processes of this user mention a directory or descend from us.

A process is attributed by what it was started with (environment, command line), which it cannot lose by
setsid, double forks or the death of its parents.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    started: int  # clock ticks since boot; tells a reused pid apart
    state: str  # R, S, T (stopped), Z (ended, not waited for), …
    command: str
    started_with: bytes  # command line and environment, as they are in memory

    def __str__(self) -> str:
        state = {"T": ", stopped", "Z": ", ended but not waited for"}.get(self.state, "")
        return f"pid {self.pid}{state}: {self.command}"

    @property
    def identity(self) -> tuple[int, int]:
        return self.pid, self.started


def all_processes(*, everybody: bool = False) -> dict[int, Process]:
    """All processes of this user, or of all, except kernel threads and those that end while we look."""
    found: dict[int, Process] = {}
    user = os.geteuid()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):
            if everybody or os.stat(f"/proc/{entry}").st_uid == user:
                process = _read(int(entry))
                found[process.pid] = process
    return found


def mentioning(processes: Iterable[Process], directories: Iterable[str]) -> list[Process]:
    """Those started with one of `directories`, or a path below one, in command line or environment."""
    alternatives = b"|".join(re.escape(os.fsencode(path)) for path in directories)
    pattern = re.compile(b"(?:" + alternatives + rb")(?=[/:\0\s\"',]|$)")
    return [process for process in processes if pattern.search(process.started_with)]


def descendants(processes: dict[int, Process], ancestor: int) -> list[Process]:
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    todo = [ancestor]
    while todo:
        of_this = children.get(todo.pop(), [])
        found += of_this
        todo += [child.pid for child in of_this]
    return found


def ancestors(processes: dict[int, Process], pid: int) -> set[int]:
    found = {pid}
    while pid in processes and processes[pid].parent not in found:
        pid = processes[pid].parent
        found.add(pid)
    return found


def kill(processes: Iterable[Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)


def _read(pid: int) -> Process:
    stat = _content(pid, "stat")
    name, _, rest = stat.partition(b"(")[2].rpartition(b") ")
    fields = rest.split()
    command = _content(pid, "cmdline")
    environment = b""
    with suppress(OSError):  # one that has ended and is not waited for has none
        environment = _content(pid, "environ")
    shown = command.replace(b"\0", b" ").strip() or b"[" + name + b"]"
    return Process(
        pid=pid,
        parent=int(fields[1]),
        started=int(fields[19]),
        state=fields[0].decode(),
        command=shown.decode(errors="replace"),
        started_with=command + b"\0" + environment,
    )


def _content(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()
