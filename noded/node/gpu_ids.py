"""CUDA_VISIBLE_DEVICES: what the daemon was given, and what it gives to tasks.

The user's own value wins: it says how many GPUs there are and what they are called. An id is what stands between
the commas, a number or a name (`GPU-…`, `MIG-…`); names are opaque here. CUDA ignores everything from the first id on
that it does not understand, so `-1`, `NoDevFiles` and the empty string hide all. Who finds the devices: see
`gpu_detector.py`; who gets which: `policy/devices.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"
_NAMES = ("GPU-", "MIG-")


def visible_ids(environ: Mapping[str, str]) -> list[str] | None:
    """The ids the environment allows, each once; None when it does not restrict them."""
    text = environ.get(VARIABLE)
    if text is None:
        return None
    ids: dict[str, None] = {}
    for word in text.split(","):
        id_ = word.strip()
        if id_.isascii() and id_.isdecimal():
            id_ = str(int(id_))
        elif not id_.startswith(_NAMES):
            break
        ids[id_] = None
    return list(ids)


def ids_for(environ: Mapping[str, str], count: int) -> list[str]:
    """The ids of a node that was told how many GPUs it has, found or not; ValueError when the environment allows
    fewer.
    """
    allowed = visible_ids(environ)
    if allowed is None:
        return [str(index) for index in range(count)]
    if len(allowed) < count:
        raise ValueError(
            f"{count} GPUs were asked for, but {VARIABLE}={environ[VARIABLE]!r} allows {len(allowed)}: "
            f"unset it, or name more devices in it, or ask for fewer"
        )
    return allowed[:count]


def visible(ids: Sequence[str]) -> str:
    """The variable's value for a process that may use these; without any it sees none."""
    return ",".join(ids)
