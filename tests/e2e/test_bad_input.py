"""Wrong calls: the exception's type is Ray's, and the text says what is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import noded

pytestmark = pytest.mark.usefixtures("cluster")


@noded.remote
def f(*args: Any, **kwargs: Any) -> int:
    return 1


@noded.remote
def g(x: int, *, y: int) -> int:
    return x


@noded.remote
class A:
    def __init__(self, x: int = 1) -> None: ...

    def m(self, x: int = 1) -> int:
        return x


async def coroutine() -> None: ...


def subclass() -> None:
    class B(A): ...  # type: ignore[misc]


@pytest.fixture(scope="module")
def things(cluster: Any) -> Any:
    class Things:
        ref = noded.put(1)
        actor = A.options(name="bad input").remote()

    yield Things
    del Things.ref, Things.actor


CASES: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    ("get(5)", lambda t: noded.get(5), ValueError, r"ObjectRef or a list of them, not int"),
    ("get(None)", lambda t: noded.get(None), ValueError, r"not NoneType"),
    ("get({})", lambda t: noded.get({}), ValueError, r"not dict"),
    ("get([5])", lambda t: noded.get([5]), TypeError, r"the list holds a int: 5"),
    ("get(actor)", lambda t: noded.get(t.actor), ValueError, r"not ActorHandle"),
    ("get timeout", lambda t: noded.get(t.ref, timeout="1"), TypeError, r"timeout must be a number"),
    ("get timeout -1", lambda t: noded.get(t.ref, timeout=-1), ValueError, r"timeout must not be negative"),
    ("wait(ref)", lambda t: noded.wait(t.ref), TypeError, r"takes a list of ObjectRefs, not ObjectRef"),
    ("wait(5)", lambda t: noded.wait(5), TypeError, r"takes a list of ObjectRefs, not int"),
    ("wait(tuple)", lambda t: noded.wait((t.ref,)), TypeError, r"takes a list of ObjectRefs, not tuple"),
    ("wait([5])", lambda t: noded.wait([5]), TypeError, r"the list holds a int"),
    ("wait twice", lambda t: noded.wait([t.ref, t.ref]), ValueError, r"holds one twice"),
    ("wait 0", lambda t: noded.wait([t.ref], num_returns=0), ValueError, r"num_returns must be from 1 to 1"),
    ("wait 2", lambda t: noded.wait([t.ref], num_returns=2), ValueError, r"num_returns must be from 1 to 1"),
    ("wait timeout -1", lambda t: noded.wait([t.ref], timeout=-1), ValueError, r"timeout must not be negative"),
    ("wait timeout", lambda t: noded.wait([t.ref], timeout="x"), TypeError, r"timeout must be a number"),
    ("put(ref)", lambda t: noded.put(t.ref), TypeError, r"put\(\) of an ObjectRef is not allowed"),
    ("put(lock)", lambda t: noded.put(threading.Lock()), TypeError, r"cannot serialise the value given to noded.put"),
    ("kill(5)", lambda t: noded.kill(5), ValueError, r"takes an actor handle, not int"),
    ("kill(ref)", lambda t: noded.kill(t.ref), ValueError, r"use noded.cancel\(\) for tasks"),
    ("kill(class)", lambda t: noded.kill(A), ValueError, r"not ActorClass"),
    ("cancel(5)", lambda t: noded.cancel(5), TypeError, r"takes an ObjectRef, not int"),
    ("cancel(actor)", lambda t: noded.cancel(t.actor), TypeError, r"not ActorHandle"),
    ("cancel(list)", lambda t: noded.cancel([t.ref]), TypeError, r"not list"),
    ("get_actor('')", lambda t: noded.get_actor(""), ValueError, r"non-empty string"),
    ("get_actor(unknown)", lambda t: noded.get_actor("zz"), ValueError, r"no actor named 'zz'"),
    ("get_actor namespace", lambda t: noded.get_actor("zz", namespace=""), ValueError, r"must not be empty"),
    ("f()", lambda t: f(), TypeError, r"use f.remote\(\)"),
    ("A()", lambda t: A(), TypeError, r"use A.remote\(\)"),
    ("actor.m()", lambda t: t.actor.m(), TypeError, r"use .m.remote\(\)"),
    ("actor.nope", lambda t: t.actor.nope, AttributeError, r"A has no method 'nope'"),
    ("g.remote()", lambda t: g.remote(), TypeError, r"missing a required argument: 'x'"),
    ("g.remote(1)", lambda t: g.remote(1), TypeError, r"missing a required argument: 'y'"),
    ("g.remote(1, 2)", lambda t: g.remote(1, 2), TypeError, r"too many positional arguments"),
    ("g.remote(1, z=2)", lambda t: g.remote(1, z=2), TypeError, r"missing a required argument: 'y'"),
    ("A.remote(1, 2)", lambda t: A.remote(1, 2), TypeError, r"too many positional arguments"),
    ("actor.m.remote(1, 2)", lambda t: t.actor.m.remote(1, 2), TypeError, r"A.m: too many positional arguments"),
    ("actor.m.remote(nothing=1)", lambda t: t.actor.m.remote(nothing=1), TypeError, r"A.m: got an unexpected keyword"),
    ("remote()", lambda t: noded.remote(), TypeError, r"without parentheses"),
    ("remote(5)", lambda t: noded.remote(5), TypeError, r"on a function or class"),
    ("remote(f)", lambda t: noded.remote(f), TypeError, r"is remote already"),
    ("remote(A)", lambda t: noded.remote(A), TypeError, r"is remote already"),
    ("remote(async)", lambda t: noded.remote(coroutine), ValueError, r"coroutine function"),
    ("class B(A)", lambda t: subclass(), TypeError, r"A cannot be a base class"),
    ("num_cpus 'x'", lambda t: f.options(num_cpus="x"), TypeError, r"num_cpus must be a number"),
    ("num_cpus True", lambda t: f.options(num_cpus=True), TypeError, r"num_cpus must be a number"),
    ("num_cpus -1", lambda t: f.options(num_cpus=-1), ValueError, r"num_cpus must be at least 0"),
    ("num_cpus nan", lambda t: f.options(num_cpus=float("nan")), ValueError, r"num_cpus must be at least 0"),
    ("num_gpus 1.5", lambda t: f.options(num_gpus=1.5), ValueError, r"GPU.*whole number"),
    ("memory -1", lambda t: f.options(memory=-1), ValueError, r"memory must be at least 0"),
    ("num_returns -1", lambda t: f.options(num_returns=-1), ValueError, r"num_returns must be at least 0"),
    ("num_returns 'x'", lambda t: f.options(num_returns="x"), ValueError, r"num_returns must be a whole number"),
    ("num_returns 1.5", lambda t: f.options(num_returns=1.5), TypeError, r"num_returns must be a whole number"),
    ("max_retries -2", lambda t: f.options(max_retries=-2), ValueError, r"max_retries must be at least -1"),
    ("max_retries 'x'", lambda t: f.options(max_retries="x"), TypeError, r"max_retries must be a whole number"),
    ("resources list", lambda t: f.options(resources=[1]), TypeError, r"resources must be a dict"),
    ("resources CPU", lambda t: f.options(resources={"CPU": 1}), ValueError, r"use num_cpus"),
    ("resources GPU", lambda t: f.options(resources={"GPU": 1}), ValueError, r"use num_gpus"),
    ("resources -1", lambda t: f.options(resources={"x": -1}), ValueError, r"resources\['x'\] must be at least 0"),
    ("resources 'x'", lambda t: f.options(resources={"x": "x"}), TypeError, r"resources\['x'\] must be a number"),
    ("unknown option", lambda t: f.options(foo=1), ValueError, r"unknown option 'foo'; known are .*num_cpus"),
    ("unknown in remote", lambda t: noded.remote(foo=1)(lambda: 1), ValueError, r"unknown option 'foo'"),
    ("task's name", lambda t: f.options(name=5), TypeError, r"name must be a string"),
    ("task max_restarts", lambda t: f.options(max_restarts=1), ValueError, r"unknown option 'max_restarts'"),
    ("actor num_returns", lambda t: A.options(num_returns=2), ValueError, r"unknown option 'num_returns'"),
    ("actor name", lambda t: A.options(name=5), TypeError, r"name must be a string"),
    ("actor name ''", lambda t: A.options(name=""), ValueError, r"name must not be empty"),
    ("namespace ''", lambda t: A.options(name="q", namespace=""), ValueError, r"namespace must not be empty"),
    ("namespace 5", lambda t: A.options(name="q", namespace=5), TypeError, r"namespace must be a string"),
    ("lifetime", lambda t: A.options(lifetime="x"), ValueError, r"lifetime must be 'detached'"),
    ("get_if_exists", lambda t: A.options(get_if_exists=True).remote(), ValueError, r"needs the option name"),
    ("max_restarts -2", lambda t: A.options(max_restarts=-2), ValueError, r"max_restarts must be at least -1"),
    ("max_task_retries", lambda t: A.options(max_task_retries=-2), ValueError, r"max_task_retries must be at least -1"),
    ("max_concurrency 0", lambda t: A.options(max_concurrency=0), ValueError, r"max_concurrency must be at least 1"),
    ("method num_returns", lambda t: t.actor.m.options(num_returns=-1), ValueError, r"num_returns must be at least 0"),
    ("taken name", lambda t: A.options(name="bad input").remote(), ValueError, r"'bad input' is taken"),
    ("init again", lambda t: noded.init(), RuntimeError, r"called already.*ignore_reinit_error=True"),
]


@pytest.mark.parametrize("call, kind, text", [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused(call: Callable[[Any], Any], kind: type[Exception], text: str, things: Any) -> None:
    with pytest.raises(kind, match=text):
        call(things)


def test_an_unknown_keyword_of_a_method_fails_the_call(things: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        noded.get(things.actor.m.remote(z=2), timeout=30)


def test_a_generator_gives_a_fixed_number_of_returns(things: Any) -> None:
    @noded.remote(num_returns=2)
    def two() -> Iterator[int]:
        yield 1
        yield 2

    assert noded.get(two.remote()) == [1, 2]


def test_what_is_harmless(things: Any) -> None:
    noded.cancel(things.ref)
    assert noded.get([]) == []
    assert noded.wait([]) == ([], [])
    assert noded.get(f.options(num_cpus=None, num_returns=None, max_retries=None).remote()) == 1
    assert bool(things.ref) and things.ref == things.ref
    with pytest.raises(TypeError, match="not iterable"):
        iter(things.ref)
    assert noded.get(things.ref) == 1


def test_nothing_of_it_hurt_the_cluster(things: Any) -> None:
    assert noded.get([f.remote(), things.actor.m.remote(2)], timeout=30) == [1, 2]
