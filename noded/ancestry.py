"""The processes that a daemon depends on: its spawner, which is replaced when it dies, and the program that owns a
private node.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select

from noded.parts import Parts

log = logging.getLogger("noded.daemon")

_ABSENCE_SINCE = 3
"""Version of the spawner's protocol."""
_ABSENCE_SECONDS = 4.0
"""So long a head's daemon that has died may take to be there again, before its nodes are told that it is away."""


class Ancestry:
    def __init__(self, parts: Parts):
        self._parts = parts
        self._owner_fd = -1
        self._replacing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ the owner

    def watch_owner(self) -> None:
        parts = self._parts
        if parts.config.owner_pid is None:
            return
        try:
            self._owner_fd = os.pidfd_open(parts.config.owner_pid)
        except OSError:
            parts.ending.ask()
            return
        parts.loop.add_reader(self._owner_fd, parts.ending.ask)

    def _owner_has_ended(self) -> bool:
        return self._owner_fd >= 0 and bool(select.select([self._owner_fd], [], [], 0)[0])

    def forget_owner(self) -> None:
        if self._owner_fd >= 0:
            self._parts.loop.remove_reader(self._owner_fd)
            os.close(self._owner_fd)

    # ------------------------------------------------------------ the spawner

    def tell_of_absence(self) -> None:
        """Nodes that wait for this head are to know that it is dead and not silent."""
        config, spawner = self._parts.config, self._parts.spawner
        if config.head and not config.private and spawner.protocol >= _ABSENCE_SINCE:
            spawner.send({"t": "absence", "name": "tcp", "after": _ABSENCE_SECONDS})

    def on_spawner_lost(self) -> None:
        """Its workers died with it. Start another and give it everything to keep."""
        parts = self._parts
        if parts.ending.asked.is_set() or self._owner_has_ended():
            parts.ending.ask()  # the spawner has seen before us that all is to end
            return
        if parts.config.supervised:  # who has started it sees its end, and starts everything anew
            log.error("the process that keeps this daemon running has ended: this node ends")
            parts.ending.exit_code = 1
            parts.ending.ask("its supervisor has ended")
            return
        self._replacing = parts.loop.create_task(self._new_spawner(), name="new spawner")
        self._replacing.add_done_callback(self._replaced)

    async def _new_spawner(self) -> None:
        parts = self._parts
        await parts.pool.await_ends()
        parts.pool.spawner_lost()
        await parts.spawner.start(parts.epoch)
        parts.spawner.attach(parts.loop)
        for name, fd in (
            ("ledger", parts.ledger.fd),
            ("arena", parts.arena.fd),
            ("tcp", parts.sockets[0].fileno()),
            ("control", parts.sockets[1].fileno()),
        ):
            parts.spawner.keep(name, fd)
        parts.spilling.keep_locks(again=True)
        self.tell_of_absence()
        parts.pool.prepare()
        parts.leases.kick()

    def _replaced(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.critical("%s failed", task.get_name(), exc_info=task.exception())
            self._parts.ending.exit_code = 1
            self._parts.ending.ask()
