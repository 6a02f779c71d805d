"""``list_named_actors``: who can be found with ``get_actor``."""

from __future__ import annotations

from typing import Any

from noded.client.runtime import runtime


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of the living named actors of this program's namespace.

    With ``all_namespaces`` a list of ``{"name": …, "namespace": …}`` of all of them.
    """
    rt = runtime()
    found: list[dict[str, str]] = rt.ask("named_actors")
    if all_namespaces:
        return found
    return [one["name"] for one in found if one["namespace"] == rt.namespace]
