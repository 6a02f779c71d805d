"""What the drivers of the long run do: every kind of work that the API promises something about.

A driver is `from harness.chaos import work; work.main(say, hear)` with the arguments: directory, name, seed, its node,
the kinds of work. Values are exact or wrong; an error goes to the judge; all else that is raised ends the run.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import noded
from harness.chaos.load import Load, Work, add_line, node_name, root
from harness.watcher import announce
from noded import exceptions as ex
from noded.util.placement_group import placement_group, remove_placement_group
from noded.util.scheduling_strategies import PlacementGroupSchedulingStrategy

FOREVER = -1
NAMESPACE = "test"
DETACHED = ("detached-0", "detached-1")
SIZES = (100, 100, 200_000, 200_000, 5_000_000)
KEPT = 5
"""Objects of a driver at a time."""
ERRORS = (ex.NodedError,)


@noded.remote(num_cpus=0.5, max_retries=FOREVER)
def small(k: int, ms: int, *others: int) -> int:
    if ms:
        time.sleep(ms / 1000)
    return k + sum(others)


@noded.remote(num_cpus=0.5, max_retries=FOREVER)
def nested(k: int) -> int:
    return sum(noded.get([small.remote(k, 5), small.remote(1, 0)])) - 1


@noded.remote(num_cpus=0.5, max_retries=0)
def once(path: str, id_: str, ms: int) -> str:
    add_line(path, f"{id_} {os.getpid()}")
    time.sleep(ms / 1000)
    return id_


@noded.remote(num_cpus=0.5, max_retries=FOREVER, num_returns=2)
def make(k: int, size: int) -> tuple[Any, str]:
    return content(k, size), node_name()


@noded.remote(num_cpus=0.5, max_retries=FOREVER)
def crc(array: Any) -> int:
    return zlib.crc32(array)


class Counting:
    """Notes each call before it counts."""

    def __init__(self, directory: str, name: str) -> None:
        announce(f"{directory}/instances/{name}")
        self.calls, self.pid, self.n = f"{directory}/calls/{name}", os.getpid(), 0

    def add(self, k: str) -> tuple[int, int]:
        add_line(self.calls, f"{self.pid} {k}")
        self.n += 1
        return self.pid, self.n


counter = noded.remote(num_cpus=0.1, scheduling_strategy="SPREAD")(Counting)


def content(k: int, size: int) -> Any:
    return np.arange(size // 4, dtype=np.uint32) * np.uint32(k | 1)


class Tasks(Work):
    """Independent ones, nested ones, a chain, and a task that takes the results of all."""

    def round(self) -> None:
        since, k = time.monotonic(), self.rng.randrange(1 << 20)
        wanted: list[tuple[Any, int]] = []
        for i in range(self.rng.randrange(2, 7)):
            ms = self.rng.choices([0, 1, 20, 200, 2000], [8, 4, 4, 2, 0.4])[0]
            way = self.rng.choice([None, None, "SPREAD"])
            wanted.append((small.options(scheduling_strategy=way).remote(k + i, ms), k + i))
        if self.rng.random() < 0.3:
            wanted.append((nested.remote(k), k))
        link, total = small.remote(0, 0), 0
        for i in range(self.rng.randrange(1, 6)):
            link, total = small.options(scheduling_strategy="SPREAD").remote(i, 1, link), total + i
        wanted.append((link, total))
        wanted.append((small.remote(1, 0, *(ref for ref, _ in wanted)), 1 + sum(value for _, value in wanted)))
        for ref, value in wanted:
            got = self.ask("task", ref, since)
            assert got is None or got == value, f"task {ref.hex()} gave {got}, not {value}"

    def ask(self, op: str, ref: Any, since: float) -> Any:
        """The value; None when it failed, which is for the judge."""
        try:
            with self.load.waiting(f"{op} {ref.hex()}"):
                value = noded.get(ref)
        except ERRORS as error:
            self.load.failed(op, error, since, ref.hex())
            return None
        self.load.count(op)
        return value


class Once(Tasks):
    """Tasks that may not run again: one in many takes long, so that it is there when its worker dies."""

    def round(self) -> None:
        since = time.monotonic()
        ids = [f"{self.load.name}-{self.number()}" for _ in range(3)]
        path = str(self.load.directory / "once")
        ms = self.rng.choice([0, 5, 50, 400])
        refs = [once.options(scheduling_strategy=self.rng.choice([None, "SPREAD"])).remote(path, i, ms) for i in ids]
        for id_, ref in zip(ids, refs, strict=True):
            got = self.ask("once", ref, since)
            assert got in (None, id_), f"task {ref.hex()} gave {got}, not {id_}"
            if got is not None:
                self.load.once_done(id_)


class Plain(Work):
    """A counter that starts once: it has counted everything that it has answered, or it is dead."""

    options: dict[str, Any] = {}
    calls = 3

    def __init__(self, load: Load, rng: random.Random) -> None:
        super().__init__(load, rng)
        self._made = 0
        self._actor: Any = None
        self._id = ""
        self._last = (0, 0)
        self._well = 0.0

    def round(self) -> None:
        if self._actor is None or self.rng.random() < 0.03:
            self._made += 1
            self._id = f"{self.load.name}-{self.name}-{self._made}"
            self._actor = counter.options(**self.options).remote(str(self.load.directory), self._id)
            self._last, self._well = (0, 0), time.monotonic()
        sent = [f"{self._id}:{self.number()}" for _ in range(self.calls)]
        self.hear(self._id, [(k, self._actor.add.remote(k)) for k in sent])

    def hear(self, id_: str, sent: Sequence[tuple[str, Any]]) -> None:
        for k, ref in sent:
            try:
                with self.load.waiting(f"{self.name} {id_} call {k} {ref.hex()}"):
                    pid, n = noded.get(ref)
            except ERRORS as error:
                self.load.failed(self.name, error, self._well, f"{id_} call {k} {ref.hex()}")
                self.on_error(error)
            else:
                self.load.answered(id_, k, pid, n)
                self.on_answer(pid, n)
                self._well = time.monotonic()

    def on_error(self, error: BaseException) -> None:
        if isinstance(root(error), ex.ActorDiedError):
            self._actor = None

    def on_answer(self, pid: int, n: int) -> None:
        assert self._actor is not None, f"{self._id} has said that it died, and answers"
        assert n == self._last[1] + 1 and self._last[0] in (0, pid), f"{self._id} was at {self._last}, then {(pid, n)}"
        self._last = pid, n

    def finish(self) -> None:
        self._actor = None


class Counter(Plain):
    """Starts again, without its state; calls are not made again."""

    options = {"max_restarts": FOREVER, "max_task_retries": 0}

    def on_answer(self, pid: int, n: int) -> None:
        """Also of a call that was answered before one sent earlier was given up."""
        same = pid == self._last[0]
        assert n > self._last[1] if same else n >= 1, f"{self._id} was at {self._last}, then {(pid, n)}"
        self._last = pid, n


class Retried(Counter):
    """Each call is answered, whatever happens."""

    options = {"max_restarts": FOREVER, "max_task_retries": FOREVER}


class Detached(Plain):
    """Named actors that all drivers call; those of Owner make and end them."""

    def round(self) -> None:
        name = self.rng.choice(DETACHED)
        since = time.monotonic()
        try:
            with self.load.waiting(f"get_actor {name}"):
                actor = noded.get_actor(name, namespace=NAMESPACE)
        except ERRORS as error:
            self.load.failed("get_actor", error, since, name)
            return
        sent = [f"{self.load.name}:{self.number()}" for _ in range(2)]
        self.hear(name, [(k, actor.add.remote(k)) for k in sent])

    def on_error(self, error: BaseException) -> None:
        pass

    def on_answer(self, pid: int, n: int) -> None:
        pass


class Owner(Detached):
    """Of the detached actors: there before another driver comes, and until the last one has gone."""

    @property
    def name(self) -> str:
        return "detached"

    def __init__(self, load: Load, rng: random.Random) -> None:
        super().__init__(load, rng)
        options = {"max_restarts": FOREVER, "max_task_retries": FOREVER, "lifetime": "detached"}
        for name in DETACHED:
            actor = counter.options(name=name, namespace=NAMESPACE, **options).remote(str(load.directory), name)
            noded.get(actor.add.remote(f"{load.name}:made-{name}"))

    def finish(self) -> None:
        for name in DETACHED:
            with self.load.waiting(f"get_actor {name}"):
                noded.kill(noded.get_actor(name, namespace=NAMESPACE))


class Objects(Tasks):
    """Keeps a few, of all sizes, and reads them here and elsewhere; also a view, under which nothing may change."""

    pause = 0.6

    def __init__(self, load: Load, rng: random.Random) -> None:
        super().__init__(load, rng)
        self._kept: list[tuple[str, Any, int, int, float]] = []
        self._view: Any = None
        self._view_crc = 0

    def round(self) -> None:
        self.add()
        if self._kept:
            self.read(*self.rng.choice(self._kept))
        if self._view is not None:
            assert zlib.crc32(self._view) == self._view_crc, "the bytes under a view have changed"
        while len(self._kept) > KEPT:
            self._kept.pop(self.rng.randrange(len(self._kept)))

    def add(self) -> None:
        since, k, size = time.monotonic(), self.rng.randrange(1 << 20), self.rng.choice(SIZES)
        if self.rng.random() < 0.4:
            with self.load.waiting(f"put {k} of {size} bytes"):
                ref = noded.put(content(k, size))
            self._kept.append(("put", ref, k, size, since))
            return
        ref, where = make.options(scheduling_strategy=self.rng.choice([None, "SPREAD", "SPREAD"])).remote(k, size)
        if self.ask("task", where, since) is not None:
            self._kept.append(("result", ref, k, size, since))

    def read(self, op: str, ref: Any, k: int, size: int, since: float) -> None:
        op = op if size > 100_000 else "small"  # these travel in messages, and stay with the driver
        elsewhere = self.rng.random() < 0.5
        asked = crc.options(scheduling_strategy="SPREAD").remote(ref) if elsewhere else ref
        got = self.ask(op, asked, since)
        want = content(k, size)
        if got is None:
            self._kept = [each for each in self._kept if each[1] is not ref]
        elif elsewhere:
            assert got == zlib.crc32(want), f"object {ref.hex()} ({op} {k}, {size} bytes) has other bytes elsewhere"
        else:
            assert np.array_equal(got, want), f"object {ref.hex()} ({op} {k}, {size} bytes) has other bytes"
            if self.rng.random() < 0.3:
                self._view, self._view_crc = got, zlib.crc32(got)

    def finish(self) -> None:
        for each in list(self._kept):
            self.read(*each)
        self._kept.clear()
        self._view = None


class Groups(Tasks):
    """Made, used and removed; a group's node may be lost meanwhile, then its bundles are placed anew."""

    pause = 1.0

    def round(self) -> None:
        count = self.rng.randrange(1, 4)
        strategy = self.rng.choice(["PACK", "SPREAD", "STRICT_SPREAD"])
        since = time.monotonic()
        group = placement_group([{"CPU": 0.5}] * count, strategy)
        try:
            if self.ask("group", group.ready(), since) is not None:
                places = [PlacementGroupSchedulingStrategy(group, i) for i in range(count)]
                refs = [small.options(scheduling_strategy=place).remote(i, 10) for i, place in enumerate(places)]
                for i, ref in enumerate(refs):
                    got = self.ask("group", ref, since)
                    assert got in (None, i), f"task {ref.hex()} of group {group.id.hex()} gave {got}, not {i}"
        finally:
            with self.load.waiting(f"remove group {group.id.hex()}"):
                remove_placement_group(group)


KINDS: dict[str, type[Work]] = {
    kind.__name__: kind for kind in (Tasks, Once, Plain, Counter, Retried, Detached, Owner, Objects, Groups)
}


def main(say: Callable[..., None], hear: Callable[[], str]) -> None:
    directory, name, seed, node, *kinds = sys.argv[1:]
    faulthandler.register(signal.SIGUSR2)  # a test that finds it hanging asks where
    load = Load(directory, name, int(seed), node)
    threads = load.run([KINDS[kind] for kind in kinds])
    say("started")
    while (word := hear()) and word != "stop":  # "" when the test has ended
        pass
    load.stop.set()
    for thread in threads:
        thread.join()
    load.tell()
    say("done")
    hear()  # who waits for the word must not find the end instead
