"""The node's workers: forked through the spawner, kept warm, entered into jobs, ended, and who died of what.

Every worker has a record in the ledger from before it is forked, so that a restarted daemon knows it. What a
worker is leased to is ``leases.py``'s business; it uses the same record (``Worker.save``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from noded import ids
from noded.config import without_secrets
from noded.logs.marks import ends_task
from noded.node.capacity import memory_of
from noded.node.ledger import Ledger
from noded.node.oom import Kills, OomWatch
from noded.node.session import Client
from noded.node.spawner_link import SpawnerLink
from noded.policy import deaths
from noded.policy.reasons import ENV_BUILDING, HEAD_AWAY, WORKER_STARTING
from noded.runtime_env.prepared import Prepared, env_id
from noded.version import __version__
from noded.wire import messages as m

log = logging.getLogger("noded.workers")

TEMPLATE = f"default {__version__}"
"""With the version, as that of an earlier daemon would make workers of an earlier version."""
SERVICE_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""What a service manager tells the daemon, and no program that a worker starts may take for itself."""
RETIRE_SINCE = 3
"""The version of the spawner's protocol in which templates can be ended."""
_ACK_SECONDS = 5.0
_TAIL_LINES = 20
_EXIT_SECONDS = 5.0
_REASON_KEPT = 300
_BARE = 32 << 20
"""Bytes that a worker uses before it has run anything, and a little more."""
_ENVS_KNOWN = 1000
_STARTING = 32
"""So many workers start at once, so that a thousand actors do not stand in each other's way."""


class WorkerRecord(msgspec.Struct, array_like=True, omit_defaults=True):
    """What the ledger keeps of a worker."""

    pid: int = 0
    job: str = ""
    lease: int = 0
    client: bytes = b""
    cls: int = 0
    resources: dict[str, int] = {}
    actor: bytes = b""
    devices: dict[int, int] = {}
    group: bytes = b""
    env: str = ""
    """The id of its runtime environment."""
    gpus: list[int] | None = None
    """Those it was given at first; None: nothing has run in it yet."""
    instance: int = 0
    """Which start of its actor it has."""
    reason: str = ""
    """Why the daemon ends it; here, so that the next daemon can say so."""
    kind: str = ""
    """Of the reason, see ``policy/deaths.py``."""
    version: int = 0
    """Of the control messages it speaks; 0: it has not attached yet."""
    retriable: bool = True
    """What it is leased for may be run again."""


class EnvMade(msgspec.Struct, frozen=True):
    """A runtime environment that was made ready on this node, or could not be."""

    text: str
    seconds: float
    """That it took."""
    failed: str
    """Why it could not be; empty: it is ready."""


class Worker(msgspec.Struct, eq=False):
    id: str
    record: WorkerRecord
    client: Client | None = None
    """Its control connection's client, once it has attached."""
    assigned: Any = None
    """The lease or actor that waits for this worker to be ready, or has it."""
    job_sent: m.SetJob | None = None
    """The job it was told to enter and has not entered yet."""
    blocked: bool = False
    counts: Path | None = None
    """The file that counts what the kernel kills where it runs, see ``oom.py``."""
    entered: float = 0.0
    """When it was told to enter its job."""
    idle_since: float = msgspec.field(default_factory=time.monotonic)
    uses: int = 0
    """Bytes of its own memory when its last lease was over."""
    words: str = ""
    """The reason why the daemon ends it, in full."""
    free: bool = False
    """Its end is to cost no retry."""
    dead: bool = False

    @property
    def prefix(self) -> bytes:
        return bytes.fromhex(self.id)[: ids.PREFIX_SIZE]


class Assignee(Protocol):
    """A lease or an actor that needs a worker."""

    @property
    def gpus(self) -> list[int]:
        """The indices of its GPUs, in order."""

    @property
    def memory(self) -> int:
        """Bytes that it may use; 0: any number."""


