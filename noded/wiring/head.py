"""Builds the tables of a head: before the node, for it may be one of them that gives the node its number."""

from __future__ import annotations

from noded.head.head import Head
from noded.head.storage import Storage
from noded.parts import Parts


def build_head(parts: Parts, storage: Storage) -> Head:
    def may_create(prefix: bytes) -> bool:
        """This client has not told yet what it had asked the daemon before us."""
        client = parts.clients.get(prefix)
        return client is not None and not client.told

    return Head(
        parts.loop,
        storage,
        cluster=parts.config.cluster,
        head_grace=parts.config.head_grace,
        python=parts.python,
        may_create=may_create,
        local_clients=lambda prefix: prefix in parts.clients or bool(parts.store.recovering),
        store_package=lambda uri, data: parts.packages.keep(uri, data),
        read_package=lambda uri: parts.environments.read(uri),
        emit=lambda *args, **fields: parts.events.emit(*args, **fields),
        on_write=parts.metrics.on_write,
    )
