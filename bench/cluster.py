"""Work between nodes, each in a network namespace of its own (tests/harness/netns.py); needs root, ip, tc, nft.

    python bench/cluster.py                               all rows, noded and Ray (where it runs on a row), three rounds
    python bench/cluster.py --only gigabyte --rounds 1 --systems noded

Rows, see README.md: `gigabyte` (1 GB from one node to another, beside a plain socket between the same namespaces),
`round trip` (an empty task there and here) and `broadcast` (256 MB to eight nodes behind 1 Gbit/s links). A system is
started anew for each row and round; systems, and the plain socket, take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "tests"))

from harness.members import Members
from harness.netns import Host, Lan, available

ROOT = Path(__file__).resolve().parents[1]
RAY_PYTHON = ROOT / ".venv-ray" / "bin" / "python"
RAY_PORT = 6379
GIGABYTE = 1_000_000_000
BIG_STORE = 2_500_000_000
BROADCAST = 256_000_000
SMALL_STORE = 600_000_000
RECEIVERS = 8
MBIT = 1000

# The driver, the same for both systems: it runs on the first host and prints what it has measured.
DRIVER = """
import importlib, json, sys, time
import numpy as np
system, options, row, sizes = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
api = importlib.import_module(system)
strategies = importlib.import_module(system + ".util.scheduling_strategies")
api.init(log_to_driver=False, **options)
deadline = time.monotonic() + 60
while len(found := [n for n in api.nodes() if n["Alive"]]) < sizes["nodes"]:
    assert time.monotonic() < deadline, f"there are {len(found)} nodes only"
    time.sleep(0.1)
ips = {n["NodeManagerAddress"]: n["NodeID"] for n in found}
here = ips.pop(sizes["here"])
there = [ips[ip] for ip in sorted(ips, key=lambda ip: int(ip.rpartition(".")[2]))]

