"""How the head carries a big cluster: a real `noded --head`, and a thousand fake nodes (fake_nodes.py) on it.

    python bench/cluster_size.py                       1,000 nodes, 10,000 actors, 1,000 groups; about a minute
    python bench/cluster_size.py --nodes 100 --actors 500 --groups 50 --seconds 3
    python bench/cluster_size.py --policy              the decisions alone, with 1,000 and 10,000 nodes

CPU is the head process's own user and system time, as fakes and head share the machine; what is said in wall-clock time
(ages, answers) is worse where others work on it too. See docs/scale.md for what came out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

from harness.cluster import Node

from bench.fake_nodes import FleetProcess
from noded import ids
from noded.head.actor_placement import ActorPlacement
from noded.head.actors import ActorTable
from noded.head.group_placement import GroupPlacement
from noded.head.nodes import NodeTable
from noded.head.storage.memory import MemoryStorage
from noded.policy import bundles, labels, scheduling
from noded.policy.nodes import NodeView
from noded.resources import UNIT
from noded.wire import cluster_messages as c
from noded.wire import messages as m

FAKE_CPUS = 16
_EMPTY = c.Report(1, available={"CPU": FAKE_CPUS * UNIT})


class BigCluster:
    """A head and fleets of fakes; `with`."""

    def __init__(self, nodes: int, processes: int = 2) -> None:
        self.nodes = nodes
        self.head = Node("--object-store-memory", "100000000", num_cpus=0, ready_timeout=60)
        self.fleets: list[FleetProcess] = []
        self.joined: dict[str, float] = {}
        self._processes = processes
        self._stack = ExitStack()

    def __enter__(self) -> BigCluster:
        try:
            self._stack.enter_context(self.head)
            home = Path(self.head.env.get("NODED_HOME") or os.environ.get("NODED_HOME") or Path.home() / ".noded")
            token = (home / "token").read_text().strip()
            for _ in range(self._processes):
                fleet = FleetProcess(self.head.address, token, self.head.cluster)
                self.fleets.append(self._stack.enter_context(fleet))
            share = -(-self.nodes // self._processes)
            with self.watch() as watched:
                for index, fleet in enumerate(self.fleets):
                    count = min(share, self.nodes - index * share)
                    fleet.start("join", count=count, cpus=FAKE_CPUS, prefix=f"f{index}-")
                for fleet in self.fleets:
                    fleet.finish()
            self.joined = watched
            self.fleets[0].tell("client")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @contextmanager
    def watch(self) -> Iterator[dict[str, float]]:
        """What the head has used meanwhile."""
        found: dict[str, float] = {}
        cpu, began = self.head_cpu(), time.monotonic()
        yield found
        found["seconds"] = time.monotonic() - began
        found["head_cpu_s"] = self.head_cpu() - cpu

    def head_cpu(self) -> float:
        """Of all its threads; none of them ends meanwhile. In finer steps than the ticks of /proc/PID/stat."""
        tasks = Path(f"/proc/{self.head.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def head_rss(self) -> float:
        """MB, without the object store's mapping."""
        status = Path(f"/proc/{self.head.pid}/status").read_text()
        found = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith("kB")}
        return (found["RssAnon"] + found["RssFile"]) / 1024

    def idle(self, seconds: float, changing: float) -> dict[str, Any]:
        """Heartbeats, while so many of the nodes change their amounts each second."""
        for fleet in self.fleets:
            fleet.tell("change", fraction=changing)
        time.sleep(1)
        self.stats()
        with self.watch() as watched:
            time.sleep(seconds)
        stats = self.stats()
        lasted = watched["seconds"]
        return {
            "head_cpu_percent": 100 * watched["head_cpu_s"] / lasted,
            "beats_per_s": stats["beats"] / lasted,
            "beat_ms": stats["beat_ms"],
            "view_age_ms": stats["age_ms"],
            "views_per_s_per_node": stats["views"] / lasted / self.nodes,
            "view_kb_per_s_per_node": stats["view_bytes"] / lasted / self.nodes / 1000,
            "view_mb_per_s": stats["view_bytes"] / lasted / 1e6,
            "head_rss_mb": self.head_rss(),
        }

    def stats(self) -> dict[str, Any]:
        """Of all fleets, since the last time."""
        each = [fleet.tell("stats") for fleet in self.fleets]
        lost = [text for one in each for text in one["lost"]]
        if lost:
            raise RuntimeError(f"nodes were lost: {lost[:5]}")
        summed: dict[str, Any] = {name: sum(one[name] for one in each) for name in ("beats", "views", "view_bytes")}
        for name in ("beat_ms", "age_ms"):
            summed[name] = {
                part: max(one[name][part] for one in each if one[name])
                for part in ("p50", "p99", "max")
                if any(one[name] for one in each)
            }
        return summed

    def restart(self) -> dict[str, float]:
        """SIGKILL the head; its next life begins, and all nodes register there with what they have."""
        self.head.kill9()
        began = time.monotonic()
        self.head.start()
        ready = time.monotonic() - began
        for fleet in self.fleets:
            fleet.start("rejoin")
        for fleet in self.fleets:
            fleet.finish()
        return {
            "ready_s": ready,
            "all_back_s": time.monotonic() - began,
            "head_cpu_s": self.head_cpu(),
            "head_rss_mb": self.head_rss(),
        }

    def make(self, what: str, count: int, **arguments: Any) -> dict[str, Any]:
        """So many actors or groups at once, until all are there."""
        with self.watch() as watched:
            self.fleets[0].tell(what, count=count, **arguments)
        return {
            "count": count,
            "seconds": watched["seconds"],
            "head_cpu_us_each": 1e6 * watched["head_cpu_s"] / count,
            "head_rss_mb": self.head_rss(),
        }


