"""``connect`` and ``disconnect`` of drivers on other machines, which this version of noded has not got."""

from __future__ import annotations

from typing import Any, NoReturn


def connect(
    conn_str: str,
    secure: bool = False,
    metadata: list[tuple[str, str]] | None = None,
    connection_retries: int = 3,
    job_config: Any = None,
    namespace: str | None = None,
    *,
    ignore_version: bool = False,
    _credentials: Any = None,
    ray_init_kwargs: dict[str, Any] | None = None,
) -> NoReturn:
    """Raises NotImplementedError: use ``noded.init(address=…)`` on a machine of the cluster."""
    raise NotImplementedError(
        f"noded.util.connect({conn_str!r}): drivers on other machines are not supported by this version of noded yet; "
        "run the program on a machine of the cluster, with noded.init(address=...)"
    )


def disconnect() -> None:
    """Nothing: there is never such a connection."""
