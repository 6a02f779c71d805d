"""`noded purge`: remove what a head has kept of its cluster, after its last one has ended.

What is in the storage is all that is removed: logs, the token and what a journal holds stay where they are.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

import click

from noded.config import Config, cluster_dir, node_dir, node_in, read_token, storage_namespace


def purge(config: Config, env: Mapping[str, str], *, yes: bool, force: bool) -> None:
    """Raises ConfigError."""
    namespace = _namespace(config, env)
    place = f"Redis ({config.redis})" if config.redis is not None else str(cluster_dir(config) / "head.db")
    if not force:
        _refuse_beside_head(config)
    if not yes:
        click.confirm(f"Remove the storage namespace {namespace} from {place}?", abort=True)
    from noded.head.storage import StorageError

    try:
        count = _purge(config, namespace, force)
    except StorageError as error:
        hint = "; noded stop it, or --force" if "still runs" in str(error) else ""
        raise click.ClickException(f"{error}{hint}") from None
    what = "keys" if config.redis is not None else "records"
    click.echo(f"removed {count} {what[:-1] if count == 1 else what} of namespace {namespace} from {place}")


def _namespace(config: Config, env: Mapping[str, str]) -> str:
    if config.storage_namespace is not None or config.redis is None:
        return storage_namespace(config, b"")
    token = read_token(config.home, env)
    if token is None:
        raise click.UsageError(
            "the default namespace in Redis follows from the cluster's token, and there is none here: give "
            "--storage-namespace, or NODED_TOKEN"
        )
    return storage_namespace(config, token)


def _refuse_beside_head(config: Config) -> None:
    """The head of this cluster on this machine, whatever it keeps where."""
    node = node_in(node_dir(config))
    if node is not None and node.runs():
        raise click.ClickException(
            f"a head of cluster {config.cluster} on this machine, pid {node.pid}, still runs; noded stop it, or --force"
        )


def _purge(config: Config, namespace: str, force: bool) -> int:
    if config.redis is None:
        from noded.head.storage.purge import purge_sqlite

        return purge_sqlite(cluster_dir(config) / "head.db", namespace)
    from noded.head.storage.purge import purge_redis
    from noded.startup import redis_access

    return asyncio.run(purge_redis(redis_access(config, os.environ), namespace, force=force))
