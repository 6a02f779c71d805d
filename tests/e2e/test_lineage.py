"""Results whose nodes are lost are made again by who submitted them; where that cannot be, the error says why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Notes
from harness.wait import wait_for

import noded
from noded.cluster_utils import Cluster, Node
from noded.exceptions import ObjectLostError, TaskError
from noded.util import state

BIG = 300_000
SIZES: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 80 << 20}
THERE = {"resources": {"there": 0.01}}


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """This program is connected to the head; what asks for "there" runs on a member."""
    with Cluster(True, True, SIZES) as cluster:
        cluster.add_node(**SIZES, resources={"there": 1})
        yield cluster


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


def lose(cluster: Cluster) -> None:
    """The member is lost with what it has, and there is another."""
    (lost,) = cluster.worker_nodes
    cluster.remove_node(lost)
    cluster.add_node(**SIZES, resources={"there": 1})


def crash(node: Node) -> None:
    """The whole node, which starts over."""
    node._process.kill_all()
    node._process.restart()


def get(refs: Any, timeout: float = 60) -> Any:
    return noded.get(refs, timeout=timeout)


def ready(refs: list[Any]) -> None:
    assert len(noded.wait(refs, num_returns=len(refs), timeout=60, fetch_local=False)[0]) == len(refs)


@noded.remote(**THERE)
def make(notes: Notes, letter: str) -> bytes:
    notes.add(f"make {letter}")
    return letter.encode() * BIG


@noded.remote(**THERE)
def longer(notes: Notes, value: bytes, letter: str) -> bytes:
    notes.add(f"longer {letter}")
    return value + letter.encode()


@noded.remote
def length(value: bytes) -> int:
    return len(value)


@noded.remote
class Keeper:
    def keep(self, refs: list[Any]) -> None:
        self.refs = refs

    def look(self) -> int:
        return len(noded.get(self.refs[0], timeout=60))


def test_a_lost_result_is_made_again(nodes: Cluster, notes: Notes) -> None:
    ref = make.remote(notes, "a")
    ready([ref])
    lose(nodes)
    assert notes.all() == ["make a"]
    assert get(ref) == b"a" * BIG
    assert notes.all() == ["make a"] * 2
    assert get(ref) == b"a" * BIG and len(notes.all()) == 2


def test_as_an_argument(nodes: Cluster, notes: Notes) -> None:
    ref = make.remote(notes, "a")
    ready([ref])
    lose(nodes)
    assert get(length.remote(ref)) == BIG


def test_a_chain_of_which_only_the_last_is_still_wanted(nodes: Cluster, notes: Notes) -> None:
    ref = make.remote(notes, "a")
    for letter in "bcd":
        ref = longer.remote(notes, ref, letter)
    ready([ref])
    before = notes.all()
    lose(nodes)
    assert get(ref) == b"a" * BIG + b"bcd"
    assert notes.all() == before * 2


def test_only_what_is_lost_is_made_again(nodes: Cluster, notes: Notes) -> None:
    first = make.remote(notes, "a")
    assert len(get(first)) == BIG  # a copy of it lies here now
    last = longer.remote(notes, first, "b")
    ready([last])
    lose(nodes)
    assert get(last) == b"a" * BIG + b"b"
    assert notes.all() == ["make a", "longer b", "longer b"]


@pytest.mark.slow
def test_a_long_chain(nodes: Cluster) -> None:
    """Deeper than Python's stack."""

    @noded.remote(**THERE)
    def more(number: int, value: tuple[int, bytes] | None) -> tuple[int, bytes]:
        return (0 if value is None else value[0]) + number, os.urandom(BIG)

    ref = more.remote(1, None)
    for _ in range(400):
        ref = more.remote(1, ref)
    ready([ref])
    lose(nodes)
    assert get(ref, 120)[0] == 401


def test_for_others_than_who_made_it(nodes: Cluster, notes: Notes) -> None:
    """The one who made it has no ref any more, but an actor has."""
    keeper = Keeper.remote()
    ref = make.remote(notes, "a")
    ready([ref])
    get(keeper.keep.remote([ref]))
    del ref
    lose(nodes)
    assert get(keeper.look.remote()) == BIG
    assert len(notes.all()) == 2


def test_refs_inside_arguments(nodes: Cluster, notes: Notes) -> None:
    @noded.remote(**THERE)
    def join(refs: list[Any]) -> bytes:
        return b"".join(noded.get(refs))

    parts = [make.remote(notes, letter) for letter in "ab"]
    whole = join.remote(parts)
    ready([whole])
    lose(nodes)
    assert get(whole) == b"a" * BIG + b"b" * BIG
    del parts
    lose(nodes)
    assert get(join.remote([whole])) == b"a" * BIG + b"b" * BIG


def test_several_returns(nodes: Cluster, notes: Notes) -> None:
    @noded.remote(num_returns=3, **THERE)
    def three() -> tuple[bytes, int, bytes]:
        notes.add("three")
        return b"a" * BIG, 7, b"c" * BIG

    one, two, other = three.remote()
    ready([one, two, other])
    assert get(one) == b"a" * BIG  # a copy of this one lies here
    lose(nodes)
    assert get([one, two, other]) == [b"a" * BIG, 7, b"c" * BIG]
    assert len(notes.all()) == 2


