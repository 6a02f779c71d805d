"""Real hosts for tests: network namespaces with addresses of their own, plugged into a bridge.

    with Lan() as lan:
        a, b = lan.host("a"), lan.host("b")

What is done to a host is done to its plug (the bridge's side), so the host's own kernel sees what it would see of a
bad cable, switch or firewall: packets that are lost, never an error from a send. `reject` alone acts in the host, as
its own firewall. `delay` is a relay of ours (delay.py), as not every kernel has netem.

A host has NODED_RUN_DIR and NODED_HOME of its own, all of a Lan have the same token. Unix sockets are in the file
system and work from everywhere; the test itself reaches no host by TCP. Namespaces are entered with nsenter, because
`ip netns exec` mounts another /sys, and what is started would not find its control group.

Nothing is left: all names carry the pid and start of the process that made them, and `sweep` ends those of the dead.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from harness import delay
from harness.drivers import Driver
from harness.wait import wait_for
from noded.config import process_state

NAMESPACES = Path("/run/netns")
COMMANDS = ("ip", "tc", "ss", "nft", "nsenter")
Direction = Literal["in", "out"]

_NAME = re.compile(r"ndt-(\d+)-(\d+)-")
_numbers = itertools.count(1)


@functools.cache
def available() -> str:
    """Why there can be no hosts here; "" when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [command for command in COMMANDS if shutil.which(command) is None]:
        return f"not installed: {', '.join(missing)}"
    probe = f"{_prefix()}-probe"
    try:
        sweep()
        _run("ip", "netns", "add", probe)
        try:
            _batch(probe, "link add br0 type bridge", "link add p0 type veth peer name e0")
            _run(*_tbf("replace", probe, "p0", 100))
            _run(*_inside(probe, ["nft", "-f", "-"]), input=_rejects([None]))
            _run(*_inside(probe, ["nft", "-f", "-"]), input=_faults(["numgen random mod 2 < 1 drop"]))
        finally:
            _run("ip", "netns", "del", probe)
    except CommandError as error:
        return f"network namespaces do not work here: {error}"
    return ""


class CommandError(Exception):
    """A command that makes or changes a host did not work."""


class Lan:
    """A bridge in a namespace of its own, and the hosts plugged into it."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.namespace = f"{_prefix()}-{self.number}"
        self.hosts: dict[str, Host] = {}
        self.token = secrets.token_hex(32)
        # Nobody else sees the addresses; different ones tell Lans apart in logs.
        self.net = (os.getpid() + self.number) % 254 + 1
        self.dir = Path()
        self.processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Lan:
        sweep()
        # Below the session's own directory processes are known as the session's (see leaks.py).
        session = os.environ.get("NODED_RUN_DIR")
        self.dir = Path(tempfile.mkdtemp(prefix="l", dir=Path(session).parent if session else "/tmp"))
        try:
            _run("ip", "netns", "add", self.namespace)
            # Else the bridge would speak IPv6 itself.
            off = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
            _run(*_inside(self.namespace, ["sh", "-c", f"if [ -e /proc/sys/net/ipv6 ]; then {off}; fi"]))
            self.add_bridge("br0")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything that runs in the hosts, then the hosts."""
        names = [host.namespace for host in self.hosts.values()] + [self.namespace]
        try:
            for host in self.hosts.values():
                host.end_relay()
            _end_processes(names)
            for process in self.processes:
                process.wait(10)
        finally:
            for name in names:
                _delete(name)
            shutil.rmtree(self.dir, ignore_errors=True)
            self.hosts.clear()

    def host(self, name: str) -> Host:
        """The host of this name, a new one at the first time."""
        if name not in self.hosts:
            assert re.fullmatch(r"[a-z0-9-]{1,16}", name), f"no name for a host: {name!r}"
            host = Host(self, name, len(self.hosts) + 1)
            self.hosts[name] = host  # first, so that close() ends what was made of it
            host.make()
        return self.hosts[name]

    def add_bridge(self, name: str) -> None:
        self.batch(f"link add {name} type bridge forward_delay 0 mcast_snooping 0", f"link set {name} up")

    def batch(self, *lines: str) -> None:
        _batch(self.namespace, *lines)

    def set_faults(self) -> None:
        """Put the packet filter into the state that the hosts want, at once."""
        rules = [rule for host in self.hosts.values() for rule in host.rules()]
        _run(*_inside(self.namespace, ["nft", "-f", "-"]), input=_faults(rules))


