"""Actors from the caller's side: where they are, and the ordered queue of calls to each.

A call waits in its actor's queue until the actor has an address, the call's arguments have values, and all
earlier calls are on their way; then it is pushed straight to the actor's worker. Calls to an async or threaded actor do
not wait for the arguments of earlier ones. State comes from the daemon
(``ActorAt``); a broken connection alone changes nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from noded import exceptions as ex
from noded.client import refs
from noded.client.control import Control
from noded.client.failures import actor_died
from noded.client.refs import HoldTable, Token
from noded.client.streams import extra_of
from noded.client.submission import Task, WorkerLink, place_of
from noded.client.tasks import Tasks
from noded.policy import deaths
from noded.telemetry import SUBMITTED
from noded.wire import messages as m

_INFLIGHT = 8192
_UNSENT_LIMIT = 4 << 20
_LOOK_AGAIN = 0.5


class Actor:
    """What this process knows of one actor."""

    __slots__ = (
        "class_name",
        "creation",
        "dead",
        "id",
        "killing",
        "link",
        "parked",
        "queue",
        "state",
        "unordered",
        "worker",
    )

    def __init__(self, id_: bytes):
        self.id = id_
        self.class_name = "actor"
        self.state = "pending"
        self.link: WorkerLink | None = None
        self.worker = ""
        self.queue: deque[Task] = deque()
        self.unordered = False
        """Told with its address, see ``ActorSpec``. Then ``parked`` has the calls that wait for their arguments."""
        self.parked: set[Task] = set()
        self.dead: ex.NodedError | None = None
        self.creation: tuple[m.CreateActor, bytes, list[Any]] | None = None
        """While it may have to be repeated: the request, its payload, and the refs its arguments hold."""
        self.killing = False
        """This process has had its worker killed: until the daemon says so, calls wait here. Sent on, they could
        overtake the kill.
        """


class Actors:
    """All actors this process talks to. Methods that end in ``_locked`` need the runtime's lock."""

    def __init__(self, lock: Any, holds: HoldTable, control: Control, tasks: Tasks, notify: Callable[[], None]):
        self.lock = lock
        self.holds = holds
        self.control = control
        self.tasks = tasks
        self._notify = notify
        self.actors: dict[bytes, Actor] = {}
        self._kills: dict[bytes, m.KillActor] = {}
        self._unreached: dict[bytes, float] = {}
        """Of other nodes, to be asked about again at that time."""
        tasks.on_actor_event = self._on_link_event
        tasks.queued_calls = self.queued_calls

    def create_locked(self, request: m.CreateActor, payload: bytes, keep: list[Any]) -> Token:
        id_ = request.spec.id
        actor = self.actors[id_] = Actor(id_)
        actor.class_name = request.spec.class_name
        actor.creation = (request, payload, keep)
        token = self.holds.take(id_)
        self.control.send(request, payload)
        self.control.flush()
        self.control.wake()
        return token

    def actor_locked(self, id_: bytes, class_name: str, *, was: bool = False) -> Actor:
        """The record of an actor, watched from now on. ``was``: it has existed."""
        actor = self.actors.get(id_)
        if actor is None:
            actor = self.actors[id_] = Actor(id_)
            actor.class_name = class_name
            self.control.send(m.WatchActor(id_, was))
            self.control.flush()
        return actor

    # ------------------------------------------------------------ calls

    def pending(self, id_: bytes) -> int:
        """How many calls of this process the actor has not answered."""
        actor = self.actors.get(id_)
        if actor is None:
            return 0
        return len(actor.queue) + len(actor.parked) + (len(actor.link.inflight) if actor.link is not None else 0)

    def call(self, id_: bytes, class_name: str, task: Task, token: Any) -> None:
        lock = self.lock
        lock.acquire()
        try:
            task.parent = self.tasks.current()
            if task.count >= 0:
                self.tasks.page.counters[task.count + SUBMITTED] += 1
            if task.keep is None:
                task.keep = [_Keep(token)]
            else:
                task.keep.append(_Keep(token))
            actor = self.actors.get(id_) or self.actor_locked(id_, class_name)
            if actor.dead is not None:
                self.tasks.fail_locked(task, actor.dead)
                return
            link = actor.link
            if link is not None and task.deps is None and not actor.queue and not actor.killing:
                if len(link.inflight) < _INFLIGHT and link.link.unsent_bytes < _UNSENT_LIMIT:
                    size, extra = len(task.payload), extra_of(task)
                    link.link.send(
                        m.Call(task.seq, task.method, task.returns, size, [], place_of(task, link, self.holds), extra),
                        task.payload,
                    )
                    self.tasks.sent_locked(link, task)
                    self.control.wake()
                    return
            actor.queue.append(task)
            if task.deps is None or self.tasks.resolve_locked(task, lambda task: self._resolved_locked(actor, task)):
                self.advance_locked(actor)
            elif actor.unordered:
                self.advance_locked(actor)
            self.control.wake()
        finally:
            lock.release()

    def call_again(self, id_: bytes, class_name: str, task: Task, token: Any) -> None:
        """Of an actor that may have ended, and been forgotten, long ago."""
        with self.lock:
            self.actor_locked(id_, class_name, was=True)
            self.call(id_, class_name, task, token)

    def waits_for_locked(self, id_: bytes, seq: int) -> bool:
        """A call that this actor has been sent, and runs before later ones, has a result of that call as argument."""
        actor = self.actors.get(id_)
        if actor is None or actor.link is None or actor.unordered:
            return False
        sent = actor.link.inflight.values()
        return any(
            ref._seq == seq and ref.binary().startswith(refs.own_prefix) for t in sent for _, ref in t.deps or ()
        )

    def _resolved_locked(self, actor: Actor, task: Task) -> None:
        if task in actor.parked:
            actor.parked.discard(task)
            actor.queue.append(task)
        self.advance_locked(actor)

    def advance_locked(self, actor: Actor) -> None:
        """Push calls in order up to the first that cannot go."""
        link, queue = actor.link, actor.queue
        if link is None or actor.killing:
            return
        while queue:
            task = queue[0]
            if not task.over:
                if task.unresolved and actor.unordered:
                    actor.parked.add(queue.popleft())
                    continue
                if task.unresolved or len(link.inflight) >= _INFLIGHT or link.link.unsent_bytes > _UNSENT_LIMIT:
                    return
                filled = self.tasks.fill_locked(task, link)
                if filled is not None:
                    deps, payload = filled
                    size, extra = len(task.payload), extra_of(task)
                    link.link.send(
                        m.Call(
                            task.seq, task.method, task.returns, size, deps, place_of(task, link, self.holds), extra
                        ),
                        payload,
                    )
                    self.tasks.sent_locked(link, task)
            queue.popleft()

    def _on_link_event(self, link: WorkerLink) -> None:
        actor: Actor = link.actor
        self.advance_locked(actor)
        self.tasks.flush_locked(link)

    def kill_locked(self, id_: bytes, no_restart: bool) -> None:
        request = m.KillActor(id_, no_restart)
        self._kills[id_] = request
        actor = self.actor_locked(id_, "actor")
        actor.killing = actor.dead is None and (no_restart or actor.link is not None)
        self.control.send(request)
        self.control.flush()

    # ------------------------------------------------------------ from the daemon

    def on_actor_at(self, message: m.ActorAt, payload: Any) -> None:
        actor = self.actors.get(message.id)
        if actor is None:
            return
        actor.state = message.state
        if message.state in ("starting", "alive"):
            self._reached(actor, message)
        elif message.state == "restarting":
            self._kills.pop(actor.id, None)  # done: told again after a reconnect it would end the next one
            self._unlink(actor, message, payload)
        elif message.state == "dead":
            self._died(actor, message, payload)
        self._notify()

    def _reached(self, actor: Actor, message: m.ActorAt) -> None:
        actor.unordered = message.unordered
        if message.state == "alive":
            actor.creation = None
        if actor.link is not None and actor.link.worker != message.worker:
            # It ended and was made again while nobody told us: its calls fare as at any other death.
            ended = m.Death(actor.link.worker, actor.link.pid, reason="it ended while the daemon was away")
            ended.kind = deaths.UNSEEN
            self._unlink(actor, m.ActorAt(actor.id, "restarting", death=ended), b"")
        actor.worker = message.worker
        if actor.link is not None:
            self.advance_locked(actor)
            self.tasks.flush_locked(actor.link)
            return
        self.tasks.reach_locked(
            message.worker, message.path, message.address, message.pid, lambda link: self._linked(actor, message, link)
        )

    def _linked(self, actor: Actor, message: m.ActorAt, link: WorkerLink | None) -> None:
        if actor.worker != message.worker or actor.link is not None or actor.dead is not None:
            return  # it is elsewhere by now
        if link is None:
            # It died meanwhile, which the daemon will say; or, of another node, it cannot be reached: look again.
            if message.address or not self.tasks.on_a_node:
                self._unreached[actor.id] = time.monotonic() + _LOOK_AGAIN
            return
        link.actor = actor
        actor.link = link
        self.advance_locked(actor)
        self.tasks.flush_locked(actor.link)

    def look_again_locked(self) -> None:
        """Actors of other nodes that could not be reached: perhaps they are elsewhere, or can be now."""
        now = time.monotonic()
        for id_ in [i for i, due in self._unreached.items() if due <= now]:
            del self._unreached[id_]
            actor = self.actors.get(id_)
            if actor is not None and actor.link is None and actor.dead is None:
                self.control.send(m.WatchActor(id_, True))

    def _unlink(self, actor: Actor, message: m.ActorAt, payload: Any) -> None:
        """The worker is gone: settle what it answered, fail or queue again what it did not."""
        actor.worker = ""
        link, actor.link = actor.link, None
        actor.killing = False
        if link is None:
            return
        self.tasks.drop_link_locked(link)
        tasks, link.inflight = list(link.inflight.values()), {}
        for task in reversed(tasks):
            self.tasks.streams.worker_lost_locked(task)
            if task.retries and message.state == "restarting":
                task.retries -= 1
                self.tasks.note_attempt(task, message.death or m.Death(link.worker, link.pid, kind=deaths.UNSEEN))
                self.tasks.again_locked(task)
                actor.queue.appendleft(task)
            else:
                self.tasks.fail_locked(task, self._error(actor, message, payload))

    def _died(self, actor: Actor, message: m.ActorAt, payload: Any) -> None:
        self._kills.pop(actor.id, None)
        actor.dead = self._error(actor, message, payload)
        actor.creation = None
        self._unlink(actor, message, payload)
        tasks = [*actor.queue, *actor.parked]
        actor.queue.clear()
        actor.parked.clear()
        for task in tasks:
            self.tasks.fail_locked(task, actor.dead)

    def _error(self, actor: Actor, message: m.ActorAt, payload: Any) -> ex.NodedError:
        text = f"the actor {actor.class_name} {actor.id.hex()} died"
        if message.state == "restarting":
            text += (
                " while it ran this call; it restarts, but the call may have run already (max_task_retries repeats it)"
            )
        reason = message.reason or (message.death.reason if message.death is not None else "")
        if reason and (message.death is not None or message.kind not in ("env", "removed", "never")):
            text += f": {reason}"
        if payload:
            return creation_failed(text, actor.id.hex(), bytes(payload))
        if message.death is not None:
            died = actor_died(text, actor.id.hex(), message.death)
            if message.state == "restarting":
                return ex.ActorUnavailableError(str(died), actor_id=actor.id.hex())
            return died
        if message.kind == "env":
            return ex.RuntimeEnvSetupError(
                f"the runtime environment of the actor {actor.class_name} {actor.id.hex()} cannot be set up: "
                f"{message.reason}"
            )
        if message.kind == "removed":
            return ex.ActorPlacementGroupRemoved(message=f"{text}: {message.reason}; create it in another group")
        if message.kind == "never":
            return ex.ActorUnschedulableError(f"the actor {actor.class_name} cannot be scheduled: {message.reason}")
        return ex.ActorDiedError(text, actor_id=actor.id.hex(), kind=message.kind)

    def retell_locked(self) -> None:
        for actor in self.actors.values():
            if actor.creation is not None:
                request, payload, _ = actor.creation
                self.control.send(msgspec.structs.replace(request, again=True), payload)
            elif actor.dead is None:
                self.control.send(m.WatchActor(actor.id, actor.state != "pending"))
        for kill in self._kills.values():
            self.control.send(kill)

    def forget_unheld_locked(self) -> None:
        """Actors that nothing here refers to any more; a handle that comes back later finds them anew."""
        for id_, actor in list(self.actors.items()):
            idle = not actor.queue and not actor.parked and actor.creation is None and id_ not in self._kills
            if idle and id_ not in self.holds.holds and not (actor.link is not None and actor.link.inflight):
                del self.actors[id_]
                if actor.link is not None:
                    self.tasks.drop_link_locked(actor.link)

    def queued_calls(self) -> Iterable[Task]:
        return (task for actor in self.actors.values() for task in actor.queue)

    def busy(self) -> bool:
        if self._unreached:
            return True
        for actor in self.actors.values():
            if actor.queue or actor.parked or actor.creation is not None:
                return True
            if actor.link is not None and actor.link.inflight:
                return True
        return False


class _Keep:
    """Lets a call keep the actor's handle alive beside its nested refs (same attribute)."""

    __slots__ = ("_token",)

    def __init__(self, token: Token):
        self._token = token


def creation_failed(text: str, actor_id: str, payload: bytes) -> ex.ActorDiedError:
    """The constructor raised: the error says so with the user's traceback."""
    from noded.client import codec

    try:
        cause, _ = codec.unpack(memoryview(payload), lambda found: [])
    except Exception as problem:
        kind = deaths.CONSTRUCTOR
        return ex.ActorDiedError(f"{text}; its error cannot be loaded here: {problem}", actor_id=actor_id, kind=kind)
    error = ex.ActorDiedError(f"{text}\n{cause}", actor_id=actor_id, kind=deaths.CONSTRUCTOR)
    error.__cause__ = cause.as_dual() if isinstance(cause, ex.TaskError) else None
    return error