def test_of_an_actors_method(nodes: Cluster) -> None:
    @noded.remote(max_restarts=-1, max_task_retries=1, **THERE)
    class Maker:
        def make(self, letter: str) -> bytes:
            return letter.encode() * BIG

    maker = Maker.remote()
    ref = maker.make.remote("a")
    ready([ref])
    lose(nodes)
    assert get(ref) == b"a" * BIG


def test_as_often_as_it_may_be(nodes: Cluster, notes: Notes) -> None:
    ref = make.options(max_retries=1).remote(notes, "a")
    ready([ref])
    for _ in range(2):
        lose(nodes)
        if len(notes.all()) == 1:
            assert length.options(**THERE).remote(ref) is not None
            wait_for(lambda: len(notes.all()) == 2, "it is not made again")
            ready([length.options(**THERE).remote(ref)])
    with pytest.raises(ObjectLostError, match="as often as it may be"):
        get(ref)


def test_when_its_task_fails_then(nodes: Cluster, notes: Notes) -> None:
    @noded.remote(**THERE)
    def once() -> bytes:
        notes.add("run")
        if len(notes.all()) > 1:
            raise ValueError("not again")
        return b"x" * BIG

    keeper = Keeper.remote()
    ref = once.remote()
    ready([ref])
    get(keeper.keep.remote([ref]))
    lose(nodes)
    with pytest.raises((ValueError, TaskError), match="not again"):
        get(ref)
    with pytest.raises((ValueError, TaskError), match="not again"):
        get(keeper.look.remote())


def test_when_what_it_needs_fails_then(nodes: Cluster, notes: Notes) -> None:
    @noded.remote(**THERE)
    def once() -> bytes:
        notes.add("run")
        if len(notes.all()) > 1:
            raise ValueError("not again")
        return b"x" * BIG

    @noded.remote(**THERE)
    def after(value: Any) -> bytes:
        return repr(type(value)).encode() * BIG

    argument = once.remote()
    ref = after.remote(argument)
    ready([ref])
    del argument
    lose(nodes)
    with pytest.raises((ValueError, TaskError), match="not again"):
        get(ref)


def test_what_is_not_made_again_says_why(nodes: Cluster, notes: Notes) -> None:
    @noded.remote(**THERE)
    class Holder:
        def make(self) -> bytes:
            return b"x" * BIG

        def put(self) -> list[Any]:
            return [noded.put(b"x" * BIG)]

    @noded.remote(**THERE)
    def generate() -> Any:
        yield b"x" * BIG

    holder = Holder.remote()
    never = make.options(max_retries=0).remote(notes, "a")
    method = holder.make.remote()
    (put,) = get(holder.put.remote())
    item = next(generate.remote())
    argument = make.options(max_retries=0).remote(notes, "b")
    needs = longer.remote(notes, argument, "c")
    ready([never, method, item, needs])
    del argument
    lose(nodes)
    for ref, why in (
        (never, r"max_retries=0"),
        (method, r"max_task_retries=0"),
        (put, r"node where it was made is dead"),
        (item, r"generator"),
        (needs, r"was dropped, and make may not be repeated \(max_retries=0\)"),
    ):
        with pytest.raises(ObjectLostError, match=why):
            get(ref)


def test_after_the_programs_own_node_started_over(nodes: Cluster, notes: Notes) -> None:
    @noded.remote
    def here() -> bytes:
        notes.add("here")
        return b"h" * BIG

    kept = noded.put(b"p" * BIG)
    ref = here.remote()
    assert get(ref) == b"h" * BIG
    assert nodes.head_node is not None
    crash(nodes.head_node)
    assert get(length.remote(b"")) == 0  # this program is connected to what has followed
    assert get(ref) == b"h" * BIG
    assert notes.all() == ["here"] * 2
    with pytest.raises(ObjectLostError, match="started over"):
        get(kept)
    # What it had submitted before counts there as well. A value is there a moment before its task has ended.
    name = here._function.__qualname__

    def counts() -> list[dict[str, int]]:
        by_name = state.summarize_tasks(raise_on_missing_output=False)["cluster"]["summary"]
        return [by_name[each]["state_counts"] for each in (name, "length")]

    wait_for(lambda: counts() == [{"FINISHED": 1}] * 2, lambda: f"{counts()}")


@pytest.mark.parametrize("then", ["the node is lost again", "the daemon starts again"])
def test_what_nobody_wanted_yet_when_more_happens(nodes: Cluster, notes: Notes, then: str) -> None:
    """The node that was told what is lost is not the one that is asked for it."""

    @noded.remote
    def here() -> bytes:
        notes.add("here")
        return b"h" * BIG

    ref = here.remote()
    inside = noded.get(noded.put([noded.put(b"p" * BIG)]))[0]  # known by its id alone
    ready([ref])
    head = nodes.head_node
    assert head is not None
    crash(head)
    assert get(length.remote(b"")) == 0  # this program is connected to what has followed
    if then == "the daemon starts again":
        head._process.restart()
    else:
        crash(head)
    assert get(length.remote(b"")) == 0
    assert get(ref) == b"h" * BIG
    assert notes.all() == ["here"] * 2
    with pytest.raises(ObjectLostError, match="started over"):
        get(inside)
