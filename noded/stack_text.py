"""The Python stacks of this process as text, like those of ``faulthandler``, but written in Python: whoever does so
holds Python's lock, so no frame changes while it is looked at. Never blocks, and reads no file.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from itertools import islice
from types import FrameType

_THREADS = 100
_FRAMES = 100


def own_stacks(*, with_caller: bool) -> str:
    """Of at most 100 threads, each with its most recent call first, 100 calls at most. ``with_caller``: also of the
    thread that calls this.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    me = threading.get_ident()
    frames = sys._current_frames()
    caller = frames.pop(me)
    lines = list(_lines("Current thread", me, names, caller.f_back)) if with_caller else []
    for ident, frame in islice(frames.items(), _THREADS - with_caller):
        lines += ["", *_lines("Thread", ident, names, frame)]
    if len(frames) > _THREADS - with_caller:
        lines += ["", "..."]
    return "\n".join(lines).strip("\n")


def _lines(what: str, ident: int, names: dict[int | None, str], frame: FrameType | None) -> Iterator[str]:
    name = f" [{names[ident]}]" if ident in names else ""
    yield f"{what} {ident:#018x}{name} (most recent call first):"
    for _ in range(_FRAMES):
        if frame is None:
            return
        yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno or "?"} in {frame.f_code.co_name}'
        frame = frame.f_back
    if frame is not None:
        yield "  ..."
