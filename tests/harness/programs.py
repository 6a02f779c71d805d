"""Random programs: their steps run on noded and, at once, on a sequential model that says what must come out.

A step is (name, a, b, flag); the numbers choose among what there is, so every list of steps is a program, and so is
every part of one. What waits for a gate stays pending until a step opens it: so the model knows at any moment what is
ready, and a cancel of something gated always strikes.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import noded
from harness.gates import Gate, Notes
from harness.wait import wait_for
from noded.exceptions import ActorDiedError, TaskCancelledError

Step = tuple[str, int, int, bool]
TIMEOUT = 60
BIG = 130_000
MOST_GATES = 4
MOST_ACTORS = 4


def pack(number: int, big: bool) -> Any:
    """A value of the program: a number, small or with much behind it."""
    if not big:
        return number
    array = np.full(BIG, number % 251, dtype=np.uint8)
    array[:8] = np.frombuffer(np.int64(number).tobytes(), dtype=np.uint8)
    return array


def unpack(value: Any) -> int:
    if isinstance(value, int):
        return value
    number = int(np.frombuffer(bytes(value[:8]), dtype=np.int64)[0])
    assert (value[8:] == number % 251).all(), "the bytes of a value have changed"
    return number


# ---------------------------------------------------------------- what runs remotely


@noded.remote(num_cpus=1)
def add(big: bool, nested: list[Any], *values: Any) -> Any:
    return pack(sum(map(unpack, values)) + sum(map(unpack, noded.get(nested))), big)


@noded.remote(num_cpus=1)
def fail(number: int, *values: Any) -> Any:
    raise ValueError(number)


@noded.remote(num_cpus=1)
def several(number: int, count: int, big: bool) -> Any:
    return [pack(number + i, big) for i in range(count)]


@noded.remote(num_cpus=1)
def tree(number: int, depth: int) -> int:
    if not depth:
        return number
    return 1 + sum(noded.get([tree.remote(number + i, depth - 1) for i in range(2)]))


@noded.remote(num_cpus=1)
def boxed(refs: list[Any]) -> Any:
    return {"refs": refs, "new": noded.put(list(refs))}


@noded.remote(num_cpus=1, max_retries=2, retry_exceptions=[KeyError])
def flaky(notes: Notes, number: int) -> int:
    if notes.add() == 1:
        raise KeyError(number)
    return number


@noded.remote(num_cpus=0)
def gated(gate: Gate, number: int) -> int:
    gate.wait(TIMEOUT)
    return number


@noded.remote(num_cpus=1)
def stream(number: int, count: int, fails: bool, big: bool) -> Iterator[Any]:
    for i in range(count):
        yield pack(number + i, big and i % 2 == 0)
    if fails:
        raise ValueError(number)


@noded.remote(num_cpus=0)
class Plain:
    """Its calls run in order: each answer holds all that came before it."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.kept: list[Any] = []

    def add(self, value: Any) -> int:
        self.total += unpack(value)
        return self.total

    def keep(self, refs: list[Any]) -> int:
        self.kept += refs
        return len(self.kept)

    def look(self) -> int:
        return sum(map(unpack, noded.get(self.kept)))

    def fail(self) -> None:
        raise ValueError(self.total)

    def stream(self, count: int) -> Iterator[int]:
        for i in range(count):
            yield self.total + i


@noded.remote(num_cpus=0)
class Async:
    """A call whose arguments are there may overtake one that waits for its own."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.kept: list[Any] = []

    async def add(self, value: Any) -> int:
        self.total += unpack(value)
        return unpack(value)

    async def read(self) -> int:
        return self.total

    async def keep(self, refs: list[Any]) -> int:
        self.kept += refs
        return len(self.kept)

    async def look(self) -> int:
        return sum(map(unpack, await asyncio.gather(*(wait(ref) for ref in self.kept))))

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise ValueError(self.total)

    async def stream(self, count: int) -> AsyncIterator[int]:
        for i in range(count):
            await asyncio.sleep(0)
            yield i

    async def gated(self, gate: Gate, number: int) -> int:
        while not gate.is_open():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return number


@noded.remote(num_cpus=0, max_concurrency=6)
class Threads:
    """Its calls run side by side, so an answer says nothing of the others."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.lock = threading.Lock()

    def add(self, value: Any) -> int:
        with self.lock:
            self.total += unpack(value)
        return unpack(value)

    def read(self) -> int:
        return self.total

    def fail(self) -> None:
        raise ValueError(self.total)

    def stream(self, count: int) -> Iterator[int]:
        yield from range(count)


