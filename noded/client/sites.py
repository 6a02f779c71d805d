"""The lines that have made this process's refs, recorded on request (NODED_RECORD_REF_CREATION_SITES=1).

Off, nothing here is made, and nothing is looked at on the way of a put or a submission: it is recorded by putting
functions of its own in front of those that make refs.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noded.client.runtime import Runtime

VARIABLE = "NODED_RECORD_REF_CREATION_SITES"
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_RECEIVED = "(received)"
_CLEANED_AT_ONCE = 8
"""More than are made at once: what is left behind is caught up with."""


def record(runtime: Runtime, environment: Mapping[str, str]) -> None:
    """From now on, if this environment says so."""
    if runtime.sites is None and wanted(environment):
        runtime.sites = Sites(runtime)


def wanted(environment: Mapping[str, str]) -> bool:
    return environment.get(VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


class Sites:
    """``install`` puts it in front of what makes refs in this runtime."""

    def __init__(self, runtime: Runtime):
        self._holds = runtime.holds.holds
        self._sites: dict[bytes, str] = {}
        self._texts: dict[tuple[Any, int], str] = {}
        self._refs: dict[bytes, weakref.ref[Any]] = {}
        self._dead: deque[bytes] = deque()
        """Of these the ref is gone; a view may still hold the object."""
        self._install(runtime)

    def __len__(self) -> int:
        self._clean(len(self._dead))
        return len(self._sites)

    def of(self, id_: bytes) -> str:
        return self._sites.get(id_, "")

    def _install(self, runtime: Runtime) -> None:
        objects, tasks = runtime.objects, runtime.tasks
        put, prepare, borrowed = objects.put, tasks.prepare, objects._make_remote

        def recorded_put(value: Any) -> Any:
            ref = put(value)
            self._note([ref], _here())
            return ref

        def recorded_prepare(*args: Any, **kwargs: Any) -> Any:
            task = prepare(*args, **kwargs)
            self._note([*task.refs, *([task.place] if task.place is not None else [])], _here())
            return task

        def recorded_borrow(id_: bytes, token: Any) -> Any:
            ref = borrowed(id_, token)
            self._note([ref], _here(), received=True)
            return ref

        for thing, name, function in (
            (objects, "put", recorded_put),
            (tasks, "prepare", recorded_prepare),
            (objects, "_make_remote", recorded_borrow),
        ):
            setattr(thing, name, function)

    def _note(self, made: Iterable[Any], frame: Any, *, received: bool = False) -> None:
        text = self._text(frame) if frame is not None else ""
        if received:
            text = f"{_RECEIVED} {text}".strip()
        for ref in made:
            id_ = ref.binary()
            self._sites[id_] = text or "(unknown)"
            self._refs[id_] = weakref.ref(ref, self._forgetter(id_))
        self._clean(_CLEANED_AT_ONCE)

    def _forgetter(self, id_: bytes) -> Callable[[Any], None]:
        dead = self._dead
        return lambda _: dead.append(id_)

    def _text(self, frame: Any) -> str:
        key = frame.f_code, frame.f_lineno
        found = self._texts.get(key)
        if found is None:
            found = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
            self._texts[key] = found
        return found

    def _clean(self, most: int) -> None:
        """Forget those whose ref is gone, unless the process holds the object in another way."""
        for _ in range(min(most, len(self._dead))):
            try:
                id_ = self._dead.popleft()
            except IndexError:
                return
            known = self._refs.get(id_)
            if known is not None and known() is not None:
                continue  # another ref of it was made since
            if id_ in self._holds:
                self._dead.append(id_)
            else:
                self._sites.pop(id_, None)
                self._refs.pop(id_, None)


def _here() -> Any:
    """The frame of the user's code that has called us; None when there is none."""
    frame: Any = sys._getframe(2)
    while frame is not None and _is_others(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _is_others(path: str) -> bool:
    """It is noded's, or of the standard library."""
    return path.startswith((_OURS, "<frozen ")) or (path.startswith(_STDLIB) and "site-packages" not in path)
