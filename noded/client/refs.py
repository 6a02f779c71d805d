"""ObjectRef, and what this process holds.

An ObjectRef is a handle and, for small values of this process, the place of the value itself; then nobody
else knows of it. As soon as an id is known outside (published, stored, borrowed) the process has one ``Hold``
for it, counted by ``Token`` objects: one per ObjectRef, actor handle or live zero-copy view. Tokens may die
anywhere, in any thread, so their ``__del__`` only appends to a deque; counts change under the runtime's lock.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from noded import ids
from noded.client import codec

if TYPE_CHECKING:
    from concurrent.futures import Future

PENDING, INLINE, LOCAL, STORED, FAILED, REMOTE, AWAY = range(7)
"""States of a ref. PENDING: its task has not answered. INLINE: ``_value`` is the serialised value. LOCAL:
``_value`` is an immutable Python value. STORED: ``_value`` is (offset, size) in the arena, or (the bytes, size) read
from a file; it may become AWAY under the runtime's lock, unless the hold is pinned. FAILED: ``_value`` is an exception
or a serialised error. REMOTE: the daemon will know. AWAY: it is there, on another node, or on this one in a place that
we do not know; ``_value`` is (that node's number, size), and who wants the value makes it REMOTE.
"""

T = TypeVar("T")

own_prefix = b""
"""This process's id prefix; set by the runtime."""


class ObjectRef(msgspec.Struct, Generic[T], weakref=True, eq=False, dict=False):
    """A reference to a value that exists now or will. Get it with ``noded.get``; pass it to tasks; await it."""

    _seq: int
    _index: int = 0
    _state: int = PENDING
    _value: Any = None
    _token: Any = None
    _task: Any = None
    _id: bytes | None = None

    def binary(self) -> bytes:
        """The 16 bytes of the id."""
        if self._id is None:
            self._id = ids.object_id(own_prefix, self._seq, self._index)
        return self._id

    def hex(self) -> str:
        return self.binary().hex()

    def is_nil(self) -> bool:
        return False

    def __await__(self) -> Generator[Any, None, T]:
        return hooks.wait(self)

    def future(self) -> Future[T]:
        """A ``concurrent.futures.Future`` of the value."""
        return hooks.future(self)

    def as_future(self) -> Any:
        """An asyncio future of the value, for the running loop."""
        import asyncio

        return asyncio.wrap_future(self.future())

    def task_id(self) -> ids.HexId:
        """The id, in hex, of the task that makes this value."""
        id_ = self.binary()
        return ids.HexId(ids.task_id(ids.prefix_of(id_), ids.seq_of(id_)).hex())

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __reduce__(self) -> Any:
        found = codec.reduce_entry(self, self.binary())
        if found is None:  # pickled by the user: who knows where it goes, so it is kept as long as this process
            hooks.pin(self)
            return load_pickled, (self.binary(),)
        return found

    def __copy__(self) -> ObjectRef[T]:
        return self

    def __deepcopy__(self, memo: Any) -> ObjectRef[T]:
        return self


class Hooks:
    """What a ref can do only with a runtime; set by it."""

    wait: Callable[[ObjectRef[Any]], Generator[Any, None, Any]]
    future: Callable[[ObjectRef[Any]], Future[Any]]
    pin: Callable[[Any], None]
    """Keep what is pickled outside of noded's values alive and known."""
    borrow: Callable[[bytes], Any]

    def forget(self, pin: Callable[[Any], None]) -> None:
        """The runtime with this ``pin`` has ended."""
        if self.__dict__.get("pin") == pin:
            self.__dict__.clear()

    def __getattr__(self, name: str) -> Any:
        return _unconnected if name == "wait" else _refuse()


def _refuse() -> list[Any]:
    raise RuntimeError("this needs a connection to a cluster: call noded.init() first")


def _unconnected(ref: ObjectRef[Any]) -> Generator[Any, None, Any]:
    """``await`` without a runtime; whoever was waiting when it ended is told why."""
    if isinstance(ref._value, BaseException):
        raise ref._value
    yield from _refuse()


hooks = Hooks()


def load_pickled(id_: bytes) -> Any:
    """A ref that was pickled outside of noded's values."""
    return hooks.borrow(id_)


_RECEIVERS = 2000
After = tuple[bytes, int, list[tuple[bytes, int]]]
"""(id, generation, the positions of others that come first)"""


class Hold:
    """What keeps an id alive at the daemon on behalf of this process."""

    __slots__ = ("after", "count", "generation", "id", "maker", "nested", "pins", "ref")

    def __init__(self, id_: bytes, generation: int):
        self.id = id_
        self.generation = generation
        self.count = 0
        self.pins = 0
        """Uses of its place in the arena: views, calls that are under way with it."""
        self.after: dict[bytes, int] | None = None
        """Control positions of other clients that the daemon must have read before it applies our release."""
        self.ref: weakref.ref[Any] | None = None
        self.maker: tuple[bytes, int] | None = None
        """The worker of another node that has stored it, and the position where it told its daemon so."""
        self.nested: list[Any] | None = None
        """The refs inside the stored value, made once."""

    def give_after(self, prefix: bytes, seq: int) -> None:
        """This client has got the id from us, and has said so at ``seq``."""
        if self.after is None:
            self.after = {prefix: seq}
            return
        self.after[prefix] = max(seq, self.after.pop(prefix, 0))
        if len(self.after) > _RECEIVERS:  # more than a node has at once: the first of them are long dead
            del self.after[next(iter(self.after))]


class Token:
    """One reason to keep a Hold."""

    __slots__ = ("_dead", "hold")

    def __init__(self, hold: Hold, dead: deque[Hold]):
        hold.count += 1
        self.hold = hold
        self._dead = dead

    def __del__(self) -> None:
        self._dead.append(self.hold)


class Pin(Token):
    """A reason to keep also its place in the arena."""

    __slots__ = ()

    def __init__(self, hold: Hold, dead: deque[Hold]):
        hold.pins += 1
        super().__init__(hold, dead)


class HoldTable:
    """All holds of this process and the changes the daemon has not been told yet. Every method needs the
    runtime's lock.
    """

    def __init__(self) -> None:
        self.dead: deque[Hold] = deque()
        self.unpinned: deque[Hold] = deque()
        self.holds: dict[bytes, Hold] = {}
        self.taken: list[tuple[bytes, int]] = []
        self.given: list[tuple[bytes, int]] = []
        self.given_after: list[After] = []
        self.on_first: Callable[[], None] = lambda: None
        """Called when the first hold is taken: somebody must look from now on whether it was dropped."""
        self._generation = 0

    def take(self, id_: bytes, *, implicit: bool = False) -> Token:
        """A token for this id. ``implicit``: the daemon already counts us (generation 0)."""
        hold = self.holds.get(id_)
        if hold is None:
            if implicit:
                hold = Hold(id_, 0)
            else:
                self._generation += 1
                hold = Hold(id_, self._generation)
                self.taken.append((id_, hold.generation))
            self.holds[id_] = hold
            if len(self.holds) == 1:
                self.on_first()
        return Token(hold, self.dead)

    def is_ours(self, token: Token) -> bool:
        """False for one that a runtime of before made."""
        return token._dead is self.dead

    def again(self, hold: Hold) -> Token:
        return Token(hold, self.dead)

    def pin(self, hold: Hold) -> Pin:
        return Pin(hold, self.unpinned)

    def collect(self) -> None:
        """Turn dead tokens into releases."""
        dead, unpinned = self.dead, self.unpinned
        while unpinned:
            hold = unpinned.popleft()
            hold.pins -= 1
            dead.append(hold)
        while dead:
            hold = dead.popleft()
            hold.count -= 1
            if hold.count == 0 and self.holds.get(hold.id) is hold:
                del self.holds[hold.id]
                hold.nested = None
                if hold.after is None:
                    self.given.append((hold.id, hold.generation))
                else:
                    self.given_after.append((hold.id, hold.generation, list(hold.after.items())))

    def changed(self) -> bool:
        return bool(self.dead or self.unpinned or self.taken or self.given or self.given_after)

    def drain(self) -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int]], list[After]]:
        """The changes since the last drain: (taken, given, given after)."""
        self.collect()
        out = self.taken, self.given, self.given_after
        self.taken, self.given, self.given_after = [], [], []
        return out

    def snapshot(self) -> tuple[list[tuple[bytes, int]], list[After]]:
        """For a new daemon: all holds, which contain the changes; and what was given after others, of which that daemon
        may know later than of us.
        """
        _, _, after = self.drain()
        return [(hold.id, hold.generation) for hold in self.holds.values()], after


def borrowed(id_: bytes, table: HoldTable, make: Callable[[bytes, Token], Any]) -> Any:
    """The one ref (or handle) of this process for an id that came in a value."""
    hold = table.holds.get(id_)
    if hold is not None and hold.ref is not None:
        found = hold.ref()
        if found is not None:
            return found
    token = table.take(id_)
    made = make(id_, token)
    token.hold.ref = weakref.ref(made)
    return made
