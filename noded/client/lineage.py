"""How results that lie in an object store are made again when the nodes that had them are lost.

Of a task that may be repeated and whose result is too big to travel inside a message, the submitter remembers the
recipe: function, arguments, resources. Arguments in the object store are remembered by their ids alone, so that a
recipe keeps no memory of the store in use; one that is gone when it is needed is made again by its own recipe. The home
of a lost object asks for it (``Rebuild``) when somebody wants it, and is told (``Gone``) when that cannot be. Recipes
are bounded in number and bytes: the oldest go first, those of results that nobody here refers to before others.

What is put with ``put()``, items of generators, and results of what may not be repeated are not made again.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from noded import ids
from noded.client import refs
from noded.client.refs import INLINE, LOCAL, PENDING, HoldTable, ObjectRef
from noded.client.submission import Function, Task
from noded.wire import messages as m

MOST_BYTES = 64 << 20
MOST_RECIPES = 100_000
_RECIPE_BYTES = 500
"""What a recipe costs beside its arguments, about."""
_LOOKED_AT = 64
"""When recipes have to go, so many of the oldest are looked at for one that nobody misses."""
_REFUSALS = 10_000


class Home(Protocol):
    """What is needed of ``Objects``. Both need the runtime's lock."""

    def announce_locked(self, ref: ObjectRef[Any]) -> None:
        """This ref of ours gets a value (again), which the node is to have then, whatever it is."""

    def publish_locked(self, entry: Any) -> None: ...


class _Argument:
    """An argument as a recipe keeps it: the value of a small one, of others the id."""

    __slots__ = ("id", "ref", "slot")

    def __init__(self, slot: int, ref: ObjectRef[Any]):
        self.slot = slot
        self.id = ref.binary()
        self.ref: ObjectRef[Any] | None = None
        # A copy: what the user does with his own is not to keep it in the store as long as the recipe.
        if ref._token is None or ref._state in (INLINE, LOCAL):
            self.ref = ObjectRef(ref._seq, ref._index, ref._state, ref._value, None, None, self.id)

    def size(self) -> int:
        value = self.ref._value if self.ref is not None else b""
        return len(value) if isinstance(value, (bytes, memoryview, str)) else 0


class _Recipe:
    __slots__ = (
        "arguments", "class_name", "extra", "fn", "made_by", "method", "name", "nested", "payload", "results",
        "retries", "returns", "running", "seq", "size",
    )  # fmt: skip

    def __init__(self, task: Task, made_by: Any, class_name: str):
        self.seq = task.seq
        self.name = task.name
        self.payload = task.payload
        self.returns = task.returns
        fn = task.fn
        # Refs that a function closes over are kept by who has the function, and not by the recipe.
        self.fn: Callable[[], Function | None] = weakref.ref(fn) if fn is not None and fn.refs else lambda: fn
        self.method = task.method
        self.extra = task.extra
        self.retries = task.retries
        self.made_by = made_by
        """The queue that it was submitted to, or the id of its actor."""
        self.class_name = class_name
        self.arguments = [_Argument(slot, ref) for slot, ref in task.deps or ()]
        self.nested = [entry._token.hold.id for entry in task.keep or () if entry._token is not None]
        self.results = [weakref.ref(ref) for ref in task.refs]
        self.running: Task | None = None
        self.size = _RECIPE_BYTES + len(self.payload) + sum(a.size() for a in self.arguments)

    def needs(self) -> list[bytes]:
        """The ids of what is not kept here."""
        return [each.id for each in self.arguments if each.ref is None] + self.nested

    def is_missed(self) -> bool:
        return self.running is not None or any(result() is not None for result in self.results)


