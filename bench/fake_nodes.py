"""Nodes that cost almost nothing: each is one connection that speaks the protocol of a node to a real head.

A fake dials, asks for its number, registers, reports once a second (at once when its amounts have changed), takes and
ends actors, keeps and releases bundles, and answers questions. It has no workers, and reads the views that the head
sends only as far as their size, but for one in each fleet that looks how old they are. A fleet is a process with many
of them, which does what it is told in lines of JSON (`Fleet.do_*`); `FleetProcess` is the other end of that.

Also here: clients that make actors and placement groups, as a node passes on what its clients say.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from noded import ids
from noded.resources import UNIT
from noded.version import __version__
from noded.wire import cluster_messages as c
from noded.wire import messages as m
from noded.wire.dial import dial
from noded.wire.loop_link import LoopLink

_TICK = 0.05
_STAMP_SECONDS = 0.1
"""A real node looks so often whether its amounts have changed."""
_DIALS = 8
_NODES_HEADER = b"\x92\xcc\x8f"
"""An array of two, the first of them the tag of `Nodes`."""
_STAMP = "stamp"
_VIEW = object()


def _decode(header: memoryview) -> Any:
    return _VIEW if header[:3] == _NODES_HEADER else c.decode_from_head(header)


class Fake:
    """One node."""

    def __init__(self, fleet: Fleet, name: str, cpus: int) -> None:
        self.fleet = fleet
        self.name = name
        self.number = 0
        self.link: LoopLink | None = None
        self.total = {"CPU": cpus * UNIT, "memory": 64 * UNIT}
        self.available = dict(self.total)
        self.told = dict(self.total)
        self.actors: dict[bytes, c.HostedActor] = {}
        self.groups: dict[bytes, tuple[int, dict[int, dict[str, int]]]] = {}
        self.queue: deque[c.ReserveGroup] = deque()
        self.sent_at: dict[int, float] = {}
        self.view_bytes = 0
        self.views = 0
        self.next_beat = 0.0
        self.cluster_id = ""
        self.registered: asyncio.Future[None] = fleet.loop.create_future()
        self.questions: dict[int, asyncio.Future[Any]] = {}
        self.clients: dict[bytes, Client] = {}
        self._seq = itertools.count(1)
        self._requests = itertools.count(1)
        self._id = os.urandom(14).hex()

    # ------------------------------------------------------------ life

    async def join(self) -> None:
        fleet = self.fleet
        await self._dial()
        answer = await self.ask("number", {"name": self.name, "cluster": fleet.cluster})
        self.number, self.cluster_id = answer["number"], answer["cluster_id"]
        await self.register()

    async def rejoin(self) -> None:
        """The head has started anew."""
        self.sent_at.clear()
        await self._dial()
        self.registered = self.fleet.loop.create_future()
        await self.register()

    async def _dial(self) -> None:
        fleet = self.fleet
        sock = await asyncio.to_thread(dial, fleet.address, fleet.token, "head", timeout=60)
        self.link = LoopLink(fleet.loop, sock, _decode, self._on_message, self._on_closed, self.name)

    async def register(self) -> None:
        assert self.link is not None
        self.told = dict(self.available)
        self.link.send(
            c.Register(
                version=c.CLUSTER_VERSION,
                noded=__version__,
                python=platform.python_version(),
                cluster=self.fleet.cluster,
                cluster_id=self.cluster_id,
                number=self.number,
                node_id=self._id,
                epoch=1,
                name=self.name,
                address=f"127.0.0.1:{10_000 + self.number % 50_000}",
                node_ip="127.0.0.1",
                hostname="fake",
                run_dir="",
                pid=os.getpid(),
                total=self.total,
                available=self.available,
                labels={"noded.io/node-id": self._id, "zone": f"z{self.number % 10}"},
                actors=list(self.actors.values()),
                groups=[c.HeldGroup(id_, attempt, sorted(held)) for id_, (attempt, held) in self.groups.items()],
                jobs=sorted({client.job for client in self.clients.values()}),
            )
        )
        await asyncio.wait_for(asyncio.shield(self.registered), 60)

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> Any:
        assert self.link is not None
        number = next(self._requests)
        future = self.questions[number] = self.fleet.loop.create_future()
        self.link.send(c.AskHead(number, what), json.dumps(arguments).encode())
        return await asyncio.wait_for(future, 60)

    def _on_closed(self, link: LoopLink) -> None:
        if link is self.link and not self.fleet.ending:
            self.fleet.lost.append(f"{self.name}: {link.close_reason or 'its connection was closed'}")

    def report(self, now: float) -> None:
        """A heartbeat, with what has changed."""
        if self.link is None or not self.registered.done():
            return
        changed = {name: amount for name, amount in self.available.items() if self.told.get(name) != amount}
        seq = next(self._seq)
        self.sent_at[seq] = now
        self.told = dict(self.available)
        self.next_beat = now + 1.0
        self.link.send(c.Report(seq, available=changed or None, busy=bool(self.actors)))

    # ------------------------------------------------------------ from the head

    def _on_message(self, link: LoopLink, message: Any, payload: Any) -> None:
        kind = type(message)
        if message is _VIEW:
            self.views += 1
            self.view_bytes += len(payload) + 12
            if self is self.fleet.prober:
                self.fleet.look_at(payload)
        elif kind is c.Beat:
            sent = self.sent_at.pop(message.seq, None)
            if sent is not None:
                self.fleet.beat_times.append(time.monotonic() - sent)
        elif kind is c.HostActor:
            self._host(link, message)
        elif kind is c.ReserveGroup:
            self._reserve(link, message)
        elif kind is c.ReleaseGroup:
            self._release(link, message)
        elif kind is c.StopActor:
            actor = self.actors.pop(message.id, None)
            if actor is not None and actor.spec is not None:
                self._add(actor.spec.resources, 1)
                link.send(c.ActorExited(message.id, message.instance, None))
        elif kind is c.ForClient:
            client = self.clients.get(message.prefix)
            if client is not None:
                client.on_message(m.decode_to_client(memoryview(message.header)))
        elif kind is c.HeadAnswer:
            future = self.questions.pop(message.request, None)
            if future is not None and not future.done():
                value = json.loads(bytes(payload))
                if message.ok:
                    future.set_result(value)
                else:
                    future.set_exception(RuntimeError(f"{self.name}: {value}"))
        elif kind is c.AskNode:
            link.send(c.Asked(message.request, True), b"[]")
        elif kind is c.Registered:
            if not self.registered.done():
                self.registered.set_result(None)
        elif kind is c.NotRegistered:
            if not self.registered.done():
                self.registered.set_exception(RuntimeError(f"{self.name}: {message.reason}"))

    def _host(self, link: LoopLink, message: c.HostActor) -> None:
        id_ = message.spec.id
        if not message.wait and not self._fits(message.spec.placement):
            link.send(c.ActorNever(id_, message.instance, "it is full", "full"))
            return
        worker = ids.new_worker_id(self.number)
        self.actors[id_] = c.HostedActor(id_, message.instance, worker, 1, message.spec, True)
        self._add(message.spec.resources, -1)
        link.send(c.ActorStarted(id_, message.instance, worker, 1))
        link.send(c.ForHead(ids.node_prefix(self.number), m.encode(m.ActorUp(id_))))

    def _reserve(self, link: LoopLink, message: c.ReserveGroup) -> None:
        for bundle in message.bundles.values():
            if not self._fits(bundle):
                if message.wait:
                    self.queue.append(message)
                else:
                    link.send(c.GroupReserved(message.id, message.attempt, False, "it is full"))
                return
        _, held = self.groups.get(message.id, (0, {}))
        self.groups[message.id] = message.attempt, {**held, **message.bundles}
        for bundle in message.bundles.values():
            self._add(bundle, -1)
        link.send(c.GroupReserved(message.id, message.attempt, True))

    def _release(self, link: LoopLink, message: c.ReleaseGroup) -> None:
        for bundle in self.groups.pop(message.id, (0, {}))[1].values():
            self._add(bundle, 1)
        link.send(c.GroupReleased(message.id, message.attempt))
        waiting, self.queue = self.queue, deque()
        for each in waiting:
            if each.id != message.id:
                self._reserve(link, each)

    def _fits(self, amounts: Mapping[str, int]) -> bool:
        return all(self.available.get(name, 0) >= amount for name, amount in amounts.items())

    def _add(self, amounts: Mapping[str, int], sign: int) -> None:
        for name, amount in amounts.items():
            self.available[name] = self.available.get(name, 0) + sign * amount
        self.fleet.changed[self.name] = self


class Client:
    """Makes actors and groups in the name of a client of a fake node."""

    def __init__(self, node: Fake, job: str) -> None:
        self.node = node
        self.job = job
        self.prefix = ids.new_prefix(node.number)
        self._seq = itertools.count(1)
        self._states: dict[bytes, str] = {}
        self._wanted: dict[bytes, tuple[str, asyncio.Future[None]]] = {}
        node.clients[self.prefix] = self

    def on_message(self, message: Any) -> None:
        if not isinstance(message, m.ActorAt | m.GroupAt):
            return
        self._states[message.id] = message.state
        wanted = self._wanted.get(message.id)
        if wanted is not None and wanted[0] == message.state and not wanted[1].done():
            wanted[1].set_result(None)

    def create_actor(self, resources: dict[str, int], **fields: Any) -> bytes:
        id_ = ids.actor_id(self.prefix, next(self._seq))
        spec = m.ActorSpec(
            id_, "Fake", b"h" * 16, 100, {"ping": m.Method()}, resources, resources, job=self.job, **fields
        )
        self._say(m.CreateActor(spec, 0), b"x" * 300)
        return id_

    def create_group(self, bundles: list[dict[str, int]], strategy: str) -> bytes:
        id_ = ids.group_id(self.prefix, next(self._seq))
        self._say(m.CreateGroup(m.GroupSpec(id_, bundles, strategy, job=self.job)))
        return id_

    def remove_group(self, id_: bytes) -> None:
        self._say(m.RemoveGroup(id_))

    def kill_actor(self, id_: bytes) -> None:
        self._say(m.KillActor(id_, True))

    def watch(self, actors: Sequence[bytes], groups: Sequence[bytes]) -> None:
        """As after a reconnect."""
        for id_ in actors:
            self._say(m.WatchActor(id_, True))
        for id_ in groups:
            self._say(m.WatchGroup(id_))

    async def until(self, found: Sequence[bytes], state: str, seconds: float = 300) -> None:
        """All of these are in this state."""
        left = [id_ for id_ in found if self._states.get(id_) != state]
        for id_ in left:
            self._wanted[id_] = state, self.node.fleet.loop.create_future()
        try:
            await asyncio.wait_for(asyncio.gather(*(self._wanted[id_][1] for id_ in left)), seconds)
        except TimeoutError:
            missing = [id_ for id_ in found if self._states.get(id_) != state]
            states = sorted({self._states.get(id_, "nothing") for id_ in missing})
            raise TimeoutError(f"{len(missing)} of {len(found)} are not {state} but {', '.join(states)}") from None
        finally:
            for id_ in left:
                del self._wanted[id_]

    def _say(self, message: Any, payload: bytes = b"") -> None:
        assert self.node.link is not None
        self.node.link.send(c.ForHead(self.prefix, m.encode(message)), payload)


class Fleet:
    """Many fakes in this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str, token: bytes, cluster: str) -> None:
        self.loop = loop
        self.address = address
        self.token = token
        self.cluster = cluster
        self.ending = False
        self.nodes: list[Fake] = []
        self.changed: dict[str, Fake] = {}
        self.lost: list[str] = []
        self.beat_times: list[float] = []
        self.ages: list[float] = []
        self.prober: Fake | None = None
        self._changing = 0.0
        self._client: Client | None = None
        self._made: list[bytes] = []
        self._made_groups: list[bytes] = []
        self._stamped_at = 0.0
        self._stamps: dict[str, float] = {}
        self._debt = 0.0
        self._turn = 0
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ what it is told

    async def do_join(self, count: int, cpus: int, prefix: str) -> dict[str, Any]:
        """The first of the nodes tells the time in its amounts, the last looks how old what it is told of that is."""
        made = [Fake(self, f"{prefix}{index}", cpus) for index in range(count)]
        made[0].total[_STAMP] = made[0].available[_STAMP] = 1 << 60
        if self._task is None:
            self._task = self.loop.create_task(self._beat())
        began = time.monotonic()
        for index, node in enumerate(made):
            node.next_beat = began + 1 + index / count
        self.nodes += made
        await _few_at_once([node.join() for node in made])
        self.prober = made[-1]
        return {"seconds": time.monotonic() - began}

    async def do_rejoin(self) -> dict[str, Any]:
        began = time.monotonic()
        self.lost = []
        await _few_at_once([node.rejoin() for node in self.nodes])
        if self._client is not None:
            self._client.watch(self._made, self._made_groups)
        return {"seconds": time.monotonic() - began}

    async def do_change(self, fraction: float) -> dict[str, Any]:
        """So many of the nodes have other amounts every second, from now on."""
        self._changing = fraction
        return {}

    async def do_stats(self) -> dict[str, Any]:
        """Since the last time."""
        nodes = self.nodes
        found = {
            "nodes": len(nodes),
            "lost": self.lost[:5],
            "beats": len(self.beat_times),
            "beat_ms": _spread(self.beat_times),
            "age_ms": _spread(self.ages),
            "views": sum(node.views for node in nodes),
            "view_bytes": sum(node.view_bytes for node in nodes),
            "cpu": time.process_time(),
        }
        self.beat_times, self.ages = [], []
        for node in nodes:
            node.views = node.view_bytes = 0
        return found

    async def do_client(self) -> dict[str, Any]:
        """One of the nodes has a driver."""
        node = self.nodes[len(self.nodes) // 2]
        job = await node.ask("admit_job", {"job": "", "config": c.as_text(m.JobConfig())})
        self._client = Client(node, job)
        return {"job": job}

    async def do_actors(self, count: int, cpu: float, **fields: Any) -> dict[str, Any]:
        """Made at once, and alive."""
        client = self._of_client()
        began = time.monotonic()
        made = [client.create_actor({"CPU": int(cpu * UNIT)}, **fields) for _ in range(count)]
        await client.until(made, "alive")
        self._made += made
        return {"seconds": time.monotonic() - began}

    async def do_actors_in_turn(self, count: int, cpu: float) -> dict[str, Any]:
        client, times = self._of_client(), []
        for _ in range(count):
            began = time.monotonic()
            made = client.create_actor({"CPU": int(cpu * UNIT)})
            await client.until([made], "alive")
            times.append(time.monotonic() - began)
            self._made.append(made)
        return {"ms": _spread(times)}

    async def do_groups(self, count: int, bundles: int, cpu: float, strategy: str) -> dict[str, Any]:
        client = self._of_client()
        began = time.monotonic()
        made = [client.create_group([{"CPU": int(cpu * UNIT)}] * bundles, strategy) for _ in range(count)]
        await client.until(made, "created")
        self._made_groups += made
        return {"seconds": time.monotonic() - began}

    async def do_more(self, actors: int, groups: int, cpu: float) -> dict[str, Any]:
        """Without waiting for them: there may be no room."""
        client = self._of_client()
        amounts = {"CPU": int(cpu * UNIT)}
        self._made += [client.create_actor(amounts) for _ in range(actors)]
        self._made_groups += [client.create_group([amounts] * 2, "PACK") for _ in range(groups)]
        return {}

    async def do_end(self) -> dict[str, Any]:
        """Everything that was made."""
        client = self._of_client()
        began = time.monotonic()
        for id_ in self._made:
            client.kill_actor(id_)
        for id_ in self._made_groups:
            client.remove_group(id_)
        await client.until(self._made, "dead")
        await client.until(self._made_groups, "removed")
        ended, self._made, self._made_groups = len(self._made) + len(self._made_groups), [], []
        return {"ended": ended, "seconds": time.monotonic() - began}

    async def do_where(self) -> dict[str, Any]:
        """How many actors and bundles each node has."""
        return {
            "actors": [len(node.actors) for node in self.nodes],
            "bundles": [sum(len(held) for _, held in node.groups.values()) for node in self.nodes],
        }

    async def do_drop(self, count: int) -> dict[str, Any]:
        """So many nodes leave in order."""
        for node in self.nodes[1 : 1 + count]:
            assert node.link is not None
            node.link.send(c.Leave("it was enough"))
        gone = self.nodes[1 : 1 + count]
        del self.nodes[1 : 1 + count]
        return {"dropped": len(gone)}

    def _of_client(self) -> Client:
        assert self._client is not None, "say client first"
        return self._client

    # ------------------------------------------------------------ heartbeats

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            self._change()
            if now - self._stamped_at >= _STAMP_SECONDS:
                self._stamped_at = now
                self.nodes[0].available[_STAMP] = int(now * 1e6)
                self.changed[self.nodes[0].name] = self.nodes[0]
            changed, self.changed = self.changed, {}
            for node in changed.values():
                node.report(now)
            for node in self.nodes:
                if node.next_beat <= now:
                    node.report(now)

    def _change(self) -> None:
        self._debt += self._changing * len(self.nodes) * _TICK
        while self._debt >= 1:
            self._debt -= 1
            self._turn += 1
            node = self.nodes[self._turn % len(self.nodes)]
            # Something small comes and goes.
            node.available["memory"] = node.total["memory"] - (self._turn // len(self.nodes) % 2 + 1) * UNIT
            self.changed[node.name] = node

    def look_at(self, payload: Any) -> None:
        """How old was what we knew, when something newer came?"""
        now = time.monotonic()
        for entry in c.decode_entries(payload):
            stamp = entry.available.get(_STAMP, 1 << 60)
            if stamp < 1 << 60 and entry.id in self._stamps:
                self.ages.append(now - self._stamps[entry.id])
            self._stamps[entry.id] = stamp / 1e6

    def close(self) -> None:
        self.ending = True
        if self._task is not None:
            self._task.cancel()
        for node in self.nodes:
            if node.link is not None:
                node.link.close()


async def _few_at_once(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    gate = asyncio.Semaphore(_DIALS)

    async def do(one: Coroutine[Any, Any, None]) -> None:
        async with gate:
            await one

    await asyncio.gather(*(do(one) for one in work))


def _spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in at.items()}


# ---------------------------------------------------------------- the other end


class FleetProcess:
    """A fleet in a process of its own. `tell` waits for the answer; `start` and `finish` are its halves."""

    def __init__(self, address: str, token: str, cluster: str) -> None:
        root = str(Path(__file__).resolve().parents[1])
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), address, cluster],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "FLEET_TOKEN": token, "PYTHONPATH": root},
        )

    def start(self, what: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fleet has ended with {self._process.wait(10)}: its words are on stderr")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def tell(self, what: str, **arguments: Any) -> dict[str, Any]:
        self.start(what, **arguments)
        return self.finish()

    def __enter__(self) -> FleetProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()


async def _serve(address: str, cluster: str) -> None:
    loop = asyncio.get_running_loop()
    fleet = Fleet(loop, address, os.environ["FLEET_TOKEN"].strip().encode(), cluster)
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        words = json.loads(line)
        try:
            answer = await getattr(fleet, f"do_{words.pop('do')}")(**words)
        except Exception as problem:
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        print(json.dumps(answer), flush=True)
    fleet.close()
    transport.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fake nodes; told what to do in lines of JSON on stdin.")
    parser.add_argument("address")
    parser.add_argument("cluster")
    args = parser.parse_args()
    asyncio.run(_serve(args.address, args.cluster))


if __name__ == "__main__":
    main()