async def wait(ref: Any) -> Any:
    return await ref


# ---------------------------------------------------------------- the model


@dataclass(eq=False)
class Ref:
    """``outcome``: a number, or the kind of exception; ``gates`` that must open first, which may be the future's."""

    ref: Any
    outcome: int | type[BaseException]
    needs: frozenset[int] = frozenset()


@dataclass(eq=False)
class Actor:
    handle: Any
    kind: str
    total: int
    kept: list[Ref] = field(default_factory=list)
    calls: list[Ref] = field(default_factory=list)
    needs: frozenset[int] = frozenset()
    """A call of a plain actor waits for the arguments of those before it."""


@dataclass(eq=False)
class Stream:
    generator: Any
    expected: list[int | type[BaseException]]
    taken: int = 0


class World:
    """Runs the steps of one program. Every check names the step in its message."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.refs: list[Ref] = []
        self.actors: list[Actor] = []
        self.streams: list[Stream] = []
        self.gates: list[Gate] = []
        self.closed: set[int] = set()
        self.cancelled: dict[int, Ref] = {}
        self.notes = 0
        self.log: list[str] = []

    def run(self, steps: list[Step]) -> None:
        try:
            for step in steps:
                self.log.append(repr(step))
                getattr(self, "on_" + step[0])(*step[1:])
            self.log.append("end")
            self.finish()
        except BaseException as problem:
            problem.add_note("the program, up to where it failed:\n  " + "\n  ".join(self.log))
            raise
        finally:
            for gate in self.gates:
                gate.open()

    # ------------------------------------------------------------ choices

    def ref(self, choice: int) -> Ref | None:
        return self.refs[choice % len(self.refs)] if self.refs else None

    def some(self, choice: int, most: int) -> list[Ref]:
        found = (
            [self.refs[(choice * (i + 3)) % len(self.refs)] for i in range(choice % (most + 1))] if self.refs else []
        )
        return list(dict.fromkeys(found))

    def pending(self, ref: Ref) -> bool:
        return bool(ref.needs & self.closed)

    def add(self, ref: Any, outcome: int | type[BaseException], *needs: Ref) -> Ref:
        made = Ref(ref, outcome, frozenset().union(*(one.needs for one in needs)))
        self.refs.append(made)
        return made

    @staticmethod
    def combined(number: int, parts: list[Ref]) -> int | type[BaseException]:
        """The sum, or the error of the first of them that has one."""
        for part in parts:
            if not isinstance(part.outcome, int):
                return part.outcome
            number += part.outcome
        return number

    # ------------------------------------------------------------ objects and tasks

    def on_put(self, a: int, b: int, big: bool) -> None:
        self.add(noded.put(pack(a, big)), a)

    def on_add(self, a: int, b: int, big: bool) -> None:
        direct, nested = self.some(a, 3), self.some(b, 2)
        parts = [*direct, *nested]
        kinds = {p.outcome for p in parts if not isinstance(p.outcome, int)}
        if len(kinds) > 1 or (kinds and any(self.pending(p) for p in parts)):
            return  # which error comes first is nobody's promise
        ref = add.remote(big, [p.ref for p in nested], *(p.ref for p in direct))
        self.add(ref, self.combined(0, parts), *parts)

    def on_fail(self, a: int, b: int, flag: bool) -> None:
        arguments = [one for one in self.some(a, 2) if isinstance(one.outcome, int)]
        self.add(fail.remote(b, *(one.ref for one in arguments)), ValueError, *arguments)

    def on_several(self, a: int, b: int, big: bool) -> None:
        count = 2 + b % 3
        for i, ref in enumerate(several.options(num_returns=count).remote(a, count, big)):
            self.add(ref, a + i)

    def on_tree(self, a: int, b: int, flag: bool) -> None:
        def value(number: int, depth: int) -> int:
            return 1 + sum(value(number + i, depth - 1) for i in range(2)) if depth else number

        self.add(tree.remote(a, b % 3), value(a, b % 3))

    def on_boxed(self, a: int, b: int, flag: bool) -> None:
        """The same objects by other ways: borrowed, and out of an object that another process made."""
        chosen = self.some(a, 3)
        if not chosen:
            return
        box = noded.get(boxed.remote([one.ref for one in chosen]), timeout=TIMEOUT)
        for refs in (box["refs"], noded.get(box["new"], timeout=TIMEOUT)):
            for one, again in zip(chosen, refs, strict=True):
                self.refs.append(Ref(again, one.outcome, one.needs))

    def on_flaky(self, a: int, b: int, flag: bool) -> None:
        self.notes += 1
        self.add(flaky.remote(Notes(self.directory / f"notes{self.notes}"), a), a)

    def on_drop(self, a: int, b: int, flag: bool) -> None:
        """Half of them: what the others need must live on."""
        del self.refs[a % 2 :: 2]

    # ------------------------------------------------------------ gates, cancels, waits

    def on_gated(self, a: int, b: int, flag: bool) -> None:
        if len(self.closed) >= MOST_GATES:
            return
        number = len(self.gates)
        gate = Gate(self.directory / f"gate{number}")
        self.gates.append(gate)
        self.closed.add(number)
        asynchronous = [actor for actor in self.actors if actor.kind == "Async"]
        if flag and asynchronous:
            actor = asynchronous[b % len(asynchronous)]
            ref, needs = actor.handle.gated.remote(gate, a), {number}
        else:
            ref, needs = gated.remote(gate, a), {number}
        made = Ref(ref, a, frozenset(needs))
        self.refs.append(made)
        self.cancelled[number] = made

    def on_open(self, a: int, b: int, flag: bool) -> None:
        if self.closed:
            number = sorted(self.closed)[a % len(self.closed)]
            self.gates[number].open()
            self.closed.discard(number)

    def on_cancel(self, a: int, b: int, force: bool) -> None:
        """Of what is gated, and nothing depends on it yet (the errors of those are nobody's promise)."""
        for number in sorted(self.closed):
            one = self.cancelled[number]
            users = [r for r in self.refs if number in r.needs and r is not one and r.ref is not one.ref]
            kept = [k for actor in self.actors for k in actor.kept if number in k.needs]
            waiting = any(number in actor.needs for actor in self.actors)
            if users or kept or waiting or one.needs != {number}:
                continue
            is_call = one.ref._task is not None and bool(one.ref._task.method)
            noded.cancel(one.ref, force=force and not is_call)
            for same in self.refs:
                if same.ref is one.ref:
                    same.outcome, same.needs = TaskCancelledError, frozenset()
            one.outcome, one.needs = TaskCancelledError, frozenset()
            self.check(one)  # now: it is on its way, and the gate may open next
            self.closed.discard(number)
            return

    def on_cancel_done(self, a: int, b: int, force: bool) -> None:
        one = self.ref(a)
        if one is not None and not self.pending(one):
            self.check(one)
            noded.cancel(one.ref)

    def on_wait(self, a: int, b: int, flag: bool) -> None:
        chosen = list({id(one.ref): one for one in self.some(a, 8)}.values())
        due = [one.ref for one in chosen if not self.pending(one)]
        if not due:
            if chosen:
                ready, _ = noded.wait([one.ref for one in chosen], timeout=0.001)
                assert not ready, f"ready before its gate was opened: {ready}"
            return
        count = 1 + b % len(due) if flag else len(due)
        ready, rest = noded.wait([one.ref for one in chosen], num_returns=count, timeout=TIMEOUT)
        assert len(ready) == count, f"{len(ready)} of {count} are ready"
        assert {id(r) for r in ready} <= {id(r) for r in due}, "what waits for a gate is called ready"
        order = [id(one.ref) for one in chosen]
        for part in (ready, rest):
            assert [id(r) for r in part] == [one for one in order if one in {id(r) for r in part}], "in another order"

    # ------------------------------------------------------------ streams

    def on_stream(self, a: int, b: int, flag: bool) -> None:
        count, window = b % 7, (None, 1, 3)[a % 3]
        maker = stream.options(_generator_backpressure_num_objects=window)
        expected: list[Any] = [a + i for i in range(count)] + ([ValueError] if flag else [])
        self.streams.append(Stream(maker.remote(a, count, flag, a % 2 == 0), expected))

    def on_take(self, a: int, b: int, flag: bool) -> None:
        if self.streams:
            self.take(self.streams[a % len(self.streams)], 1 + b % 3)

    def take(self, one: Stream, count: int) -> None:
        """Items become refs like others."""
        for _ in range(count):
            if one.taken == len(one.expected):
                assert next(one.generator, None) is None, "a stream goes on after its end"
                return
            self.add(one.generator._next_sync(TIMEOUT), one.expected[one.taken])
            one.taken += 1

    def on_drop_stream(self, a: int, b: int, flag: bool) -> None:
        if self.streams:
            del self.streams[a % len(self.streams)]

    # ------------------------------------------------------------ actors

    def on_actor(self, a: int, b: int, flag: bool) -> None:
        if len(self.actors) < MOST_ACTORS:
            kind = (Plain, Async, Threads)[b % 3]
            self.actors.append(Actor(kind.remote(a), kind._name, a))

    def on_call(self, a: int, b: int, big: bool) -> None:
        if not self.actors:
            return
        actor, argument = self.actors[a % len(self.actors)], self.ref(b)
        if argument is None or b % 3 == 0:
            argument = Ref(pack(b, big), b)
        if not isinstance(argument.outcome, int):
            return
        call = actor.handle.add.remote(argument.ref)
        actor.total += argument.outcome
        if actor.kind == "Plain":
            actor.needs |= argument.needs  # later calls wait for it
            made = Ref(call, actor.total, actor.needs)
        else:
            made = Ref(call, argument.outcome, argument.needs)
        self.called(actor, made)

    def called(self, actor: Actor, made: Ref) -> None:
        actor.calls.append(made)
        self.refs.append(made)

    def on_keep(self, a: int, b: int, flag: bool) -> None:
        """The actor has them alone, perhaps."""
        actors = [actor for actor in self.actors if actor.kind != "Threads"]
        chosen = [one for one in self.some(b, 3) if isinstance(one.outcome, int)]
        if not actors or not chosen:
            return
        actor = actors[a % len(actors)]
        actor.kept += [Ref(None, one.outcome, one.needs) for one in chosen]
        self.called(actor, Ref(actor.handle.keep.remote([one.ref for one in chosen]), len(actor.kept), actor.needs))

    def on_look(self, a: int, b: int, flag: bool) -> None:
        actors = [actor for actor in self.actors if actor.kind == "Async" or not any(map(self.pending, actor.kept))]
        actors = [actor for actor in actors if actor.kind != "Threads"]
        if actors:
            actor = actors[a % len(actors)]
            needs = actor.needs.union(*(one.needs for one in actor.kept))
            self.called(actor, Ref(actor.handle.look.remote(), self.combined(0, actor.kept), needs))

    def on_actor_fail(self, a: int, b: int, flag: bool) -> None:
        if self.actors:
            actor = self.actors[a % len(self.actors)]
            self.called(actor, Ref(actor.handle.fail.remote(), ValueError, actor.needs))

    def on_actor_stream(self, a: int, b: int, flag: bool) -> None:
        actors = [actor for actor in self.actors if not actor.needs & self.closed]
        if actors:
            actor = actors[a % len(actors)]
            method = actor.handle.stream.options(_generator_backpressure_num_objects=2 if flag else None)
            first = actor.total if actor.kind == "Plain" else 0
            if actor.kind == "Plain" and flag:
                return  # with a window it would hold up the actor until somebody takes
            self.streams.append(Stream(method.remote(b % 5), [first + i for i in range(b % 5)]))

    def on_kill(self, a: int, b: int, flag: bool) -> None:
        idle = [actor for actor in self.actors if not actor.needs & self.closed and self.unused(actor)]
        if not idle:
            return
        actor = idle[a % len(idle)]
        for call in actor.calls:
            self.check(call)
        self.actors.remove(actor)
        if flag:
            noded.kill(actor.handle)
            self.add(actor.handle.add.remote(1), ActorDiedError)

    def unused(self, actor: Actor) -> bool:
        """Nothing that waits is in it."""
        return actor.kind == "Plain" and not any(map(self.pending, actor.kept)) and not self.streams

    # ------------------------------------------------------------ looking

    def on_get(self, a: int, b: int, flag: bool) -> None:
        one = self.ref(a)
        if one is not None and not self.pending(one):
            self.check(one)

    def on_get_many(self, a: int, b: int, flag: bool) -> None:
        chosen = [one for one in self.some(a, 6) if not self.pending(one) and isinstance(one.outcome, int)]
        got = noded.get([one.ref for one in chosen], timeout=TIMEOUT)
        for one, value in zip(chosen, got, strict=True):
            self.compare(one, value)

    def on_await(self, a: int, b: int, flag: bool) -> None:
        chosen = [one for one in self.some(a, 6) if not self.pending(one)]

        async def main() -> list[Any]:
            return await asyncio.wait_for(
                asyncio.gather(*(wait(one.ref) for one in chosen), return_exceptions=True), TIMEOUT
            )

        for one, got in zip(chosen, asyncio.run(main()), strict=True):
            self.compare(one, got)

    def on_future(self, a: int, b: int, flag: bool) -> None:
        one = self.ref(a)
        if one is not None and not self.pending(one):
            self.check(one, lambda: one.ref.future().result(TIMEOUT))

    def check(self, one: Ref, get: Callable[[], Any] | None = None) -> None:
        try:
            got = get() if get is not None else noded.get(one.ref, timeout=TIMEOUT)
        except Exception as problem:
            got = problem
        self.compare(one, got)

    @staticmethod
    def compare(one: Ref, got: Any) -> None:
        if isinstance(one.outcome, int):
            if isinstance(got, BaseException):
                raise AssertionError(f"{one.ref} must be {one.outcome}") from got
            assert unpack(got) == one.outcome, f"{one.ref} is {unpack(got)}, and must be {one.outcome}"
        elif not isinstance(got, one.outcome):
            raise AssertionError(f"{one.ref} must be a {one.outcome.__name__}, and is {got!r}")

    def finish(self) -> None:
        """Everything that is still there comes out right; then nothing is left."""
        for gate in self.gates:
            gate.open()
        self.closed.clear()
        for one in self.streams:
            self.take(one, len(one.expected) + 1)
        for one in self.refs:
            self.check(one)
        for actor in self.actors:
            for call in actor.calls:
                self.check(call)
            if actor.kind != "Plain":
                assert noded.get(actor.handle.read.remote(), timeout=TIMEOUT) == actor.total
            else:
                assert noded.get(actor.handle.add.remote(0), timeout=TIMEOUT) == actor.total


STEPS = sorted(name.removeprefix("on_") for name in vars(World) if name.startswith("on_"))


def settle(status: Callable[[], dict[str, Any]]) -> None:
    """After a program nothing of it is left on the cluster."""
    gc.collect()

    def left() -> str:
        found = status()
        busy = {name: found[name] for name in ("actors", "demands") if found[name]}
        busy |= {name: used for name, used in found["resources"]["used"].items() if used}
        return str(busy | {"store": found["store"]}) if busy or found["store"]["ids"] else ""

    wait_for(lambda: not left(), lambda: f"the program left: {left()}", 20)
