"""The frame of a driver's load: threads that work in rounds, and files that tell the test what they do and got.

Below the run's directory, each written by one process:

    <driver>.state     once a second, replaced as a whole: counts of operations, and what each thread waits for
    <driver>.errors    a JSON line for each error that noded gave; the test judges it (promises.py)
    <driver>.wrong     a JSON string for whatever must never be: it ends the run
    <driver>.answers   "<actor> <k> <pid> <n>" for each call of a counter that was answered
    calls/<actor>      "<pid> <k>" for each call that the actor began, in order, by the actor itself
    instances/<actor>  the actor's instances (watcher.py)
    <driver>.once      the id of each answered piece of at-most-once work
    once               "<id> <pid>" for each begun execution of at-most-once work, of all drivers
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from noded import exceptions


class Work:
    """One kind of work, in a thread of its own. A round is a second or less of it while nothing is faulty."""

    pause = 0.3

    def __init__(self, load: Load, rng: random.Random) -> None:
        self.load = load
        self.rng = rng
        self._rounds = 0

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def number(self) -> int:
        """Another one for each call."""
        self._rounds += 1
        return self._rounds

    def round(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Check what is kept, and drop it."""


class Load:
    def __init__(self, directory: str, name: str, seed: int, node: str) -> None:
        self.directory, self.name, self.node = Path(directory), name, node
        self.stop = threading.Event()
        self._seed = seed
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str, float]] = {}

    def run(self, works: Sequence[type[Work]]) -> list[threading.Thread]:
        """Begin: a thread for each kind, and one that tells."""
        made = [work(self, random.Random(f"{self._seed}-{self.name}-{work.__name__}")) for work in works]
        threads = [threading.Thread(target=self._work, args=[work], name=work.name) for work in made]
        for thread in [*threads, threading.Thread(target=self._tell, name="teller", daemon=True)]:
            thread.start()
        return threads

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around every call that may wait; `what` names it by id."""
        mine = threading.current_thread().name
        self._open[mine] = what, time.monotonic()
        try:
            yield
        finally:
            del self._open[mine]

    def count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self._counts[what] += by

    def failed(self, op: str, error: BaseException, since: float, id_: str) -> None:
        """`since`: when it was begun, or last known to be well."""
        cause = root(error)
        self.count(f"{op} failed")
        told = {
            "op": op, "error": type(cause).__name__, "since": since, "seen": time.monotonic(), "id": id_,
            "driver": self.name, "home": self.node, "kind": getattr(cause, "kind", ""),
            "pid": getattr(cause, "pid", None), "text": f"{error}"[:2000],
        }  # fmt: skip
        self._add(f"{self.name}.errors", json.dumps(told))

    def wrong(self, text: str) -> None:
        self._add(f"{self.name}.wrong", json.dumps(text))

    def once_done(self, id_: str) -> None:
        self.count("once")
        self._add(f"{self.name}.once", id_)

    def answered(self, actor: str, k: int, pid: int, n: int) -> None:
        self.count("call")
        self._add(f"{self.name}.answers", f"{actor} {k} {pid} {n}")

    def tell(self) -> None:
        path = self.directory / f"{self.name}.state"
        fresh = path.with_suffix(".new")
        with self._lock:
            fresh.write_text(json.dumps({"counts": self._counts, "open": self._open.copy()}))
            fresh.rename(path)

    def _add(self, name: str, text: str) -> None:
        add_line(self.directory / name, text)

    def _work(self, work: Work) -> None:
        try:
            while not self.stop.is_set():
                work.round()
                self.stop.wait(work.pause * (0.5 + work.rng.random()))
            work.finish()
        except BaseException:
            self.wrong(f"{self.name}, {work.name}: {traceback.format_exc()}")

    def _tell(self) -> None:
        while True:
            self.tell()
            time.sleep(1)


def root(error: BaseException) -> BaseException:
    """What was raised first, through all tasks that it came through."""
    while isinstance(error, exceptions.TaskError) and error.cause is not None:
        error = error.cause
    return error


def add_line(path: Path | str, text: str) -> None:
    """In one write, so lines of several processes stay whole."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        data = text.encode() + b"\n"
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def node_name() -> str:
    """Of this process, as the test calls it."""
    return os.environ["CHAOS_NODE"]
