"""Why a worker's process ended: what the kernel, the spawner and the daemon know, turned into a kind of a closed list
and a sentence. The class of the caller's error is chosen by the kind (``client/failures.py``), never by the words.

Where the counts of the kernel's kills come from is ``node/oom.py``; who ends workers, and why, ``node/workers.py``.
"""

from __future__ import annotations

import signal
from typing import Any

import msgspec

# By itself, or by somebody outside:
EXIT = "exit"
SIGNAL = "signal"
CRASH = "crash"
OOM = "oom"
START = "start"
UNSEEN = "unseen"
# By noded:
MEMORY_LIMIT = "memory_limit"
NODE_MEMORY = "node_memory"
CANCELLED = "cancelled"
KILLED = "killed"
OUT_OF_SCOPE = "out_of_scope"
JOB_ENDED = "job_ended"
OWNER_ENDED = "owner_ended"
REMOVED = "removed"
ENV = "env"
CONSTRUCTOR = "constructor"
MOVED = "moved"
SPAWNER = "spawner"
NODE_LOST = "node_lost"
# As intended:
LEFT = "left"
RETIRED = "retired"
IDLE = "idle"

KINDS = {
    EXIT: "it exited by itself, with a code (os._exit, a library that ends the process)",
    SIGNAL: "a signal that noded did not send ended it",
    CRASH: "a fault in native code: SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL",
    OOM: "the kernel ended it for want of memory",
    START: "it failed before it was ready to run anything",
    UNSEEN: "it ended while nobody watched: its daemon was away",
    MEMORY_LIMIT: "it used more memory than its memory= allows",
    NODE_MEMORY: "its node had too little memory left",
    CANCELLED: "its task was cancelled with force",
    KILLED: "noded.kill()",
    OUT_OF_SCOPE: "all handles to its actor went out of scope",
    JOB_ENDED: "its job, the driver, has ended",
    OWNER_ENDED: "the process, or the node, that submitted its task or made its actor has ended",
    REMOVED: "its placement group was removed",
    ENV: "its runtime environment could not be entered",
    CONSTRUCTOR: "the constructor of its actor raised",
    MOVED: "its actor is, or will be, elsewhere",
    SPAWNER: "the node's spawner died, and its workers with it",
    NODE_LOST: "its node is lost",
    LEFT: "its actor called exit_actor()",
    RETIRED: "it had run what it may run (max_calls)",
    IDLE: "it was idle",
}
"""The closed list: kind -> what it means; docs/why.md has the same."""

UNINTENDED = frozenset({EXIT, SIGNAL, CRASH, OOM, START, UNSEEN, MEMORY_LIMIT, NODE_MEMORY, SPAWNER})
"""Kinds for which the last lines of stderr help."""

FORGETTABLE = frozenset({OUT_OF_SCOPE, JOB_ENDED})
"""Nobody is left who could ask why an actor ended so."""

FAULTS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})


class Ending(msgspec.Struct, frozen=True):
    """What is known of a process that has ended. Either ``code`` or ``signal`` is known, or neither."""

    code: int | None = None
    signal: int | None = None
    kind: str = ""
    """Why noded ends it, a kind of the list; empty: it does not."""
    reason: str = ""
    """The words for that."""
    asked: bool = False
    """Noded's spawner has sent it SIGKILL or SIGTERM."""
    started: bool = True
    """It has been ready to run something."""
    oom_before: int | None = None
    """Kills for want of memory that the kernel has counted where it ran; None: that cannot be read."""
    oom_after: int | None = None
    limit: int | None = None
    """Bytes that it and what shares its control group may use; None: there is no limit."""
    max_rss: int = 0
    """Bytes."""
    own_limit: int = 0
    """Bytes of ``memory=``, where the count is that of a control group of its own, which has been full; else 0."""


def judge(end: Ending) -> tuple[str, str]:
    """(kind, sentence) of an ending."""
    if end.kind and not _died_before(end):
        return end.kind, end.reason
    if end.signal is not None:
        kind, sentence = _signalled(end)
    elif end.code is not None:
        kind, sentence = EXIT, f"it exited by itself with code {end.code}, which ends whatever it was to do"
        if not end.started:
            kind, sentence = START, f"it exited with code {end.code} before it was ready to run anything"
    else:
        return UNSEEN, "it ended while the daemon was away"
    return kind, f"{sentence}, when it was to end anyway: {end.reason}" if end.reason else sentence


