"""The node daemon: builds the components in order, runs, stops them in reverse.

``foreground.py`` runs it. A node is the head, with the cluster's tables in this process
(``head/head.py``), or a member with a connection to it (``node/head_link.py``); all else is the same. What a component
does is in its own module, who gets whom in ``wiring/``; this one only says what happens at start, restart and stop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from noded import takeover
from noded.ancestry import Ancestry
from noded.announce import report_ready
from noded.config import Config, ConfigError, log_dir, make_dir, make_node_dir, remove_node_dir
from noded.entrance import Entrance
from noded.head.storage import Storage, StorageError, Superseded
from noded.housekeeping import Housekeeper
from noded.membership import Membership
from noded.node.doors import Doors
from noded.node.head_link import JoinError
from noded.node.ledger import LedgerError
from noded.node.listener import Listener, ListenError
from noded.node.oom import protect_daemon
from noded.node.spawner_link import SpawnerLink
from noded.parts import Parts
from noded.service import notify_systemd
from noded.startup import StartError, address_of, adopt_memory, find_token, new_memory, open_sockets, open_storage
from noded.wire.handshake import HandshakeError
from noded.wiring import build_node
from noded.wiring.head import build_head

log = logging.getLogger("noded.daemon")

_FOLD_SECONDS = 10.0
SUPERSEDED_EXIT = 3
"""The exit code of a head in whose place there is another: to start it again would make them take turns."""


_CANNOT_START = (ConfigError, StorageError, LedgerError, ListenError, JoinError, HandshakeError, OSError, RuntimeError)
"""What the user or the machine is at fault for: one line without a traceback."""


class Daemon:
    """One node: the head, or a member."""

    def __init__(self, config: Config, *, on_ready: Callable[[], None]):
        self.parts = Parts(config)
        self._on_ready = on_ready
        self._membership = Membership(self.parts)
        self._entrance = Entrance(self.parts)
        self._ancestry = Ancestry(self.parts)
        self._housekeeper = Housekeeper(self.parts, self._membership)
        self._storage_watch: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ start

    async def run(self) -> int:
        """Serve until asked to stop; the exit code."""
        parts = self.parts
        parts.loop = asyncio.get_running_loop()
        parts.loop.add_signal_handler(signal.SIGINT, parts.ending.ask)
        parts.loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        try:
            await self.start()
        except BaseException as error:
            await self._undo_start()
            if isinstance(error, StartError):
                raise
            if isinstance(error, _CANNOT_START):
                raise StartError(str(error)) from error
            raise
        report_ready(parts)
        self._on_ready()
        await parts.ending.asked.wait()
        await (self._leave() if parts.ending.leaving else self.stop())
        return parts.ending.exit_code

    async def start(self) -> None:
        parts = self.parts
        config = parts.config
        protect_daemon()
        self._make_directories()
        parts.token = find_token(config)
        parts.doors = Doors(parts.loop, parts.token, config.tls)
        if config.head:
            parts.storage = await self._unless_stopped(open_storage(config, parts.run_dir, parts.token))
            self._storage_watch = parts.loop.create_task(self._watch_storage(parts.storage), name="watch storage")
        self._membership.read_standing()
        if not config.head:
            await self._membership.be_numbered()
        parts.spawner = SpawnerLink(
            parts.run_dir,
            parts.tag,
            grace=config.daemon_grace,
            owner_pid=config.owner_pid,
            on_packet=lambda packet: parts.pool.on_packet(packet),
            on_lost=self._ancestry.on_spawner_lost,
            may_start=not (config.given_spawner or config.supervised),
        )
        welcome = await parts.spawner.start(0)
        parts.epoch = welcome.epoch
        parts.kept = welcome.fds
        parts.spawner.attach(parts.loop)
        parts.recovered = "ledger" in parts.kept and "arena" in parts.kept
        self._open_memory()
        self._open_sockets()
        self._ancestry.tell_of_absence()
        if parts.storage is not None:
            parts.head = build_head(parts, parts.storage)
            parts.number = await parts.head.restore(parts.number, parts.cluster_id)
            parts.cluster_id = parts.head.cluster_id
        self._membership.write_standing()
        build_node(parts, self._membership, self._entrance, welcome.guard_until)
        if parts.recovered:
            parts.leases.capacity.restore_groups()  # before the leases, which may be in them
            takeover.restore(parts, welcome)
        parts.leases.capacity.restore_devices()
        if parts.head is not None:
            parts.head.start(
                self._membership.me(),
                parts.orders,
                parts.host.told(),
                parts.orders.held_groups(),
                parts.jobs.driven(),
            )
        if parts.recovered:
            takeover.catch_up(parts, welcome)
        await self._start_components()

    async def _start_components(self) -> None:
        parts = self.parts
        await parts.book.start()  # not before: the spawner is listened to, and its packets need what is restored
        await parts.environments.start()
        parts.stacks.start()
        await asyncio.to_thread(parts.pages.start)
        parts.collectors.add("pages", parts.pages.fold, deadline=_FOLD_SECONDS)
        parts.pages.on_ended = partial(parts.collectors.wake, "pages")
        parts.gpus.start(parts.loop, parts.leases)
        parts.logs.monitor.start(parts.collectors)
        parts.control.start(parts.sockets[1])
        parts.listener.start(parts.loop)
        parts.probe.start(parts.loop, parts.listener.beat)
        if parts.link is not None:
            await parts.link.join()
        parts.pool.prepare()
        parts.memory.start(parts.loop)
        await parts.records.start(self._membership.me(), recovered=parts.recovered)
        self._ancestry.watch_owner()
        self._housekeeper.start()

    async def _unless_stopped(self, opening: Coroutine[Any, Any, Storage]) -> Storage:
        """A Redis that is away is waited for, and that may be given up."""
        task = asyncio.ensure_future(opening)
        stopping = asyncio.ensure_future(self.parts.ending.asked.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            while not task.done():
                # Redis's client loses a cancel that comes while it connects; the next one ends what was begun anew.
                task.cancel()
                await asyncio.wait({task}, timeout=0.5)
            if task.cancelled():
                raise StorageError("stopped while waiting for the head's storage")
            return task.result()
        finally:
            stopping.cancel()

    async def _watch_storage(self, storage: Storage) -> None:
        """What the storage cannot get over ends the daemon, in this one way."""
        error = await storage.ending.wait()
        ending = self.parts.ending
        if isinstance(error, Superseded):
            log.critical(
                "superseded by epoch %d: another head has taken over this cluster (storage %s, our epoch was %d); this "
                "one ends, with all that runs on its node",
                error.current,
                storage.health.kind,
                error.epoch,
            )
            ending.superseded, ending.exit_code = True, SUPERSEDED_EXIT
        else:
            # As by SIGKILL: workers wait for the daemon that is started in this one's place.
            log.critical("the head's state cannot be kept", exc_info=error)
            ending.exit_code = 1
            ending.leaving = True
        ending.ask()

    def _make_directories(self) -> None:
        parts = self.parts
        make_node_dir(parts.config)
        os.makedirs(os.path.join(parts.run_dir, "w"), mode=0o700, exist_ok=True)
        parts.log_dir = os.path.join(parts.run_dir, "logs") if parts.config.private else str(log_dir(parts.config))
        make_dir(Path(parts.log_dir))  # before the token and the storage: nobody else reads what is above it

    def _open_memory(self) -> None:
        """Arena and ledger: those of the daemon before us, else new ones."""
        parts = self.parts
        if parts.recovered:
            parts.ledger, parts.arena = adopt_memory(parts.kept)
            parts.ledger.epoch = max(parts.ledger.epoch + 1, parts.epoch)
        else:
            parts.ledger, parts.arena = new_memory(parts.config.object_store_memory, parts.epoch, parts.spawner)
        parts.epoch = parts.ledger.epoch
        parts.node_id = parts.ledger.incarnation.hex()

    def _open_sockets(self) -> None:
        parts = self.parts
        parts.sockets = open_sockets(parts.config, parts.run_dir, parts.kept, parts.spawner)
        tcp = parts.sockets[0]
        parts.address = address_of(parts.config, tcp)
        parts.listener = Listener(
            tcp, parts.token, self._entrance.on_http, self._entrance.on_door, parts.doors.server_tls
        )

    async def _undo_start(self) -> None:
        """A start that failed leaves nothing; workers of the daemon before us are left to their grace."""
        parts = self.parts
        if parts.link is not None:
            await parts.link.stop("")
        if hasattr(parts, "listener"):
            parts.listener.stop()
        self._stop_watching_storage()
        if parts.storage is not None:
            await parts.storage.close()
        if not hasattr(parts, "spawner") or not parts.spawner.connected:
            self._remove_unused_dir()  # a spawner that did not take us still has its workers there
            return
        if parts.recovered or parts.config.given_spawner:
            parts.spawner.close()
            return
        await parts.spawner.stop()
        remove_node_dir(Path(parts.run_dir))

    def _remove_unused_dir(self) -> None:
        run_dir = self.parts.run_dir
        if not os.path.exists(os.path.join(run_dir, "spawner.sock")):
            remove_node_dir(Path(run_dir))

    # ------------------------------------------------------------ stop

    def _on_sigterm(self) -> None:
        """The full stop; but a service manager that runs the spawner as a service of its own means us alone."""
        # A unit of noded before --given-spawner has only the second.
        # There may be no spawner yet, while the storage or the head is waited for.
        parts = self.parts
        given = hasattr(parts, "spawner") and parts.spawner.given and bool(os.environ.get("NOTIFY_SOCKET"))
        parts.ending.leaving = not parts.config.supervised and (parts.config.given_spawner or given)
        parts.ending.ask()

    async def _leave(self) -> None:
        """End as by SIGKILL, but with what is written: the next daemon finds spawner and workers."""
        parts = self.parts
        notify_systemd("STOPPING=1")
        await self._stop_listening()
        if parts.link is not None:
            await parts.link.stop("")
        if parts.head is not None:
            await parts.head.leave()
        self._stop_watching_storage()
        await self._stop_exchange()
        parts.control.stop()
        parts.readers.stop()
        await parts.spilling.stop(delete=False)
        await parts.logs.stop(ended=False)
        await parts.environments.stop()
        await parts.records.stop("")
        await parts.stacks.stop(ended=False)
        await parts.book.stop()
        parts.spawner.close()
        if parts.storage is not None:
            await parts.storage.close()

    async def _stop_listening(self) -> None:
        """Nothing is looked at any more, and nobody comes any more."""
        parts = self.parts
        await self._housekeeper.stop()
        await parts.memory.stop()
        parts.metrics.stop()
        parts.collectors.stop()
        await parts.gpus.stop()
        parts.probe.stop()
        parts.listener.stop()
        await parts.gateway.stop()

    def _stop_watching_storage(self) -> None:
        if self._storage_watch is not None:
            self._storage_watch.cancel()

    async def _stop_exchange(self) -> None:
        """No more objects and leases between nodes."""
        parts = self.parts
        await parts.directory.stop()
        await parts.puller.stop()
        await parts.transfers.stop()
        parts.peers.stop()
        await parts.doors.stop()

    async def stop(self) -> None:
        """Staged, in reverse order of start: no new work, end the workers, close."""
        parts, ending = self.parts, self.parts.ending
        notify_systemd("STOPPING=1")
        parts.pool.stopping = True
        await self._stop_listening()
        if parts.head is not None and ending.superseded:
            await parts.head.leave()  # the other nodes belong to the head that has taken over
        elif parts.head is not None:
            await parts.head.stop("the head was stopped")
        self._stop_watching_storage()
        await parts.logs.last_words_of_all()
        parts.control.stop()
        parts.readers.stop()
        await parts.environments.stop()
        await parts.spawner.stop()
        if parts.link is not None:  # now that nothing of it runs any more
            await parts.link.stop("" if ending.starts_over else ending.reason or "it was stopped")
        await self._stop_exchange()
        await parts.spilling.stop(delete=True)
        await parts.logs.stop(ended=True)
        await parts.book.stop()
        await parts.stacks.stop(ended=True)
        if parts.storage is not None:
            await parts.storage.close()
        for sock in parts.sockets:
            sock.close()
        self._ancestry.forget_owner()
        await parts.records.stop(ending.reason or "it was stopped")
        parts.arena.close(unmap=True)
        parts.ledger.close()
        remove_node_dir(Path(parts.run_dir))
        if ending.starts_over:
            # Under its number: programs of this node, which live on, have made ids with it.
            make_node_dir(parts.config)
            self._membership.write_standing()
