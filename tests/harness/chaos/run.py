"""One long run: a cluster of four hosts, its drivers, a schedule of faults, the judge, and the end in order.

    outcome = run(Settings(seed=1, seconds=120))
    assert not outcome.violations, outcome.story

A failure leaves its directory: the schedule, what was done when (`log`), all files of the drivers, the daemons' output,
the nodes' logs. Without one nothing is left.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.chaos import schedule
from harness.chaos.faults import Faults
from harness.chaos.judge import Judge
from harness.chaos.promises import PATIENCE, calm_seconds
from harness.chaos.schedule import VISIT_KILLED, Fault
from harness.cluster import noded_command
from harness.invariants import figures, settled
from harness.members import Member, Members
from harness.netns import Host, HostDriver, Lan
from harness.redis import Server
from harness.wait import wait_for

NODES = ("head", "n1", "n2", "n3")
RESIDENTS = {
    "near": ("head", ("Owner", "Tasks", "Once", "Plain", "Retried", "Objects")),
    "far": ("n1", ("Tasks", "Once", "Counter", "Retried", "Detached", "Objects", "Groups")),
}
"""Drivers that stay, in the order in which they come: where they are, and what they do."""
GUESTS = ("Tasks", "Once", "Plain", "Detached", "Objects", "Groups")
DRIVER = """
from harness.chaos import work
work.main(say, hear)
"""
NO_DAEMON = ("no noded daemon answers", "no cluster of this user runs on this host")
TESTS = Path(__file__).resolve().parents[2]
STALL = 180
"""Seconds: so long the machine may stand still (a virtual one that is paused); no promise is about that."""
QUIESCE = schedule.RECOVERY + PATIENCE + STALL
"""Seconds: what is under way at the end of the faults is over by then, also on a busy machine."""


@dataclass(frozen=True)
class Settings:
    """`faults`: a file of schedule.write, to repeat that one; else the seed makes one."""

    seed: int
    seconds: float
    storage: str = "sqlite"
    faults: Path | None = None
    kinds: str = ""
    """Only faults of kinds that match this pattern, to find out which one matters."""
    spared: tuple[str, ...] = ()
    """Nodes that do not crash as wholes, as those of the drivers that stay ("head", "n1")."""
    flags: tuple[str, ...] = ()

    @property
    def chosen(self) -> str:
        """What else than the seed has chosen the faults; "" when nothing has, and the seed alone repeats them."""
        chosen = ["a schedule of its own"] if self.faults is not None else []
        chosen += [f"only {self.kinds}"] if self.kinds else []
        chosen += [f"no crash of {', '.join(self.spared)}"] if self.spared else []
        return "; ".join(chosen)


@dataclass
class Outcome:
    seed: int
    seconds: float
    storage: str
    chosen: str
    operations: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    story: str = ""

    def line(self) -> dict[str, Any]:
        """For a file of results."""
        told = asdict(self)
        del told["story"]
        return told


class Run:
    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings, self.directory = settings, directory
        self.outcome = Outcome(settings.seed, settings.seconds, settings.storage, settings.chosen)
        self._drivers: dict[str, HostDriver] = {}

    def go(self) -> Outcome:
        for name in ("calls", "instances"):
            (self.directory / name).mkdir()
        (self.directory / "log").touch()
        plan = self._plan()
        schedule.write(self.directory / "schedule", plan)
        with ExitStack() as stack:
            self.lan = stack.enter_context(Lan())
            host = self.lan.host("head")
            self.redis: Server | None = None
            if self.settings.storage == "redis":
                self.redis = stack.enter_context(Server(self.directory / "redis", inside=host.command([])))
            self.cluster = stack.enter_context(self._members(host))
            for name in NODES[1:]:
                self.cluster.add(name=name, host=self.lan.host(name), env={"CHAOS_NODE": name})
            try:
                self._under_load(plan)
                if not self.outcome.violations:
                    self._stop_all()
            except BaseException:
                self.outcome.violations.append(traceback.format_exc())
            if self.outcome.violations:
                self.outcome.story = self._story()
        return self.outcome

    def _plan(self) -> list[Fault]:
        if self.settings.faults is not None:
            plan = schedule.read(self.settings.faults)
        else:
            redis = self.settings.storage == "redis"
            plan = schedule.plan(self.settings.seed, self.settings.seconds, NODES, redis=redis)
        return [
            fault
            for fault in plan
            if re.fullmatch(self.settings.kinds or ".*", fault.kind)
            and not (fault.kind in schedule.LOSES_A_NODE and fault.node in self.settings.spared)
        ]

    def _members(self, host: Host) -> Members:
        redis = ("--redis", self.redis.url) if self.redis is not None else ()
        # No daemon is away for long, unless the machine stands still: then nobody is to give it up.
        flags = ("--object-store-memory", str(160 << 20), "--daemon-grace", str(STALL), *redis, *self.settings.flags)
        return Members(*flags, host=host, env={"CHAOS_NODE": "head"}, ready_timeout=STALL)

    def _under_load(self, plan: list[Fault]) -> None:
        self.faults = Faults(self.cluster, self.directory / "log", self._visit, self.redis)
        self.judge = Judge(self.cluster, self.faults, self.directory)
        with ExitStack() as drivers:
            for name, (node, kinds) in RESIDENTS.items():
                self._drivers[name] = drivers.enter_context(self._driver(name, node, kinds))
                self._drivers[name].expect("started", STALL)
            with self.faults, self.judge:
                self.faults.run(plan, self.settings.seconds, self.judge.fine)
                self.faults.note("all faults have ended")
                if self.judge.fine():
                    self._quiesce()
                self.judge.look()
            self.outcome.operations = self.judge.counts()
            self.outcome.errors = dict(sorted(self.judge.errors.items()))
            self.outcome.faults = dict(sorted(self.faults.done.items()))
            if not self.judge.violations:
                self.judge.check_logs()
            self.outcome.violations += self.judge.violations
            if self.outcome.violations:
                self.outcome.story = self._hanging()  # while the drivers live

    def _quiesce(self) -> None:
        """The drivers end their work, the one that came last first; then nothing is in use."""
        for name in reversed(self._drivers):
            self._end(name, self._drivers[name])
            if not self.judge.fine():
                return
        for member in self.cluster.all.values():
            self.faults.note(f"{member} is to settle")
            settled(member, STALL)
            status = member.status()
            assert not status["actors"], f"{member} still has {status['actors']} actors"
        wait_for(self._stored, lambda: f"the head's storage is {self.cluster.head.status()['storage']}", STALL)
        self.faults.note("nothing is in use")

    def _stored(self) -> bool:
        """What was journalled meanwhile is in the storage again."""
        return bool(self.cluster.head.status()["storage"]["state"] == "ok")

    def _end(self, name: str, driver: HostDriver) -> None:
        """In order; when the judge finds something meanwhile, it goes on."""
        driver.tell("stop")
        deadline = time.monotonic() + QUIESCE
        while not driver.has_said("done"):
            if not self.judge.fine():
                return
            assert time.monotonic() < deadline, f"driver {name} did not end in {QUIESCE:g} s: {self.judge.waits()}"
            time.sleep(0.2)
        driver.tell("end")
        driver.end(STALL)
        self.faults.note(f"driver {name} has ended")

    def _stop_all(self) -> None:
        self.cluster.stop(STALL)
        left = [str(path) for path in self.lan.dir.glob("*/run/**/*") if not path.is_dir()]
        assert not left, f"files that `noded stop` has left: {left}"

    def _driver(self, name: str, node: str, kinds: tuple[str, ...]) -> HostDriver:
        env = {"CHAOS_NODE": node, "PYTHONPATH": str(TESTS)}  # workers take the driver's path over
        arguments = [str(self.directory), name, str(self.settings.seed), node, *kinds]
        return self.lan.host(node).driver(DRIVER, *arguments, env=env)

    def _visit(self, fault: Fault) -> None:
        name = f"guest-{fault.number}"
        began = time.monotonic()
        while not self._visited(name, fault):
            assert calm_seconds(self.faults.history, began, time.monotonic()) < PATIENCE, f"{name} finds no daemon"
            self.faults.note(f"{name} found no daemon, and tries again")

    def _visited(self, name: str, fault: Fault) -> bool:
        """False when there was no daemon, or none that answered within the 10 s of init()."""
        with self._driver(name, fault.node, GUESTS) as driver:
            try:
                driver.expect("started", STALL)
                time.sleep(fault.seconds)
                if fault.kind == VISIT_KILLED:
                    self.judge.gone.add(name)
                    driver.kill()
                else:
                    self._end(name, driver)
                return True
            except AssertionError:
                if any(words in driver.errors() for words in NO_DAEMON):
                    return False
                raise
            finally:
                if not self.judge.fine():
                    driver.keep_errors(self.directory / f"driver-{name}.err")

    def _hanging(self) -> str:
        """What noded says of the ids in the violations, and what everybody waits for."""
        found = [f"{who}: {what}" for who, what in self.judge.waits().items()]
        for name, driver in self._drivers.items():
            if driver.process.poll() is None:
                driver.signal(signal.SIGUSR2)
                time.sleep(0.5)  # there is no word for "written"; it is only shown
            driver.keep_errors(self.directory / f"driver-{name}.err")
        ids = dict.fromkeys(re.findall(r"\b[0-9a-f]{32}\b", "\n".join(self.outcome.violations)))
        for id_ in list(ids)[:4]:
            command = [*noded_command(), "why", "--cluster", self.cluster.head.cluster, id_]
            done = self.lan.host("head").run(command, timeout=30)
            found.append(f"noded why {id_}: {done.stdout.strip()} {done.stderr.strip()}")
        return "\n".join(found)

    def _story(self) -> str:
        settings = self.settings
        parts = [
            f"seed {settings.seed}, {settings.seconds:g} s, "
            f"at fault {self.faults.position} of {self.directory}/schedule",
            *self.outcome.violations[:10],
            f"what waits:\n{self.outcome.story}",
            "what was done last:\n" + "\n".join((self.directory / "log").read_text().splitlines()[-25:]),
        ]
        try:
            parts.append(figures(self.cluster))
        except Exception as failure:
            parts.append(f"a node does not answer: {failure!r}")
        for name, member in self.cluster.all.items():
            parts.append(f"--- {name}: {member.output()[-2500:]}")
            keep(member, self.directory / f"{name}.log")
        with suppress(shutil.Error):  # workers that end take empty logs along
            shutil.copytree(self.lan.dir, self.directory / "hosts", ignore=_only_logs)
        story = "\n".join(parts)
        (self.directory / "story").write_text(story)
        return story


def run(settings: Settings) -> Outcome:
    directory = Path(tempfile.mkdtemp(prefix=f"chaos-{settings.seed}-", dir="/tmp"))
    outcome = Run(settings, directory).go()
    if not outcome.violations:
        shutil.rmtree(directory)
    return outcome


def keep(member: Member, path: Path) -> None:
    """All that its daemons have written."""
    if member._output is not None:
        member._output.seek(0)
        path.write_bytes(member._output.read())


def _only_logs(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(directory) / name).is_dir() and not re.search(r"\.(log|out|err)", name)]