def measure(nodes: int, actors: int, groups: int, seconds: float, processes: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = {"nodes": nodes}
    with BigCluster(nodes, processes) as cluster:
        found["join"] = {**cluster.joined, "head_rss_mb": cluster.head_rss()}
        found["idle"] = cluster.idle(seconds, 0.0)
        found["changing 10 %"] = cluster.idle(seconds, 0.1)
        found["one actor"] = cluster.fleets[0].tell("actors_in_turn", count=min(200, actors), cpu=0.01)
        found["actors"] = cluster.make("actors", actors, cpu=0.01)
        found["restartable actors"] = cluster.make("actors", max(1, actors // 10), cpu=0.01, max_restarts=1)
        found["groups PACK"] = cluster.make("groups", groups // 2, bundles=2, cpu=0.01, strategy="PACK")
        found["groups SPREAD"] = cluster.make("groups", groups // 2, bundles=4, cpu=0.01, strategy="SPREAD")
        found["changing 10 %, all there"] = cluster.idle(seconds, 0.1)
        cluster.fleets[0].tell("more", actors=2 * nodes, groups=50, cpu=FAKE_CPUS)
        found["changing 10 %, many wait"] = cluster.idle(seconds, 0.1)
        found["restart of the head"] = cluster.restart()
        found["changing 10 %, after the restart"] = cluster.idle(seconds, 0.1)
        with cluster.watch() as watched:
            ended = cluster.fleets[0].tell("end")
        found["end all"] = {**ended, **watched, "head_rss_mb": cluster.head_rss()}
    return found


# ---------------------------------------------------------------- decisions alone


class _Api:
    """A node in this process that takes everything, and reports at once that it has as much as before."""

    def __init__(self, table: NodeTable, number: int) -> None:
        self._table = table
        self._number = number

    def host_actor(self, message: c.HostActor, payload: bytes) -> None:
        self._table.heard(self._table.records[self._number], _EMPTY)

    def reserve_group(self, message: c.ReserveGroup) -> None:
        self._table.heard(self._table.records[self._number], _EMPTY)

    def nodes(self, frame: bytes, message: c.Nodes, entries: list[c.NodeEntry]) -> None:
        pass


def decisions(count: int, repeats: int = 300) -> dict[str, float]:
    """Microseconds of CPU time: the head's own code with so many nodes, from a request to the message to a node."""
    return asyncio.run(_decisions(count, repeats))


async def _decisions(count: int, repeats: int) -> dict[str, float]:
    storage = MemoryStorage()
    await storage.open()
    table = NodeTable(storage, on_alive=lambda r: None, on_dead=lambda r: None, on_room=lambda: None)
    groups = GroupPlacement(table)
    places = ActorPlacement(table, group_nodes=groups.nodes_of, job_config=lambda job: None)
    actors = ActorTable(storage, lambda prefix, message, payload: None)
    actors.host, places.table = places, actors
    for number in range(1, count + 1):
        table.joined(await table.register(_register(number), _Api(table, number)))  # type: ignore[arg-type]
    seq = iter(range(1, 1 << 30))
    prefix = ids.new_prefix(1)

    def actor(amounts: dict[str, int], where: m.Place = m.ANYWHERE) -> None:
        spec = m.ActorSpec(ids.actor_id(prefix, next(seq)), "A", b"", 0, {}, amounts, amounts, where=where)
        actors.create(prefix, spec, b"")

    def group(size: int, strategy: str, amount: float = 0.01) -> None:
        bundle = {"CPU": int(amount * UNIT)}
        groups.reserve_group(
            ids.group_id(prefix, next(seq)), [bundle] * size, strategy, "", lambda n: None, lambda r: None, lambda: None
        )

    one = {"CPU": UNIT // 100}
    zone = labels.encode([("zone", labels.IN, ("z3", "z4"))])
    found = {
        "actor": _cpu(lambda: actor(one), repeats),
        "actor, SPREAD": _cpu(lambda: actor(one, m.Place(spread=True)), repeats),
        "actor, labels": _cpu(lambda: actor(one, m.Place(labels=zone)), repeats),
        "group of 2, PACK": _cpu(lambda: group(2, "PACK"), repeats // 10),
        "group of 4, SPREAD": _cpu(lambda: group(4, "SPREAD"), repeats // 10),
        "group of 8, STRICT_SPREAD": _cpu(lambda: group(8, "STRICT_SPREAD"), repeats // 10),
        "group of 4, STRICT_PACK": _cpu(lambda: group(4, "STRICT_PACK"), repeats // 10),
    }
    first = next(iter(table.records.values()))
    report = c.Report(1, available={"CPU": 5 * UNIT})
    other = c.Report(1, available={"CPU": 6 * UNIT})
    turn = iter(range(1 << 30))
    found["report with a change"] = _cpu(lambda: table.heard(first, other if next(turn) % 2 else report), repeats)
    await table.stop()
    return found


def _register(number: int) -> c.Register:
    id_ = f"{number:028x}"
    total = {"CPU": FAKE_CPUS * UNIT, "memory": 64 * UNIT}
    return c.Register(
        version=1, noded="", python="", cluster="", cluster_id="", number=number, node_id=id_, epoch=1,
        name=f"n{number}", address=f"10.0.0.1:{number}", node_ip="10.0.0.1", hostname="h", run_dir="", pid=1,
        total=total, available=dict(total), labels={"zone": f"z{number % 10}"},
    )  # fmt: skip


def policies(count: int, repeats: int = 200) -> dict[str, float]:
    """Microseconds of CPU time of the pure functions."""
    rng = random.Random(1)
    views = [
        NodeView(
            f"{i:028x}", {"CPU": rng.randrange(4, 17) * UNIT}, {"CPU": 16 * UNIT}, {"zone": f"z{i % 10}"}
        )
        for i in range(count)
    ]  # fmt: skip
    cluster = scheduling.Cluster(views)
    ask, never = {"CPU": UNIT}, {"CPU": 99 * UNIT}
    local = views[0].id
    turn = iter(range(1 << 30))

    def pick(amounts: dict[str, int], place: m.Place = m.ANYWHERE) -> None:
        cluster.pick(amounts, place, local=local, rng=rng)

    def update() -> None:
        view = views[next(turn) % count]
        cluster.update(NodeView(view.id, {"CPU": rng.randrange(4, 17) * UNIT}, view.total, view.labels))

    def assign(size: int, strategy: str, amount: float = 1) -> None:
        bundles.assign([{"CPU": int(amount * UNIT)}] * size, views, strategy)

    few = max(3, repeats // 20)
    return {
        "Cluster.pick": _cpu(lambda: pick(ask), repeats),
        "Cluster.pick, 15 CPUs (few have them)": _cpu(lambda: pick({"CPU": 15 * UNIT}), repeats),
        "Cluster.pick, SPREAD": _cpu(lambda: pick(ask, m.Place(spread=True)), repeats),
        "Cluster.pick, never": _cpu(lambda: pick(never), repeats),
        "Cluster.update": _cpu(update, repeats),
        "assign 2, PACK": _cpu(lambda: assign(2, "PACK"), few),
        "assign 4 x 10 CPUs, PACK (on several)": _cpu(lambda: assign(4, "PACK", 10), few),
        "assign 4, SPREAD": _cpu(lambda: assign(4, "SPREAD"), few),
        "assign 100, SPREAD": _cpu(lambda: assign(100, "SPREAD"), few),
        "assign 100, STRICT_SPREAD": _cpu(lambda: assign(100, "STRICT_SPREAD"), few),
        "assign 4, STRICT_PACK": _cpu(lambda: assign(4, "STRICT_PACK"), few),
        "assign 2 x 99 CPUs (never)": _cpu(lambda: assign(2, "PACK", 99), few),
    }


def _cpu(step: Callable[[], object], repeats: int) -> float:
    """Microseconds a step: the best of three, as others may have the caches meanwhile."""
    step()  # an index is made when it is first asked for
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        for _ in range(repeats):
            step()
        best = min(best, (time.thread_time() - began) / repeats)
    return 1e6 * best


# ---------------------------------------------------------------- by hand


def main() -> None:
    parser = argparse.ArgumentParser(description="One head and many fake nodes.")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--actors", type=int, default=10_000)
    parser.add_argument("--groups", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10, help="for each of the idle measurements")
    parser.add_argument("--processes", type=int, default=2, help="fleets of fakes")
    parser.add_argument("--policy", action="store_true", help="the decisions alone")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.policy:
        found: dict[str, Any] = {f"policy, {n} nodes (us)": policies(n) for n in (1000, 10_000)}
        found |= {f"head, {n} nodes (us)": decisions(n) for n in (1000, 10_000)}
    else:
        found = measure(args.nodes, args.actors, args.groups, args.seconds, args.processes)
        found[f"head's decisions, {args.nodes} nodes (us)"] = decisions(args.nodes)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_text(each)}" for name, each in value.items()) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