class Environments(Protocol):
    """What the pool needs of the node's runtime environments."""

    async def prepare(self, env: str) -> Prepared:
        """Make one ready; raises with the reason."""

    def acquire(self, id_: str) -> None:
        """A worker uses it."""

    def release(self, id_: str) -> None: ...


class WorkerPool:
    """``on_ready(worker)``: an assigned worker has entered its job. ``on_exit(worker, death)``: it has ended,
    as the kernel says.
    """

    def __init__(
        self,
        spawner: SpawnerLink,
        ledger: Ledger,
        run_dir: str,
        log_dir: str,
        *,
        pages: str,
        node: int,
        node_id: str,
        keep_warm: int,
        job_config: Callable[[str], m.JobConfig | None],
        on_ready: Callable[[Worker], None],
        on_exit: Callable[[Worker, m.Death], None],
        on_env_failed: Callable[[Any, str], None],
        on_start_failed: Callable[[Any, str], None],
        on_output_end: Callable[[Worker], None],
        environments: Environments,
    ):
        self.workers: dict[str, Worker] = {}
        self.by_prefix: dict[bytes, Worker] = {}
        self._spawner = spawner
        self._ledger = ledger
        self._run_dir = run_dir
        self._log_dir = log_dir
        self._pages = pages
        """The directory of their telemetry pages, or empty."""
        self.node = node
        """Its number."""
        self._node_id = node_id
        self._keep_warm = keep_warm
        self._job_config = job_config
        self._on_ready = on_ready
        self._on_exit = on_exit
        self._on_env_failed = on_env_failed
        self._on_start_failed = on_start_failed
        self._environments = environments
        self._prepared: dict[tuple[str, str], bytes] = {}
        """Runtime environments that are ready on this node, by job and id."""
        self.envs: dict[str, EnvMade] = {}
        """What became of runtime environments, by id, the latest last."""
        self._preparing: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._preparing_since: dict[tuple[str, str], float] = {}
        self._waiting_for_env: list[tuple[Assignee, str, str]] = []
        """(assignee, job, environment)"""
        self._waiting_for_job: list[tuple[Assignee, str, str]] = []
        """Likewise; what their jobs are is being asked."""
        self._on_output_end = on_output_end
        self._idle: deque[Worker] = deque()
        """Attached, unassigned; the most recently used at the right."""
        self._waiting: deque[tuple[Assignee, str, str]] = deque()
        """(assignee, job, environment) without a worker yet."""
        self._starting = 0
        self.started = 0
        """Workers, by this daemon."""
        self._template = False
        self._templates = deaths.Starts(first=0.05, longest=5.0, patience=4)
        self._starts = deaths.Starts(first=0.02, longest=5.0, patience=5)
        """Of workers, before they attached."""
        self._entries: dict[tuple[str, str], deaths.Starts] = {}
        """Of workers that attached, and died when they were to enter this job and environment."""
        self.oom = OomWatch()
        self.on_forked: Callable[[Worker], None] = lambda worker: None
        """It has a process."""
        self.kept: Callable[[Worker], str] = lambda worker: ""
        """Asked of a worker whose lease is over: why it had better be replaced."""
        self.stopping = False

    # ------------------------------------------------------------ demand

    def assign(self, assignee: Assignee, job: str, env: str) -> None:
        """Give ``assignee`` a worker of this job and environment: an idle one, or a new one."""
        if env and (key := (job, env_id(env))) not in self._prepared:
            self._waiting_for_env.append((assignee, job, env))
            if key not in self._preparing:
                # Before it is prepared, so that it is not evicted in between; until the job ends.
                self._environments.acquire(key[1])
                self._preparing_since[key] = time.monotonic()
                self._preparing[key] = asyncio.get_running_loop().create_task(self._prepare(key, env), name="prepare")
            return
        ready = any(self._suits(worker, job, env_id(env), assignee) for worker in self._idle)
        if not ready and self._job_config(job) is None:
            self._waiting_for_job.append((assignee, job, env))
            return
        worker = self._take_idle(assignee, job, env)
        if worker is None:
            self._waiting.append((assignee, job, env))
            self._fork_missing()
        else:
            self._enter(worker, assignee, job, env)

    async def _prepare(self, key: tuple[str, str], env: str) -> None:
        """Make a runtime environment ready for a job, then serve who waits for it, or tell why not."""
        began = time.monotonic()
        try:
            self._prepared[key] = msgspec.msgpack.encode(await self._environments.prepare(env))
            failed = ""
        except Exception as problem:
            failed = str(problem) or type(problem).__name__
            self._environments.release(key[1])
        finally:
            del self._preparing[key], self._preparing_since[key]
        self.envs.pop(key[1], None)
        self.envs[key[1]] = EnvMade(env, time.monotonic() - began, failed)
        if len(self.envs) > _ENVS_KNOWN:
            del self.envs[next(iter(self.envs))]
        mine = [w for w in self._waiting_for_env if w[1:] == (key[0], env)]
        self._waiting_for_env = [w for w in self._waiting_for_env if w[1:] != (key[0], env)]
        for assignee, job, _ in mine:
            if failed:
                self._on_env_failed(assignee, failed)
            else:
                self.assign(assignee, job, env)

    def explain(self, assignee: Any) -> tuple[str, str]:
        """Why what has its resources has no worker yet: a kind of ``policy/reasons.py``, and the words."""
        for waiting, job, env in self._waiting_for_env:
            if waiting is assignee:
                seconds = time.monotonic() - self._preparing_since.get((job, env_id(env)), time.monotonic())
                return ENV_BUILDING, f"its runtime environment is being made ready on this node, since {seconds:.1f} s"
        for waiting, job, _ in self._waiting_for_job:
            if waiting is assignee:
                return HEAD_AWAY, f"its node has asked the head about its job {job}, and waits for the answer"
        worker = next((w for w in self.workers.values() if w.assigned is assignee), None)
        if worker is not None and worker.record.env:
            seconds = time.monotonic() - worker.entered
            words = f"its worker (pid {worker.record.pid}) enters its runtime environment, since {seconds:.1f} s"
            return ENV_BUILDING, words
        if worker is not None:
            return WORKER_STARTING, f"its worker (pid {worker.record.pid}) enters its job"
        reason = f"{self._starting} workers are starting on this node, and {len(self._waiting)} wait for one"
        failures = self._templates.failures + self._starts.failures
        if failures:
            reason += f"; {failures} starts in a row have failed, so the next one comes after a pause"
        return WORKER_STARTING, reason

    def job_known(self, job: str) -> None:
        """``job_config`` knows it now."""
        mine = [w for w in self._waiting_for_job if w[1] == job]
        self._waiting_for_job = [w for w in self._waiting_for_job if w[1] != job]
        for waiting in mine:
            self.assign(*waiting)

    def unassign(self, assignee: Any) -> None:
        """It is not wanted any more."""
        self._waiting_for_job = [w for w in self._waiting_for_job if w[0] is not assignee]
        self._waiting = deque(w for w in self._waiting if w[0] is not assignee)
        self._waiting_for_env = [w for w in self._waiting_for_env if w[0] is not assignee]

    @staticmethod
    def _suits(worker: Worker, job: str, env_id: str, assignee: Assignee) -> bool:
        """CUDA looks at a process's GPUs once: one that has run anything keeps those that it had then, or none. And
        what earlier tasks have left in a process must not bring the next one to its limit.
        """
        record, limit = worker.record, assignee.memory
        if record.job != job or record.env != env_id or not (record.gpus is None or record.gpus == assignee.gpus):
            return False
        return not limit or worker.uses <= max(_BARE, limit // 2)

    def _take_idle(self, assignee: Assignee, job: str, env: str) -> Worker | None:
        generic: Worker | None = None
        id_ = env_id(env)
        for worker in reversed(self._idle):
            if self._suits(worker, job, id_, assignee):
                self._idle.remove(worker)
                return worker
            if not worker.record.job:
                generic = worker
        if generic is not None:
            self._idle.remove(generic)
            # Have the next one ready before it is asked for.
            asyncio.get_running_loop().call_soon(self._fork_missing)
        return generic

    def _enter(self, worker: Worker, assignee: Assignee, job: str, env: str) -> None:
        worker.assigned = assignee
        worker.record.gpus = assignee.gpus
        if worker.record.job == job:
            self._on_ready(worker)
            return
        config = self._job_config(job)
        assert worker.client is not None
        worker.record.job = worker.client.job = job
        worker.record.env = id_ = env_id(env)
        if id_:
            self._environments.acquire(id_)
        self.save(worker)
        worker.job_sent = m.SetJob(job, config or m.JobConfig(), 1, env, self._prepared.get((job, id_), b""))
        worker.entered = time.monotonic()
        worker.client.send(worker.job_sent)

    def on_job_ready(self, worker: Worker, job: str, failed: str) -> None:
        if worker.job_sent is None or worker.job_sent.job != job or worker.assigned is None:
            return
        worker.job_sent = None
        self._entries.pop((job, worker.record.env), None)
        if not failed:
            self._on_ready(worker)
            return
        assignee, worker.assigned = worker.assigned, None
        self.kill(worker, deaths.ENV, f"its runtime environment cannot be entered: {failed}")
        self._on_env_failed(assignee, failed)

    def idle(self) -> list[Worker]:
        """Those that are lent to nobody."""
        return list(self._idle)

    def on_leaving(self, worker: Worker, reason: str) -> None:
        """From the worker: it takes no more tasks, or, of an actor, is about to exit."""
        kind = deaths.EXIT if worker.record.actor else deaths.RETIRED
        self._will_end(worker, kind, reason)
        if worker in self._idle:
            self.end(worker, kind, reason)

    def release(self, worker: Worker) -> None:
        """Its lease is over: idle again, or for the next who waits."""
        worker.assigned = None
        record = worker.record
        record.lease, record.client, record.resources, record.cls = 0, b"", {}, 0
        record.devices, record.group, record.retriable = {}, b"", True
        self.save(worker)
        if worker.dead:
            return
        if not record.kind and (reason := self.kept(worker)):
            self.end(worker, deaths.RETIRED, reason)
            return
        if record.kind:
            self.end(worker, record.kind, record.reason)
            return
        for index, (assignee, job, env) in enumerate(self._waiting):
            if self._suits(worker, job, env_id(env), assignee):
                del self._waiting[index]
                self._enter(worker, assignee, job, env)
                return
        worker.idle_since = time.monotonic()
        self._idle.append(worker)

    # ------------------------------------------------------------ starting

    def prepare(self) -> None:
        """Start the template and the first warm workers."""
        self._ensure_template()
        self._fork_missing()

    def _ensure_template(self) -> None:
        if not self._template:
            self._template = True
            package_parent = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            path = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**without_secrets(os.environ), "PYTHONPATH": path}
            for name in SERVICE_VARIABLES:
                environment.pop(name, None)
            argv = [sys.executable, "-m", "noded.template"]
            self._spawner.send({"t": "template", "key": TEMPLATE, "argv": argv, "env": environment})

    def _fork_missing(self) -> None:
        if self.stopping or not self._spawner.connected:  # a new spawner is told by ``prepare``
            return
        generic = sum(1 for w in self._idle if not w.record.job)
        missing = len(self._waiting) + self._keep_warm - generic - self._starting
        for _ in range(min(missing, _STARTING - self._starting)):
            self._fork()

    def _fork(self) -> None:
        self._ensure_template()
        wid = ids.new_worker_id(self.node)
        worker = Worker(wid, WorkerRecord())
        self.workers[wid] = worker
        self.by_prefix[worker.prefix] = worker
        self._starting += 1
        self.started += 1
        self.save(worker)
        base = os.path.join(self._log_dir, f"worker-{wid}")
        args = {
            "wid": wid,
            "run_dir": self._run_dir,
            "stdout": base + ".out",
            "stderr": base + ".err",
            "pages": self._pages,
        }
        self._spawner.send({"t": "fork", "key": TEMPLATE, "wid": wid, "args": args})

    def on_attached(self, worker: Worker, client: Client, job: str) -> None:
        """Its control connection is there (for the first time, or again)."""
        first = worker.client is None
        worker.client = client
        self._templates.worked()
        self._starts.worked()
        if first:
            worker.counts = self.oom.of(client.pid)  # again: whoever puts workers into groups has done so by now
            # The daemon before us may have died between writing the job down and telling it.
            worker.record.job = client.job = job
            if not job:
                worker.record.env, worker.record.gpus = "", None
        if not worker.record.pid:
            worker.record.pid = client.pid
        if first and worker.assigned is None and not worker.record.lease and not worker.record.actor:
            if self._starting:
                self._starting -= 1
            if worker in self._idle:
                return
            if self._waiting and not worker.record.job:
                assignee, job, env = self._waiting.popleft()
                self._enter(worker, assignee, job, env)
            else:
                worker.idle_since = time.monotonic()
                self._idle.append(worker)
            self.save(worker)
            self._fork_missing()
        elif worker.job_sent is not None:
            client.send(worker.job_sent)

    def save(self, worker: Worker) -> None:
        if not worker.dead:
            self._ledger.workers.put(worker.id.encode(), msgspec.msgpack.encode(worker.record))

    # ------------------------------------------------------------ ending

    def _will_end(self, worker: Worker, kind: str, reason: str) -> None:
        """The first cause counts."""
        if not worker.record.kind:
            worker.record.kind, worker.record.reason, worker.words = kind, reason[:_REASON_KEPT], reason
            self.save(worker)

    def kill(self, worker: Worker, kind: str, reason: str) -> None:
        """End it now; ``kind`` of ``policy/deaths.py``."""
        if not worker.dead:
            self._will_end(worker, kind, reason)
            if worker in self._idle:
                self._idle.remove(worker)
            self._spawner.send({"t": "kill", "wid": worker.id, "signal": int(signal.SIGKILL)})

    def end(self, worker: Worker, kind: str, reason: str) -> None:
        """Ask it to end after what it runs; force it a little later."""
        if worker.client is None or worker.client.session is None:
            self.kill(worker, kind, reason)
            return
        self._will_end(worker, kind, reason)
        if worker in self._idle:
            self._idle.remove(worker)
        worker.client.send(m.Exit(reason))
        asyncio.get_running_loop().call_later(_EXIT_SECONDS, lambda: self.kill(worker, kind, reason))

    def end_job(self, job: str, spare: Callable[[Worker], bool]) -> None:
        for worker in list(self.workers.values()):
            if worker.record.job == job and not spare(worker):
                self.kill(worker, deaths.JOB_ENDED, "its job has ended")
        self._waiting = deque(w for w in self._waiting if w[1] != job)
        self._waiting_for_env = [w for w in self._waiting_for_env if w[1] != job]
        self._waiting_for_job = [w for w in self._waiting_for_job if w[1] != job]
        for key in [key for key in self._prepared if key[0] == job]:
            del self._prepared[key]
            self._environments.release(key[1])
        self._entries = {key: starts for key, starts in self._entries.items() if key[0] != job}

    def trim(self, limit: int, seconds: float) -> None:
        """End workers that have been idle for long, beyond those kept warm."""
        now = time.monotonic()
        generic = sum(1 for w in self._idle if not w.record.job)
        for worker in list(self._idle):
            if now - worker.idle_since > seconds:
                if not worker.record.job:
                    if generic <= self._keep_warm:
                        continue
                    generic -= 1
                elif len(self._idle) - generic <= limit:
                    continue
                self.end(worker, deaths.IDLE, "it was idle")

    # ------------------------------------------------------------ the spawner's word

    def on_packet(self, packet: dict[str, Any]) -> None:
        kind = packet["t"]
        if kind == "forked":
            worker = self.workers.get(packet["wid"])
            if worker is not None:
                worker.record.pid = packet["pid"]
                worker.counts = self.oom.of(packet["pid"])
                self.save(worker)
                self.on_forked(worker)
        elif kind == "exit":
            self._exited(packet)
        elif kind == "fork_failed":
            self._fork_failed(packet)
        elif kind == "template_exit" and packet["key"] == TEMPLATE:
            self._template = False
            if not self.stopping:
                log.warning(
                    "the worker template ended (code %s, signal %s): %s",
                    packet["code"],
                    packet["signal"],
                    packet["error"].strip(),
                )
                kind, how = deaths.judge(deaths.Ending(packet["code"], packet["signal"], started=False))
                said = packet["error"].strip().splitlines()[-_TAIL_LINES:]
                self._pause(self._templates, kind, f"the process that workers are forked from fails: {how}", said)

    def _fork_failed(self, packet: dict[str, Any]) -> None:
        worker = self.workers.pop(packet["wid"], None)
        if worker is None:
            return
        self.by_prefix.pop(worker.prefix, None)
        self._ledger.workers.delete(worker.id.encode())
        worker.dead = True
        if worker.client is None and self._starting:
            self._starting -= 1
        if not self._template:
            return  # the template's end says when to try again
        log.warning("a worker could not be forked: %s", packet["error"])
        asyncio.get_running_loop().call_later(0.2, self._fork_missing)

    def _exited(self, packet: dict[str, Any]) -> None:
        wid = packet["wid"]
        worker = self.workers.pop(wid, None)
        asyncio.get_running_loop().call_later(_ACK_SECONDS, lambda: self._spawner.send({"t": "ack", "wid": wid}))
        if worker is None:
            return
        record = worker.record
        killed = packet["signal"] == signal.SIGKILL and not record.kind and not packet["asked"]
        kills = self.oom.died(worker.counts) if killed else Kills()
        kind, reason = deaths.judge(
            deaths.Ending(
                packet["code"],
                packet["signal"],
                record.kind,
                worker.words or record.reason,
                packet["asked"],
                worker.client is not None or bool(record.lease or record.actor),
                kills.before,
                kills.after,
                kills.limit,
                packet["max_rss_kb"] << 10,
                memory_of(record.resources) if kills.own_limit else 0,
            )
        )
        death = m.Death(wid, packet["pid"], packet["code"], packet["signal"], reason, packet["max_rss_kb"])
        death.kind, death.free = kind, worker.free and kind == record.kind
        self._gone(worker, death)

    def _pause(self, starts: deaths.Starts, kind: str, reason: str, said: list[str]) -> None:
        """A process failed before it was ready, as the next may: a broken installation must not become a loop of forks,
        and who waits for one must hear of it.
        """
        asyncio.get_running_loop().call_later(starts.failed(kind), self._fork_missing)
        if not starts.hopeless:
            return
        words = f"no worker can be started on node {self._node_id}, {starts.own} tries failed in a row: {reason}"
        text = _with_tail(words, said)
        waiting, self._waiting = self._waiting, deque()
        if waiting:
            log.error("%s", text)
        for assignee, _, _ in waiting:
            self._on_start_failed(assignee, text)

    def _not_entered(self, worker: Worker, death: m.Death) -> None:
        """It died while it entered its job; whoever it was for gets another one, a few times."""
        assignee, record = worker.assigned, worker.record
        starts = self._entries.setdefault((record.job, record.env), deaths.Starts(first=0.0, longest=0.0, patience=3))
        starts.failed(death.kind)
        if not starts.hopeless or assignee is None:
            return
        worker.assigned = None
        what = "its runtime environment" if record.env else "the job"
        text = f"{starts.own} workers in a row ended while they entered {what} on node {self._node_id}: {death.reason}"
        text = _with_tail(text, death.stderr)
        (self._on_env_failed if record.env else self._on_start_failed)(assignee, text)

    def _gone(self, worker: Worker, death: m.Death) -> None:
        death.node = self._node_id
        worker.dead = True
        self.by_prefix.pop(worker.prefix, None)
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.client is None and self._starting and not worker.record.lease and not worker.record.actor:
            self._starting -= 1
        self._ledger.workers.delete(worker.id.encode())
        if worker.record.env:
            self._environments.release(worker.record.env)
        if death.kind in deaths.UNINTENDED:
            death.stderr = self._stderr_tail(worker.id)
        try:
            os.unlink(os.path.join(self._run_dir, "w", f"{worker.id}.sock"))
        except OSError:
            pass
        if worker.job_sent is not None and not worker.record.kind:
            self._not_entered(worker, death)
        self._on_exit(worker, death)
        self._on_output_end(worker)
        if self.stopping:
            return
        if worker.client is None and not worker.record.kind:
            self._pause(self._starts, death.kind, death.reason, death.stderr)
        else:
            self._fork_missing()

    async def await_ends(self) -> None:
        """The kernel kills the workers of a spawner that has died, but only after it has closed its connections: until
        they are gone they may still write, so nobody may be given what is theirs.
        """
        pids = [worker.record.pid for worker in self.workers.values() if worker.record.pid]
        if left := await asyncio.to_thread(_await_ends, pids, _EXIT_SECONDS):
            log.error("workers %s live on without their spawner", left)

    def spawner_lost(self) -> None:
        """All workers died with it."""
        self._template = False
        self._starting = 0
        for worker in list(self.workers.values()):
            del self.workers[worker.id]
            kind = worker.record.kind or deaths.SPAWNER
            reason = worker.record.reason or "the node's spawner died, and its workers with it"
            death = m.Death(worker.id, worker.record.pid, None, int(signal.SIGKILL), reason, kind=kind)
            self._gone(worker, death)

    def _stderr_tail(self, wid: str) -> list[str]:
        try:
            with open(os.path.join(self._log_dir, f"worker-{wid}.err"), "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 16384))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return []
        # What came before the end of a task is of another one.
        over = max((at for at, line in enumerate(lines) if ends_task(line)), default=-1)
        lines = lines[over + 1 :]
        said = [line.rstrip() for line in lines if line.strip() and not line.startswith("\x1e")]
        return deaths.last_words(said, _TAIL_LINES)

    # ------------------------------------------------------------ daemon restart

    def restore(self, alive: dict[str, int], templates: list[str]) -> list[Worker]:
        """Take over the workers of the previous daemon: (those in the ledger, alive or not). The dead are
        reported by exits.
        """
        self._template = TEMPLATE in templates
        if self._spawner.protocol >= RETIRE_SINCE:
            for older in set(templates) - {TEMPLATE}:
                self._spawner.send({"t": "retire", "key": older})
        found: list[Worker] = []
        for key, payload in list(self._ledger.workers.items()):
            wid = bytes(key).decode() if not isinstance(key, int) else str(key)
            record = msgspec.msgpack.decode(payload, type=WorkerRecord)
            worker = Worker(wid, record)
            record.pid = record.pid or alive.get(wid, 0)
            self.workers[wid] = worker
            self.by_prefix[worker.prefix] = worker
            found.append(worker)
            if record.env:
                self._environments.acquire(record.env)
            if wid in alive and not record.lease and not record.actor:
                self._starting += 1
        return found

    def forget_unknown(self, alive: dict[str, int], exited: set[str]) -> None:
        """Workers of the ledger that the spawner knows nothing of: never forked, or acknowledged already."""
        for worker in list(self.workers.values()):
            if worker.id not in alive and worker.id not in exited:
                del self.workers[worker.id]
                kind, reason = deaths.judge(deaths.Ending(kind=worker.record.kind, reason=worker.record.reason))
                self._gone(worker, m.Death(worker.id, worker.record.pid, None, None, reason, kind=kind))


def _with_tail(text: str, lines: list[str]) -> str:
    return "\n".join([text, "last lines of its stderr:", *(f"  | {line}" for line in lines)] if lines else [text])


def _await_ends(pids: list[int], seconds: float) -> list[int]:
    """Wait until these processes have ended; those that have not."""
    deadline = time.monotonic() + seconds
    left: list[int] = []
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                left.append(pid)
        finally:
            os.close(pidfd)
    return left