def on(node):
    return {"scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node, soft=False)}

class Holder:
    def make(self, size):
        return [api.put(np.ones(size, np.uint8))]

def gigabyte():
    holder = api.remote(num_cpus=0)(Holder).options(**on(there[0])).remote()
    rates = []
    for _ in range(sizes["repeats"]):
        [ref] = api.get(holder.make.remote(sizes["bytes"]))
        began = time.perf_counter()
        value = api.get(ref)
        rates.append(sizes["bytes"] / (time.perf_counter() - began) / 1e9)
        assert value.nbytes == sizes["bytes"] and value[-1] == 1
        del value, ref
        time.sleep(0.5)
    return {"GB/s": rates}

def round_trip():
    def empty():
        return b"ok"
    task = api.remote(empty)
    def sync(node, seconds):
        chosen = task.options(**on(node))
        for _ in range(200):
            api.get(chosen.remote())
        times, until = [], time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            api.get(chosen.remote())
            times.append(time.perf_counter() - began)
        return times
    local, remote = [], []
    for _ in range(sizes["repeats"]):
        local.append(1e6 * float(np.median(sync(here, 1.0))))
        remote.append(1e6 * float(np.median(sync(there[0], 1.0))))
    return {"local us": local, "remote us": remote}

def broadcast():
    def size(value):
        return value.nbytes
    task = api.remote(num_cpus=0)(size)
    on_each = [task.options(**on(node)) for node in there]
    small = np.ones(10, np.uint8)
    api.get([each.remote(small) for each in on_each])
    one, all_ = [], []
    for index in range(sizes["repeats"]):
        for receivers, times in (([on_each[index % len(on_each)]], one), (on_each, all_)):
            ref = api.put(np.ones(sizes["bytes"], np.uint8))
            began = time.perf_counter()
            assert set(api.get([each.remote(ref) for each in receivers])) == {sizes["bytes"]}
            times.append(time.perf_counter() - began)
            del ref
            time.sleep(1.0)
    return {"one s": one, "all s": all_}

print(json.dumps({"gigabyte": gigabyte, "round trip": round_trip, "broadcast": broadcast}[row]()), flush=True)
api.shutdown()
"""

_RECEIVE = """
import socket, sys, time
size = int(sys.argv[2])
buffer = bytearray(b"x") * size
server = socket.create_server((sys.argv[1], 7777))
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    sock, _ = server.accept()
    view, at = memoryview(buffer), 0
    began = time.perf_counter()
    while at < size:
        at += sock.recv_into(view[at:])
    sock.sendall(b"y")
    print(size / (time.perf_counter() - began) / 1e9, flush=True)
    sock.close()
"""

_SEND = """
import socket, sys
data = memoryview(bytearray(b"x") * int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    sock = socket.create_connection((sys.argv[1], 7777))
    sock.sendall(data)
    sock.recv(1)
    sock.close()
"""


def plain_socket(sender: Host, receiver: Host, size: int, repeats: int) -> list[float]:
    """GB/s of memory that is there already, from one to the other."""
    arguments = [receiver.ip, str(size), str(repeats)]
    server = receiver.popen([sys.executable, "-c", _RECEIVE, *arguments], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        server.stdout.readline()
        sender.run([sys.executable, "-c", _SEND, *arguments], timeout=120)
        return [float(line) for line in server.stdout]


# ---------------------------------------------------------------- the systems, started


@contextmanager
def started(system: str, hosts: list[Host], store: int) -> Iterator[tuple[list[str], dict[str, Any], dict[str, str]]]:
    """A head on the first of the hosts, a node on each of the others: the driver's Python, options and environment."""
    if system == "noded":
        with Members("--object-store-memory", str(store), host=hosts[0], num_cpus=1) as members:
            for host in hosts[1:]:
                members.add(host=host, num_cpus=1)
            yield [sys.executable], {"address": "auto"}, {"PYTHONPATH": str(ROOT)}
        return
    ray = str(RAY_PYTHON.with_name("ray"))
    with ExitStack() as stack:
        temporary = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="nb-", dir="/tmp", ignore_cleanup_errors=True)
        )
        env = {
            "RAY_TMPDIR": temporary,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        flags = ["--num-cpus", "1", "--object-store-memory", str(store), "--block"]
        address = f"{hosts[0].ip}:{RAY_PORT}"
        log = stack.enter_context(open(Path(temporary) / "ray-start.log", "wb"))
        running: list[subprocess.Popen[Any]] = []
        for host in hosts:
            role = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false", f"--temp-dir={temporary}"]
            role = role if host is hosts[0] else [f"--address={address}"]
            command = [ray, "start", *role, f"--node-ip-address={host.ip}", *flags]
            running.append(host.popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
            if host is hosts[0]:
                _wait_for_port(host, RAY_PORT)
        try:
            yield [str(RAY_PYTHON)], {"address": address, "_node_ip_address": hosts[0].ip}, env
        finally:
            for process in reversed(running):
                process.terminate()
            for process in running:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def _wait_for_port(host: Host, port: int) -> None:
    deadline = time.monotonic() + 60
    while port not in host.listening_ports():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing listens on port {port} of {host.name}")
        time.sleep(0.1)
    time.sleep(2)


def drive(system: str, row: str, hosts: list[Host], store: int, sizes: dict[str, Any]) -> dict[str, list[float]]:
    with started(system, hosts, store) as (python, options, env):
        sizes = {**sizes, "nodes": len(hosts), "here": hosts[0].ip}
        arguments = [system, json.dumps(options), row, json.dumps(sizes)]
        done = hosts[0].run([*python, "-c", DRIVER, *arguments], timeout=240, env=env)
        if done.returncode:
            raise RuntimeError(f"{system}: the driver ended with {done.returncode}:\n{done.stderr[-3000:]}")
        found: dict[str, list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


# ---------------------------------------------------------------- rows


def gigabyte(systems: list[str], rounds: int) -> dict[str, Any]:
    """GB/s by system, and of the plain socket."""
    rates: dict[str, list[float]] = {"socket": [], **{system: [] for system in systems}}
    for _ in range(rounds):
        for system in systems:
            with Lan() as lan:
                hosts = [lan.host("a"), lan.host("b")]
                rates["socket"] += plain_socket(hosts[1], hosts[0], GIGABYTE, 3)
                sizes = {"bytes": GIGABYTE, "repeats": 8}
                rates[system] += drive(system, "gigabyte", hosts, BIG_STORE, sizes)["GB/s"]
                rates["socket"] += plain_socket(hosts[1], hosts[0], GIGABYTE, 3)
    found: dict[str, Any] = {f"{name} GB/s": _best(each, max) for name, each in rates.items()}
    for system in systems:
        found[f"{system}, part of the socket's best"] = max(rates[system]) / max(rates["socket"])
    return found


def round_trip(systems: list[str], rounds: int) -> dict[str, Any]:
    """Microseconds of an empty task, one after the other: on the driver's node and on another."""
    found: dict[str, Any] = {}
    for system in systems:
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            with Lan() as lan:
                hosts = [lan.host("a"), lan.host("b")]
                for name, each in drive(system, "round trip", hosts, SMALL_STORE, {"repeats": 3}).items():
                    times.setdefault(name, []).extend(each)
        found |= {f"{system} {name}": _best(each, min) for name, each in times.items()}
        found[f"{system} remote : local"] = min(times["remote us"]) / min(times["local us"])
    return found


def broadcast(systems: list[str], rounds: int) -> dict[str, Any]:
    """Seconds until one, and until eight nodes have it."""
    found: dict[str, Any] = {"one at line rate s": BROADCAST * 8 / MBIT / 1e6}
    for system in systems:
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            with Lan() as lan:
                hosts = [lan.host(f"h{index}") for index in range(RECEIVERS + 1)]
                for host in hosts:
                    host.rate(MBIT)
                sizes = {"bytes": BROADCAST, "repeats": 2}
                for name, each in drive(system, "broadcast", hosts, SMALL_STORE, sizes).items():
                    times.setdefault(name, []).extend(each)
        found |= {f"{system} {name}": _best(each, min) for name, each in times.items()}
        found[f"{system} all : one"] = min(times["all s"]) / min(times["one s"])
    return found


ROWS = {"gigabyte": (gigabyte, ["noded", "ray"]), "round trip": (round_trip, ["noded", "ray"]),
        "broadcast": (broadcast, ["noded"])}  # fmt: skip
"""Nine nodes of Ray are more than a small machine carries: name it with --systems to try."""


def _best(values: list[float], best: Any) -> dict[str, Any]:
    return {"best": best(values), "median": statistics.median(values), "all": values}


def main() -> int:
    parser = argparse.ArgumentParser(description="Work between nodes in network namespaces.")
    parser.add_argument("--only", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--systems", default="", help="noded, ray")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if reason := available():
        sys.exit(f"bench/cluster.py: {reason}")
    for name in args.only.split(","):
        run, systems = ROWS[name.strip()]
        chosen = [each.strip() for each in args.systems.split(",") if each.strip()] or systems
        if "ray" in chosen and not RAY_PYTHON.exists():
            print("there is no .venv-ray: bench/setup_ray.sh makes it", file=sys.stderr)
            chosen = [each for each in chosen if each != "ray"]
        found = run(chosen, args.rounds)
        if args.json:
            print(json.dumps({"row": name, "load": os.getloadavg()[0], **found}), flush=True)
            continue
        print(f"{name} (load {os.getloadavg()[0]:.1f})")
        for what, value in found.items():
            if isinstance(value, dict):
                samples = " ".join(f"{each:.4g}" for each in value["all"])
                print(f"  {what}: best {value['best']:.4g}, median {value['median']:.4g}  ({samples})", flush=True)
            else:
                print(f"  {what}: {value:.4g}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