@dataclass(eq=False)
class Host:
    """`ip` and `ip6` are its addresses; `env` is what its programs get besides os.environ."""

    lan: Lan
    name: str
    number: int
    ip: str = ""
    ip6: str = ""
    mac: str = ""
    namespace: str = ""
    env: dict[str, str] = field(default_factory=dict)
    connected: bool = True
    _blocks: set[tuple[Direction, str]] = field(default_factory=set)  # the peer's mac; "" is everybody
    _rejects: list[Host | None] = field(default_factory=list)
    _loss: float = 0
    _rate: float | None = None
    _relay: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        net, number = self.lan.net, self.number
        self.ip = f"10.77.{net}.{number + 1}"
        self.ip6 = f"fd00:77:{net:x}::{number + 1:x}"
        self.mac = f"02:4e:44:{net:02x}:00:{number + 1:02x}"
        self.namespace = f"{self.lan.namespace}-{self.name}"
        self.env = {"NODED_RUN_DIR": f"{self.dir}/run", "NODED_HOME": f"{self.dir}/home"}
        Path(self.env["NODED_HOME"]).mkdir(mode=0o700, parents=True)
        token = Path(self.env["NODED_HOME"], "token")
        token.touch(0o600)
        token.write_text(self.lan.token + "\n")
        _run("ip", "netns", "add", self.namespace)
        self.lan.batch(
            f"link add {self._plug} type veth peer name eth0 address {self.mac} netns {self.namespace}",
            f"link set {self._plug} master br0 up",
        )
        _batch(
            self.namespace,
            "link set lo up",
            "link set eth0 up",
            f"addr add {self.ip}/24 dev eth0",
            f"addr add {self.ip6}/64 dev eth0 nodad",
        )

    @property
    def dir(self) -> Path:
        return self.lan.dir / self.name

    @property
    def reachable(self) -> bool:
        """Whether all that was done to it lets packets pass both ways (some, where they are lost)."""
        return self.connected and not self._blocks and not self._rejects

    # Programs.

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` here, as the same process."""
        return _inside(self.namespace, argv)

    def popen(self, argv: Sequence[str], env: Mapping[str, str] | None = None, **kw: Any) -> subprocess.Popen[Any]:
        """Whoever still runs when the Lan ends is killed and waited for; pipes are the caller's to close."""
        process = subprocess.Popen(self.command(argv), env={**os.environ, **self.env, **(env or {})}, **kw)
        self.lan.processes.append(process)
        return process

    def run(
        self, argv: Sequence[str], timeout: float = 30, env: Mapping[str, str] | None = None, **kw: Any
    ) -> subprocess.CompletedProcess[str]:
        """Its output is kept, as text."""
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": timeout, **kw}
        return subprocess.run(self.command(argv), env={**os.environ, **self.env, **(env or {})}, **options)

    def python(self, source: str, *arguments: str, timeout: float = 30) -> str:
        """What a small program prints; it must end well."""
        done = self.run([sys.executable, "-c", textwrap.dedent(source), *arguments], timeout)
        assert done.returncode == 0, f"the program on {self.name} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout

    def driver(
        self, source: str, *arguments: str, address: str = "auto", env: Mapping[str, str] | None = None
    ) -> HostDriver:
        return HostDriver(self, address, source, *arguments, env=env)

    def listening_ports(self) -> set[int]:
        """TCP ports, on whichever address."""
        lines = _run(*self.command(["ss", "-Hltn"])).splitlines()
        return {int(line.split()[3].rpartition(":")[2]) for line in lines}

    # Faults.

    def cut(self) -> None:
        """Pull the cable: nothing passes, and nobody is told."""
        self.lan.batch(f"link set {self._plug} down")
        self.connected = False

    def join(self) -> None:
        self.lan.batch(f"link set {self._plug} up")
        self.connected = True

    def block(self, direction: Direction, peer: Host | None = None) -> None:
        """Drop what comes in or goes out, all of it or that of one peer. Finding each other (ARP) still works."""
        assert direction in ("in", "out")
        self._blocks.add((direction, peer.mac if peer else ""))
        self.lan.set_faults()

    def reject(self, peer: Host | None = None) -> None:
        """Answer TCP from and to the peer (or everybody) with a reset, to both sides."""
        self._rejects.append(peer)
        self._set_rejects()

    def unblock(self) -> None:
        """No block and no reject any more."""
        self._blocks.clear()
        self.lan.set_faults()
        if self._rejects:
            self._rejects.clear()
            self._set_rejects()

    def lose(self, fraction: float) -> None:
        """Drop this part of the packets, in each direction."""
        assert 0 <= fraction <= 1
        self._loss = fraction
        self.lan.set_faults()

    def rate(self, mbit: float | None) -> None:
        """At most so much in each direction; None: as fast as it goes."""
        for namespace, device in ((self.namespace, "eth0"), (self.lan.namespace, self._plug)):
            if mbit is not None:
                _run(*_tbf("replace", namespace, device, mbit))
            elif self._rate is not None:
                _run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")
        self._rate = mbit

    def delay(self, ms: float | None) -> None:
        """Each packet from and to this host comes so much later (a round trip takes twice that); None: at once."""
        self.end_relay()
        if not ms:
            return
        inner, outer, bridge = f"inner{self.number}", f"outer{self.number}", f"delay{self.number}"
        self._relay = delay.start(self.lan.namespace, inner, outer, ms / 1000)
        self.lan.add_bridge(bridge)
        self.lan.batch(
            f"link set {inner} master {bridge} up",
            f"link set {outer} master br0 up",
            f"link set {self._plug} master {bridge}",
        )

    def end_relay(self) -> None:
        if self._relay is not None:
            with suppress(CommandError):
                self.lan.batch(f"link set {self._plug} master br0", f"link del delay{self.number}")
            delay.end(self._relay)
            self._relay = None

    def rules(self) -> list[str]:
        """Of the bridge: hosts are told apart by their Ethernet addresses."""
        found = []
        for direction, peer in sorted(self._blocks):
            mine, other = ("daddr", "saddr") if direction == "in" else ("saddr", "daddr")
            found.append(f"ether {mine} {self.mac} " + (f"ether {other} {peer} " if peer else "") + "drop")
        if self._loss:
            lost = f"numgen random mod 100000 < {round(self._loss * 100000)} drop"
            found += [f"ether {side} {self.mac} {lost}" for side in ("saddr", "daddr")]
        return found

    @property
    def _plug(self) -> str:
        return f"p{self.number}"

    def _set_rejects(self) -> None:
        _run(*self.command(["nft", "-f", "-"]), input=_rejects(self._rejects))


class HostDriver(Driver):
    """A driver that runs on a host."""

    def __init__(
        self, host: Host, address: str, source: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(address, source, *arguments, env={**host.env, **(env or {})}, inside=host.command([]))


def sweep() -> None:
    """End what dead test processes left: programs in their namespaces, and these."""
    if not NAMESPACES.is_dir():
        return
    dead = []
    for name in os.listdir(NAMESPACES):
        if found := _NAME.match(name):
            state = process_state(int(found[1]))
            if state is None or state[1] != int(found[2]):
                dead.append(name)
    if dead:
        _end_processes(dead)
        for name in dead:
            _delete(name)


def _prefix() -> str:
    state = process_state(os.getpid())
    assert state is not None
    return f"ndt-{os.getpid()}-{state[1]}"


def _end_processes(names: Iterable[str]) -> None:
    inodes = set()
    for name in names:
        with suppress(FileNotFoundError):
            found = os.stat(NAMESPACES / name)
            inodes.add((found.st_dev, found.st_ino))

    def left() -> list[int]:
        found = _processes_in(inodes)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    wait_for(lambda: not left(), lambda: f"SIGKILL did not end {left()}")


def _processes_in(inodes: set[tuple[int, int]]) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):  # gone by now; one that has ended is in no namespace
                of = os.stat(f"/proc/{entry}/ns/net")
                if (of.st_dev, of.st_ino) in inodes:
                    found.append(int(entry))
    return found


def _delete(name: str) -> None:
    deadline = time.monotonic() + 5
    while (NAMESPACES / name).exists():
        try:
            _run("ip", "netns", "del", name)
        except CommandError:  # another process sweeps as well
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _inside(namespace: str, argv: Sequence[str]) -> list[str]:
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--", *argv]


def _batch(namespace: str, *lines: str) -> None:
    _run("ip", "-n", namespace, "-batch", "-", input="\n".join(lines) + "\n")


def _run(*argv: str, input: str = "") -> str:
    done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=20)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[0]
        raise CommandError(f"`{' '.join(argv)}` ended with {done.returncode}: {said}")
    return done.stdout


def _tbf(verb: str, namespace: str, device: str, mbit: float) -> list[str]:
    burst = max(16_000, int(mbit * 1e6 / 8 / 200))  # what 5 ms bring, and a few packets at least
    shape = ["rate", f"{int(mbit * 1e6)}bit", "burst", str(burst), "latency", "50ms"]
    return ["tc", "-n", namespace, "qdisc", verb, "dev", device, "root", "tbf", *shape]


def _faults(rules: Iterable[str]) -> str:
    """A frame to a host with a relay passes two bridges; that of the relay does not count."""
    return _table(
        "bridge",
        [
            "type filter hook forward priority 0",
            'iifname "inner*" accept',
            'oifname "inner*" accept',
            "ether type arp accept",
            "ether type ip6 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
            *rules,
        ],
    )


def _rejects(peers: Iterable[Host | None]) -> str:
    """A reset itself must pass, else the other side would never hear of it."""
    reset = "tcp flags & rst == 0 reject with tcp reset"
    inwards, outwards = [], []
    for peer in peers:
        inwards += [f"ip saddr {peer.ip} {reset}", f"ip6 saddr {peer.ip6} {reset}"] if peer else [reset]
        outwards += [f"ip daddr {peer.ip} {reset}", f"ip6 daddr {peer.ip6} {reset}"] if peer else [reset]
    return _table(
        "inet",
        ["type filter hook input priority 0", 'iifname "lo" accept', *inwards],
        ["type filter hook output priority 0", 'oifname "lo" accept', *outwards],
    )


def _table(family: str, *chains: list[str]) -> str:
    body = "".join(f"chain c{number} {{ {'; '.join(chain)}; }}\n" for number, chain in enumerate(chains))
    return f"table {family} faults {{}}\ndelete table {family} faults\ntable {family} faults {{\n{body}}}\n"
