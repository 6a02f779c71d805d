"""How this process holds objects, for `noded memory`: views, arguments of pending tasks, the lines that made the refs.

Called by the helper thread under the runtime's lock, for some of its objects at a time.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from noded.client.refs import ObjectRef

if TYPE_CHECKING:
    from noded.client.runtime import Runtime


def tell(runtime: Runtime, wanted: list[bytes], *, how: bool) -> dict[str, Any]:
    """``holds``: (position in ``wanted``, how) where it is no mere reference. ``sites``: lines, None when they are not
    recorded; ``of``: for each in ``wanted`` the position of its line, or -1.
    """
    runtime.holds.collect()
    told: dict[str, Any] = {"holds": _holds(runtime, wanted) if how else [], "sites": None, "of": []}
    if runtime.sites is not None:
        positions: dict[str, int] = {}
        of = []
        for id_ in wanted:
            site = runtime.sites.of(id_)
            of.append(positions.setdefault(site, len(positions)) if site else -1)
        told["sites"], told["of"] = list(positions), of
    return told


def _holds(runtime: Runtime, wanted: list[bytes]) -> list[tuple[int, str]]:
    arguments, pins = _pending(runtime, set(wanted))
    found = []
    for at, id_ in enumerate(wanted):
        hold = runtime.holds.holds.get(id_)
        if hold is None:
            found.append((at, "result on its way to it"))
            continue
        ways = []
        views = hold.pins - pins[id_]
        if hold.count - hold.pins > 0:
            ways.append("local reference")
        if views > 0:
            ways.append("view" if views == 1 else f"{views} views")
        if id_ in arguments:
            ways.append(arguments[id_])
        if ways and ways != ["local reference"]:
            found.append((at, " + ".join(ways)))
    return found


def _pending(runtime: Runtime, wanted: set[bytes]) -> tuple[dict[bytes, str], Counter[bytes]]:
    """Of what is pending: whose arguments these are, and how often their places are in use by it."""
    arguments: dict[bytes, str] = {}
    pins: Counter[bytes] = Counter()

    def note(ref: Any, name: str) -> None:
        if type(ref) is ObjectRef and ref._token is not None and (id_ := ref.binary()) in wanted:
            arguments.setdefault(id_, f"argument of {name}")

    for task in runtime.tasks.open_tasks():
        name = f"the pending {'call' if task.method else 'task'} {task.name}"
        for _, ref in task.deps or ():
            note(ref, name)
        for ref in task.keep or ():
            note(ref, name)
        note(task.place, name)
        for pin in task.pins or ():
            pins[pin.hold.id] += 1
    for actor in runtime.actors.actors.values():
        if actor.creation is not None:
            for ref in actor.creation[2]:
                note(ref, f"the actor {actor.class_name}")
    return arguments, pins
