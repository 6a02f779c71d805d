"""Taking over from the daemon before this one: see docs/architecture.md, section 8.

First the components are as it has left them, then the head is told, and then what has happened meanwhile counts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from noded.node.control import ClientRecord, start_time, unusable
from noded.node.session import Client
from noded.node.workers import WorkerRecord
from noded.parts import Parts
from noded.startup import StartError
from noded.wire import messages as m


def restore(parts: Parts, welcome: Any) -> None:
    """``welcome``: what the spawner has told of the workers that live. Raises StartError, with nothing changed."""
    alive = {w["wid"]: w["pid"] for w in welcome.workers}
    _refuse_strange_clients(parts, set(alive))
    for key, payload in list(parts.ledger.clients.items()):
        known = msgspec.msgpack.decode(payload, type=ClientRecord)
        assert isinstance(key, bytes)
        if known.kind in ("guest", "node") or known.remote or start_time(known.pid) == known.start_time:
            parts.clients[key] = Client(
                key,
                known.kind,
                known.pid,
                known.start_time,
                known.job,
                told=known.detached,
                detached=known.detached,
                remote=known.remote,
            )
        else:
            parts.ledger.clients.delete(key)
    workers = parts.pool.restore(alive, welcome.templates)
    for worker in workers:
        if worker.id in alive:
            pid = alive[worker.id]
            parts.clients[worker.prefix] = Client(
                worker.prefix, "worker", pid, start_time(pid), worker.record.job, worker.id, told=False
            )
    parts.store.restore({name: fd for name, fd in parts.kept.items() if name.startswith("spill")})
    for worker in workers:
        if worker.record.actor:
            parts.host.restore(worker)
            parts.leases.end_if_homeless(worker)
        else:
            parts.leases.restore(worker, parts.clients.get(worker.record.client))


def _refuse_strange_clients(parts: Parts, alive: set[str]) -> None:
    """Before anything is changed: who cannot attach ends, though the daemon of its version may come back."""
    records = [msgspec.msgpack.decode(p, type=ClientRecord) for _, p in parts.ledger.clients.items()]
    versions = [(f"pid {r.pid}", r.version) for r in records if r.remote or start_time(r.pid) == r.start_time]
    for wid, payload in parts.ledger.workers.items():
        worker = msgspec.msgpack.decode(payload, type=WorkerRecord)
        if isinstance(wid, bytes) and wid.decode() in alive:
            versions.append((f"worker {wid.decode()} (pid {worker.pid})", worker.version))
    for who, version in versions:
        if version and (reason := unusable(version)):
            raise StartError(
                f"{who} runs here and speaks protocol {version}, this daemon {m.PROTOCOL_VERSION}: {reason}. "
                f"Nothing has ended: what runs waits {parts.config.daemon_grace:g} s for a daemon that it knows"
            )


def catch_up(parts: Parts, welcome: Any) -> None:
    """The head knows what is here: now what has happened meanwhile."""
    if parts.head is not None:
        parts.jobs.configs.update(parts.head.jobs.configs())
        for id_ in {*parts.head.actors_of(parts.number), *parts.host.hosted}:
            parts.store.await_holders(id_)
    for packet in welcome.exits:
        parts.pool.on_packet(packet)
    alive = {w["wid"]: w["pid"] for w in welcome.workers}
    parts.pool.forget_unknown(alive, {packet["wid"] for packet in welcome.exits})
    for client in list(parts.clients.values()):
        if client.kind == "driver":
            if client.remote:
                parts.control.expect_back(client)
            else:
                parts.control.watch(client)
    parts.directory.need_homes()
    parts.store.settle()
    parts.leases.kick()