def _died_before(end: Ending) -> bool:
    """It was to end after what it runs, and died of that."""
    patient = end.kind in (RETIRED, IDLE)
    return patient and not end.asked and (end.signal is not None or end.code not in (0, None))


def _signalled(end: Ending) -> tuple[str, str]:
    assert end.signal is not None
    name = signal_name(end.signal)
    if end.asked and end.signal in (signal.SIGKILL, signal.SIGTERM):
        return UNSEEN, f"the node's daemon before this one ended it by {name}; why, it could not say any more"
    if end.signal == signal.SIGKILL and _counted(end):
        if end.own_limit:
            return MEMORY_LIMIT, (
                f"it used more memory than its limit (memory=), {mib(end.own_limit)}, and so fast that the kernel "
                f"ended it; it had {mib(end.max_rss)} in use at most, with what it shares"
            )
        return OOM, _out_of_memory(end)
    if end.signal in FAULTS:
        if not end.started:
            return START, f"it crashed by {name} before it was ready to run anything"
        return CRASH, f"it crashed by {name}: a fault in native code, or somebody sent that signal"
    sentence = f"it was killed by {name}, not by noded"
    if end.signal == signal.SIGKILL:
        sentence += (
            "; whether for want of memory cannot be told here (see the kernel's log)"
            if end.oom_before is None or end.oom_after is None
            else ", and not by the kernel for want of memory"
        )
    return SIGNAL, sentence


def _counted(end: Ending) -> bool:
    return end.oom_before is not None and end.oom_after is not None and end.oom_after > end.oom_before


def _out_of_memory(end: Ending) -> str:
    used = f"it had used {mib(end.max_rss)} at most"
    if end.limit is None:
        return f"out of memory: the kernel ended it because the machine had none left; {used}"
    return f"out of memory: the kernel ended it; limit {mib(end.limit)} for all of its control group, {used}"


def over_limit(used: int, limit: int) -> str:
    return f"it used {mib(used)} of memory, and its limit (memory=) is {mib(limit)}"


def last_words(lines: list[str], most: int) -> list[str]:
    """Of what a process has said, the last ``most`` lines. Of Python's dump after a crash only the thread at fault
    counts, and of that what the user's code did: the rest would fill the lines.
    """
    dump = max((at for at, line in enumerate(lines) if line.startswith("Fatal Python error")), default=-1)
    if dump < 0:
        return lines[-most:]
    frames: list[str] = []
    for line in lines[dump + 1 :]:
        if line.startswith("Current thread"):
            frames = [line]
        elif frames and (not line.startswith("  File ") or (len(frames) > 1 and "/noded/worker/" in line)):
            break
        elif frames:
            frames.append(line)
    told = [lines[dump], *(frames or lines[dump + 1 :])][:most]
    before = most - len(told)
    return [*(lines[:dump][-before:] if before else []), *told]


def facts(death: Any) -> dict[str, Any]:
    """What a ``Death`` tells beside kind and reason, as far as it is known, for who asks why; RSS in bytes."""
    known = {
        "worker": death.worker,
        "pid": death.pid,
        "node": death.node,
        "exit_code": death.code,
        "signal": "" if death.signal is None else signal_name(death.signal),
        "max_rss": death.max_rss_kb << 10,
        "stderr_tail": death.stderr,
    }
    return {name: value for name, value in known.items() if value or (name == "exit_code" and value is not None)}


def mib(amount: int) -> str:
    return f"{amount / 2**20:.0f} MiB"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Starts(msgspec.Struct):
    """Processes in a row that failed before they were ready: how long to pause, and when to give up on who waits."""

    first: float
    """Seconds of the first pause; each is twice the one before."""
    longest: float
    patience: int
    """After so many failures in a row, what waits is told."""
    failures: int = 0
    own: int = 0
    """Those of them that were not killed from outside: only these say that the next will fail too."""

    def failed(self, kind: str) -> float:
        """One more; the seconds to wait before the next try."""
        self.failures += 1
        self.own = self.own + 1 if kind != SIGNAL else 0
        return min(self.longest, self.first * 2.0 ** min(self.failures, 16))

    def worked(self) -> None:
        self.failures = self.own = 0

    @property
    def hopeless(self) -> bool:
        return self.own >= self.patience