class Lineage:
    """Everything needs the runtime's lock. ``submit(task, queue)`` and ``call(actor, class name, task, token)`` hand in
    a task anew; ``waits_for(actor, number)``: the actor, which runs one call at a time, has been sent one with the
    result of that call as an argument; ``send(message)`` tells the node.
    """

    def __init__(
        self,
        holds: HoldTable,
        home: Home,
        send: Callable[[Any], None],
        submit: Callable[[Task, Any], None],
        call: Callable[[bytes, str, Task, Any], None],
        waits_for: Callable[[bytes, int], bool],
    ):
        self._holds = holds
        self._home = home
        self._send = send
        self._submit = submit
        self._call = call
        self._waits_for = waits_for
        self._recipes: OrderedDict[int, _Recipe] = OrderedDict()
        self._bytes = 0
        self._refusals: OrderedDict[int, str] = OrderedDict()
        """Results that cannot be made again, by the number of their task."""

    # ------------------------------------------------------------ remembering

    def remember(self, task: Task, actor: tuple[bytes, str] | None) -> None:
        """Its result lies in an object store, and it is about to let go of its arguments. ``actor``: of a call, the
        actor's id and class.
        """
        known = self._recipes.get(task.seq)
        if known is not None:  # it was made again
            return
        if not task.retries:
            option = "max_retries" if actor is None else "max_task_retries"
            self._refuse(task.seq, f"{task.name} may not be repeated ({option}=0)")
        elif task.place is not None:  # in the store, from which they are to go with the task
            self._refuse(
                task.seq, f"the arguments of {task.name} were too big to be kept: give it refs, and keep those"
            )
        elif task.returns < 0:
            self.remember_stream(task)
        else:
            made_by, class_name = (task.queue, "") if actor is None else actor
            recipe = self._recipes[task.seq] = _Recipe(task, made_by, class_name)
            self._bytes += recipe.size
            if self._bytes > MOST_BYTES or len(self._recipes) > MOST_RECIPES:
                self._forget_one()

    def remember_stream(self, task: Task) -> None:
        """An item of it lies in an object store."""
        if task.seq not in self._refusals:
            self._refuse(task.seq, f"{task.name} is a generator, whose items are not made again")

    def _refuse(self, seq: int, why: str) -> None:
        self._refusals[seq] = why
        if len(self._refusals) > _REFUSALS:
            self._refusals.popitem(last=False)

    def _forget_one(self) -> None:
        """Not one that is missed, if there is another."""
        for _ in range(min(_LOOKED_AT, len(self._recipes))):
            seq, recipe = next(iter(self._recipes.items()))
            if not recipe.is_missed():
                break
            self._recipes.move_to_end(seq)
        seq, recipe = self._recipes.popitem(last=False)
        self._bytes -= recipe.size
        if recipe.is_missed():
            self._refuse(
                seq, f"how {recipe.name} was called is not remembered any more: too many results came after it"
            )

    def knows(self, id_: bytes) -> bool:
        return id_.startswith(refs.own_prefix) and ids.seq_of(id_) in self._recipes

    # ------------------------------------------------------------ making again

    def on_rebuild(self, message: m.Rebuild) -> None:
        """The node says that these are lost, and wanted."""
        for id_ in message.ids:
            problem = self._rebuild(id_)
            if problem:
                self._send(m.Gone([id_], f"{message.reason}; it is not made again: {problem}", True))

    def _rebuild(self, id_: bytes) -> str:
        """Have the task of this object run again, after those that make what it needs; why that cannot be."""
        seq = ids.seq_of(id_)
        recipe = self._recipes.get(seq)
        ref = self._live(id_)
        if recipe is None and ref is not None and ref._state == PENDING:
            return ""  # its worker has died before it answered: it runs again already
        if recipe is None:
            return self._refusals.get(seq, "it is no result of a task that is remembered: it was put, or is too old")
        needed = {} if recipe.running is not None else self._needed(recipe)
        if isinstance(needed, str):
            return needed
        for each in needed.values():
            self._prepare(each)
        assert recipe.running is not None
        self._expect(recipe.running, ids.index_of(id_))
        for each in needed.values():  # before any of them can end
            self._fill(each)
        for each in needed.values():
            self._run(each)
        return ""

    def _needed(self, wanted: _Recipe) -> dict[int, _Recipe] | str:
        """The recipes to follow for one, itself among them; or why that cannot be. Not recursive: chains are long."""
        needed: dict[int, _Recipe] = {}
        looked_at = [wanted]
        while looked_at:
            recipe = looked_at.pop()
            if not recipe.retries:
                return f"{recipe.name} was repeated as often as it may be"
            if recipe.fn() is None and not recipe.method:
                return f"the function {recipe.name}, which refers to other objects, was dropped"
            if recipe.method and self._waits_for(recipe.made_by, recipe.seq):
                return f"the actor that made it, by {recipe.name}, waits for it in a later call"
            needed[recipe.seq] = recipe
            for id_ in recipe.needs():
                if ids.is_actor_id(id_):
                    if id_ not in self._holds.holds:
                        return (
                            f"the actor {id_.hex()} in the arguments of {recipe.name} is not referred to here any more"
                        )
                    continue
                if self._live(id_) is not None:
                    continue  # if its value is lost as well, who reads it finds that out
                seq = ids.seq_of(id_)
                found = self._recipes.get(seq) if id_.startswith(refs.own_prefix) else None
                if found is None:
                    why = self._refusals.get(seq, "") if id_.startswith(refs.own_prefix) else ""
                    dropped = f"the argument {id_.hex()} of {recipe.name} was dropped"
                    return f"{dropped}, and {why}" if why else dropped
                if found.running is None and seq not in needed:
                    looked_at.append(found)
        return needed

    def _prepare(self, recipe: _Recipe) -> None:
        results = [self._result(recipe.seq, at) for at in range(max(1, recipe.returns))]
        if recipe.retries > 0:
            recipe.retries -= 1
        recipe.running = task = Task(
            recipe.seq, recipe.name, recipe.payload, results, recipe.returns,
            fn=recipe.fn(), method=recipe.method, retries=recipe.retries, extra=recipe.extra,
            lost=set(),
        )  # fmt: skip
        for ref in results:
            if ref._state == PENDING:
                ref._task = task

    def _fill(self, recipe: _Recipe) -> None:
        task = recipe.running
        assert task is not None
        task.deps = [(each.slot, each.ref or self._ref(each.id)) for each in recipe.arguments] or None
        task.keep = [self._nested(id_) for id_ in recipe.nested] or None

    def _run(self, recipe: _Recipe) -> None:
        task = recipe.running
        if task is None:
            return  # what it needs has failed at once, and so has it
        if recipe.method:
            hold = self._holds.holds.get(recipe.made_by)
            token = self._holds.again(hold) if hold is not None else None
            self._call(recipe.made_by, recipe.class_name, task, token)
        else:
            self._submit(task, recipe.made_by)
        task.parent = None  # it is nobody's child: what runs here now has nothing to do with it

    def over(self, task: Task) -> None:
        """It was made again, or that failed."""
        recipe = self._recipes.get(task.seq)
        if recipe is not None and recipe.running is task:
            recipe.running = None
            if recipe.retries > 0:  # what its workers' deaths have cost
                recipe.retries = min(recipe.retries, max(0, task.retries))
            recipe.results = [weakref.ref(ref) for ref in task.refs]

    def _expect(self, task: Task, index: int) -> None:
        """This one of its results was lost: it is the node's when it is there again."""
        assert task.lost is not None
        if index not in task.lost:
            task.lost.add(index)
            self._home.announce_locked(task.refs[index])

    def _result(self, seq: int, index: int) -> ObjectRef[Any]:
        """The ref that this process has of a result, or a new one."""
        return self._live(ids.object_id(refs.own_prefix, seq, index)) or ObjectRef(seq, index)

    def _live(self, id_: bytes) -> ObjectRef[Any] | None:
        hold = self._holds.holds.get(id_)
        found = hold.ref() if hold is not None and hold.ref is not None else None
        return found if type(found) is ObjectRef else None

    def _ref(self, id_: bytes) -> ObjectRef[Any]:
        """Of something that ``_needed`` has found here, or that is being made again."""
        found = self._live(id_)
        if found is None:
            running = self._recipes[ids.seq_of(id_)].running
            assert running is not None
            found = running.refs[ids.index_of(id_)]
        return found

    def _nested(self, id_: bytes) -> Any:
        if ids.is_actor_id(id_):
            return _Held(self._holds.again(self._holds.holds[id_]))
        ref = self._ref(id_)
        self._home.publish_locked(ref)
        return ref


class _Held:
    """Something that a task keeps, by its hold alone."""

    __slots__ = ("_token",)

    def __init__(self, token: Any):
        self._token = token
