"""kill -9 of the daemon, the spawner, the template or a driver at one chosen moment each, and what must be so after.

The random versions are in tests/chaos. Drivers here are either this process or processes of their own
(harness.drivers); none of them does anything about a restart.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.cluster import Node, noded_command
from harness.drivers import Driver
from harness.processes import all_processes
from harness.wait import wait_for

import noded
from noded.client.runtime import Runtime, current
from noded.util import state

MB = 1 << 20


@pytest.fixture
def node() -> Iterator[Node]:
    """A running node with this process as its driver."""
    with Node("--object-store-memory", str(128 * MB), num_cpus=4) as node:
        noded.init(address=node.address, log_to_driver=False)
        try:
            yield node
        finally:
            noded.shutdown()


def runtime() -> Runtime:
    found = current()
    assert found is not None
    return found


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def functions() -> dict[str, Any]:
    """Made in a function, so that they travel by value and workers need not import this module."""

    @noded.remote(num_cpus=1)
    def note(path: str, word: Any, seconds: float = 0) -> Any:
        """Writes the word when it starts; so a test sees how often it ran."""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{word}\n".encode())
        os.close(fd)
        time.sleep(seconds)
        return word

    @noded.remote(num_cpus=1, max_retries=0)
    def await_file(path: str, value: Any = None) -> Any:
        while not os.path.exists(path):
            time.sleep(0.005)
        return value

    @noded.remote(num_cpus=1)
    def array(seed: int, size: int) -> Any:
        return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)

    @noded.remote(num_cpus=1)
    def hold_gil(path: str, seconds: int) -> int:
        import ctypes

        open(path, "w").close()
        ctypes.PyDLL(None).sleep(seconds)  # one C call that keeps the interpreter's lock
        return os.getpid()

    @noded.remote
    class Counter:
        def __init__(self, wait_for: str = "", log: str = "") -> None:
            if log:
                fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(fd, f"{os.getpid()}\n".encode())
                os.close(fd)
            while wait_for and not os.path.exists(wait_for):
                time.sleep(0.005)
            self.n = 0
            self.kept: Any = None

        def add(self, wait_for: str = "") -> int:
            while wait_for and not os.path.exists(wait_for):
                time.sleep(0.005)
            self.n += 1
            return self.n

        def keep(self, value: Any) -> None:
            self.kept = value

        def give(self) -> Any:
            return self.kept

        def look(self) -> Any:
            return [zlib.crc32(v) for v in noded.get(self.kept)]

        def pid(self) -> int:
            return os.getpid()

    return dict(locals())


# ---------------------------------------------------------------- the daemon


def test_tasks_that_run_wait_and_are_pipelined_each_run_once(node: Node, tmp_path: Path) -> None:
    make = functions()
    note, log = make["note"], tmp_path / "log"
    refs = [note.remote(str(log), i, 0.2 if i % 25 == 0 else 0.001) for i in range(200)]
    wait_for(lambda: len(lines(log)) > 5, "no task started")
    node.kill9()
    seen = len(lines(log))
    wait_for(lambda: len(lines(log)) > seen, "leases do not go on without a daemon")
    more = [note.remote(str(log), i) for i in range(200, 250)]
    node.restart()
    assert noded.get(refs + more, timeout=60) == list(range(250))
    assert sorted(map(int, lines(log))) == list(range(250))


def test_actors_keep_state_and_order(node: Node, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    counters = [functions()["Counter"].remote() for _ in range(3)]
    pids = noded.get([c.pid.remote() for c in counters], timeout=30)
    refs = [[c.add.remote(str(gate)), *(c.add.remote() for _ in range(20))] for c in counters]
    node.kill9()
    refs2 = [[c.add.remote() for _ in range(20)] for c in counters]
    node.restart()
    gate.touch()
    for first, second in zip(refs, refs2, strict=True):
        assert noded.get(first + second, timeout=30) == list(range(1, 42))
    assert noded.get([c.pid.remote() for c in counters], timeout=30) == pids


def test_objects_views_pending_and_borrowed_refs(node: Node, tmp_path: Path) -> None:
    make = functions()
    gate = tmp_path / "gate"
    put = [noded.put(np.random.default_rng(i).integers(0, 256, 2 * MB, dtype=np.uint8)) for i in range(4)]
    results = [make["array"].remote(10 + i, 2 * MB) for i in range(4)]
    small = noded.put(np.arange(100))
    views = noded.get(put + results, timeout=30)
    sums = [zlib.crc32(v) for v in views]
    pending = make["await_file"].remote(str(gate), b"late")
    keeper = make["Counter"].remote()
    # Borrowed by an actor, one of them without a value yet; our own refs of some go away.
    noded.get(keeper.keep.remote([*put, *results, small, pending]), timeout=30)
    put_sums = sums[:4]
    del put
    node.kill9()
    node.restart()
    gate.touch()
    # What is written now must not hit what is still looked at or held by the actor alone.
    for i in range(40):
        noded.put(np.full(3 * MB, i, dtype=np.uint8))
    assert [zlib.crc32(v) for v in views] == sums
    assert noded.get(keeper.look.remote(), timeout=30) == [*sums, zlib.crc32(np.arange(100)), zlib.crc32(b"late")]
    del views
    for i in range(40):
        noded.put(np.full(3 * MB, i, dtype=np.uint8))
    assert noded.get(keeper.look.remote(), timeout=30)[:4] == put_sums
    assert noded.get(pending, timeout=30) == b"late"
    before = runtime().ask("status")["store"]["objects"]
    noded.kill(keeper)
    del results, pending, small, keeper
    assert before > 8
    wait_for(lambda: not runtime().ask("status")["store"]["objects"], "objects are left", 20)


def test_an_actor_is_created_once_when_the_daemon_dies_in_its_constructor(node: Node, tmp_path: Path) -> None:
    gate, log = tmp_path / "gate", tmp_path / "log"
    counter = functions()["Counter"].remote(str(gate), str(log))
    first = counter.add.remote()
    wait_for(lambda: lines(log), "the constructor did not start")
    node.kill9()
    node.restart()
    gate.touch()
    assert noded.get([first, counter.add.remote()], timeout=30) == [1, 2]
    assert len(lines(log)) == 1


def test_an_actor_whose_constructor_holds_the_gil_is_not_created_twice(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"

    @noded.remote
    class Slow:
        def __init__(self, log: str) -> None:
            import ctypes

            with open(log, "a") as file:
                file.write(f"{os.getpid()}\n")
            ctypes.PyDLL(None).sleep(2)

        def pid(self) -> int:
            return os.getpid()

    slow = Slow.remote(str(log))
    wait_for(lambda: lines(log), "the constructor did not start")
    node.kill9()
    node.restart()
    pid = noded.get(slow.pid.remote(), timeout=30)
    assert lines(log) == [str(pid)]


@pytest.mark.slow
def test_creations_and_kills_right_before_the_daemon_dies(node: Node, tmp_path: Path) -> None:
    Counter = functions()["Counter"]
    for turn in range(4):
        log = tmp_path / f"log{turn}"
        made = [Counter.options(num_cpus=0).remote("", str(log)) for _ in range(4)]
        if turn % 2:
            wait_for(lambda log=log: lines(log), "no constructor started")
        node.kill9()
        node.restart()
        assert noded.get([m.add.remote() for m in made], timeout=30) == [1] * 4
        assert len(lines(log)) == 4
        for one in made[:2]:
            noded.kill(one)
        node.kill9()
        node.restart()
        for one in made[:2]:
            with pytest.raises(noded.exceptions.ActorDiedError):
                noded.get(one.add.remote(), timeout=30)
        assert noded.get([m.add.remote() for m in made[2:]], timeout=30) == [2] * 2
        for one in made[2:]:
            noded.kill(one)


def test_an_actor_that_dies_while_the_daemon_is_away_is_dead_for_all(node: Node) -> None:
    counter = functions()["Counter"].options(num_cpus=1).remote()
    pid = noded.get(counter.pid.remote(), timeout=30)
    node.kill9()
    os.kill(pid, signal.SIGKILL)
    node.restart()
    with pytest.raises(noded.exceptions.ActorDiedError):
        noded.get(counter.add.remote(), timeout=30)
    wait_for(lambda: noded.available_resources().get("CPU") == 4, "its CPU is not free", 10)


def test_workers_that_die_while_the_daemon_is_away(node: Node, tmp_path: Path) -> None:
    make = functions()
    log, gate = tmp_path / "log", tmp_path / "gate"

    @noded.remote(num_cpus=1)
    def stay(log: str, gate: str) -> int:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        while not os.path.exists(gate):
            time.sleep(0.005)
        return 7

    retried = stay.remote(str(log), str(gate))
    wait_for(lambda: lines(log), "the task did not start")
    not_retried = make["await_file"].remote(str(gate), 8)
    single = stay.options(max_retries=0).remote(str(tmp_path / "log2"), str(gate))
    wait_for(lambda: lines(tmp_path / "log2"), "the task did not start")
    node.kill9()
    os.kill(int(lines(log)[0]), signal.SIGKILL)
    os.kill(int(lines(tmp_path / "log2")[0]), signal.SIGKILL)
    node.restart()
    wait_for(lambda: len(lines(log)) == 2, "the task was not run again")
    gate.touch()
    assert noded.get([retried, not_retried], timeout=30) == [7, 8]
    with pytest.raises(noded.exceptions.WorkerCrashedError):
        noded.get(single, timeout=30)


def test_between_a_grant_and_its_push(node: Node, tmp_path: Path) -> None:
    """The grant is held back in this process until another daemon runs."""
    tasks = runtime().tasks
    real, held = tasks.on_grant, []

    def hold_back(message: Any) -> None:
        if not held:
            held.append(message.lease)
            node.kill9()
            node.restart()
        real(message)

    tasks.on_grant = hold_back  # type: ignore[method-assign]
    log = tmp_path / "log"
    refs = [functions()["note"].remote(str(log), i) for i in range(50)]
    assert noded.get(refs, timeout=30) == list(range(50))
    assert held and sorted(map(int, lines(log))) == list(range(50))


def test_a_worker_that_holds_the_gil_meanwhile(node: Node, tmp_path: Path) -> None:
    make = functions()
    started = tmp_path / "started"
    ref = make["hold_gil"].remote(str(started), 3)
    wait_for(started.exists, "the task did not start")
    node.kill9()
    node.restart()
    assert noded.get([make["array"].remote(i, 10) for i in range(20)], timeout=30)
    ready, _ = noded.wait([ref], timeout=0)
    assert not ready, "the others have waited for it"
    assert noded.get(ref, timeout=30) > 0


def test_two_kills_in_quick_succession_and_one_during_recovery(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    counter = functions()["Counter"].remote()
    kept = noded.put(np.arange(300_000))
    with Driver(node.address, "x = noded.put(b'x' * 3000000); v = noded.get(x); say('ready'); hear()") as other:
        other.expect("ready")
        refs = [functions()["note"].remote(str(log), i, 0.005) for i in range(100)]
        calls = [counter.add.remote() for _ in range(50)]
        other.signal(signal.SIGSTOP)
        for _ in range(2):
            node.kill9()
            node.restart()
        assert node.status()["state"] == "RECOVERING"
        node.kill9()
        node.restart()
        assert noded.get(refs, timeout=60) == list(range(100))
        assert noded.get(calls, timeout=30) == list(range(1, 51))
        assert noded.get(kept, timeout=30).sum() == np.arange(300_000).sum()
        assert node.status()["state"] == "RECOVERING"
        other.signal(signal.SIGCONT)
        wait_for(lambda: node.status()["state"] == "READY", "the stopped driver did not tell its state")
        other.tell("end")
        other.end()
    assert sorted(map(int, lines(log))) == list(range(100))


def test_a_stopped_driver_keeps_its_views(node: Node) -> None:
    source = """
    import zlib, numpy as np
    refs = [noded.put(np.random.default_rng(i).integers(0, 256, 4000000, dtype=np.uint8)) for i in range(6)]
    views = noded.get(refs)
    sums = [zlib.crc32(v) for v in views]
    del refs
    say("ready")
    hear()
    assert [zlib.crc32(v) for v in views] == sums
    del views
    say("right", noded.get(noded.put(np.arange(200000))).sum())
    hear()
    """
    with Driver(node.address, source) as driver:
        driver.expect("ready")
        driver.signal(signal.SIGSTOP)
        for round_ in range(2):
            for i in range(60):
                noded.put(np.full(3 * MB, i, dtype=np.uint8))
            if round_ == 0:
                node.restart()
        driver.signal(signal.SIGCONT)
        driver.tell("look")
        assert driver.expect("right") == str(sum(range(200000)))
        driver.tell("end")
        driver.end()


def test_a_driver_that_left_and_lives_on_keeps_its_views_and_blocks_nobody(node: Node) -> None:
    source = """
    import zlib, numpy as np
    view = noded.get(noded.put(np.random.default_rng(1).integers(0, 256, 4000000, dtype=np.uint8)))
    crc = zlib.crc32(view)
    noded.shutdown()
    say("left")
    hear()
    assert zlib.crc32(view) == crc
    say("right")
    hear()
    """
    with Driver(node.address, source) as driver:
        driver.expect("left")
        node.kill9()
        node.restart()
        for i in range(80):
            noded.put(np.full(3 * MB, i, dtype=np.uint8))
        wait_for(lambda: node.status()["state"] == "READY", "one who has left holds up the recovery")
        driver.tell("look")
        driver.expect("right")
        driver.kill()
    wait_for(lambda: not node.status()["objects"], "its object is left")


def test_a_second_daemon(node: Node) -> None:
    command = [*noded_command(), "--head", "--port", "0", *node.flags]
    beside = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert beside.returncode == 1
    assert f"runs already (pid {node.pid})" in beside.stderr
    counter = functions()["Counter"].remote()
    assert noded.get(counter.add.remote(), timeout=30) == 1
    first, process = node.pid, node._process
    assert process is not None
    node.signal(signal.SIGSTOP)
    node._process = None
    node.start()
    assert process.wait(10) == -signal.SIGKILL
    assert node.pid != first
    assert noded.get(counter.add.remote(), timeout=30) == 2


def test_without_a_daemon_for_the_grace_everything_ends() -> None:
    source = """
    import numpy as np
    from noded.exceptions import LocalDaemonDiedError
    @noded.remote
    def f(): time.sleep(1000)
    @noded.remote
    class A:
        def f(self): time.sleep(1000)
    a = A.remote()
    refs = [f.remote(), a.f.remote(), noded.put(np.arange(1000000))]
    view = noded.get(refs[2])
    @noded.remote
    def ping(): return 1
    noded.get(ping.remote())
    say("ready")
    for ref in refs[:2]:
        try:
            noded.get(ref)
        except LocalDaemonDiedError as error:
            say("died", error)
    assert view.sum() == 499999500000
    """
    node = Node("--daemon-grace", "1", num_cpus=2).start()
    try:
        with Driver(node.address, source) as driver:
            driver.expect("ready")
            node.kill9()
            wait_for(lambda: not node.processes(), lambda: f"still there: {list(map(str, node.processes()))}", 20)
            driver.expect("died", 20)
            driver.expect("died", 20)
            driver.end()
        left = [str(p) for p in Path(node.dir).rglob("*") if p.is_socket()]
        assert not left
    finally:
        node.stop()


# ---------------------------------------------------------------- spawner, template


def kill_and_wait(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)

    def gone() -> bool:
        process = all_processes().get(pid)
        return process is None or process.state == "Z"

    wait_for(gone, f"pid {pid} does not end")


def test_spawner_killed(node: Node, tmp_path: Path) -> None:
    log = tmp_path / "log"
    make = functions()
    counter = make["Counter"].remote()
    assert noded.get(counter.add.remote(), timeout=30) == 1
    kept = noded.put(np.arange(1_000_000))
    refs = [make["note"].remote(str(log), i, 0.1) for i in range(30)]
    wait_for(lambda: len(lines(log)) > 3, "no task started")
    kill_and_wait(node.status()["spawner_pid"])
    assert noded.get(refs, timeout=60) == list(range(30))
    with pytest.raises(noded.exceptions.ActorDiedError, match="spawner"):
        noded.get(counter.add.remote(), timeout=30)
    assert noded.get(kept, timeout=30).sum() == 499999500000
    assert noded.get(make["Counter"].remote().add.remote(), timeout=30) == 1
    # The new spawner has all that a restarted daemon needs.
    node.kill9()
    node.restart()
    assert noded.get(kept, timeout=30).sum() == 499999500000
    assert noded.get(make["note"].remote(str(log), 99), timeout=30) == 99


def test_template_killed(node: Node, tmp_path: Path) -> None:
    make = functions()
    assert noded.get(make["note"].remote(str(tmp_path / "log"), 1), timeout=30) == 1
    spawner = node.status()["spawner_pid"]
    found: list[int] = []

    def template_is_there() -> bool:
        # Workers are forked of it under its command line, and have marks of their own.
        for process in node.processes():
            if "noded.template" in process.command and process.parent == spawner:
                with suppress(OSError):
                    if b":template00000000\0" in Path(f"/proc/{process.pid}/environ").read_bytes():
                        found.append(process.pid)
        return bool(found)

    wait_for(template_is_there, "the spawner has no template")
    kill_and_wait(found[0])
    made = [make["Counter"].remote() for _ in range(6)]
    assert noded.get([m.add.remote() for m in made], timeout=60) == [1] * 6


def test_daemon_and_spawner_killed_at_once(node: Node, tmp_path: Path) -> None:
    make = functions()
    log = tmp_path / "log"
    counter = make["Counter"].remote()
    assert noded.get(counter.add.remote(), timeout=30) == 1
    lost = noded.put(np.arange(1_000_000))
    view = noded.get(lost, timeout=30)
    refs = [make["note"].remote(str(log), i, 0.05) for i in range(20)]
    wait_for(lambda: len(lines(log)) > 3, "no task started")
    spawner = node.status()["spawner_pid"]
    os.kill(spawner, signal.SIGSTOP)  # so that it cannot see the daemon's end
    node.kill9()
    kill_and_wait(spawner)
    node.restart()
    assert noded.get(refs, timeout=60) == list(range(20))
    with pytest.raises(noded.exceptions.ActorDiedError):
        noded.get(counter.add.remote(), timeout=30)
    with pytest.raises(noded.exceptions.ObjectLostError, match="started over"):
        noded.get(lost, timeout=30)
    assert view.sum() == 499999500000
    again = noded.put(np.arange(1_000_000))
    assert noded.get(again, timeout=30).sum() == 499999500000


def test_refs_that_others_borrowed_are_published_again_when_the_node_starts_over(node: Node) -> None:
    """What its maker still has arrives; what lay in the lost arena is said to be lost: nobody waits for ever."""
    holder = functions()["Counter"].options(name="holder", namespace="test").remote()
    small, big = noded.put("small"), noded.put(np.arange(1_000_000))
    noded.get(holder.keep.remote([small, big]), timeout=30)
    source = """
    borrowed = noded.get(noded.get_actor("holder").give.remote())
    say("borrowed")
    hear()
    say("small", noded.get(borrowed[0], timeout=30))
    try:
        noded.get(borrowed[1], timeout=30)
    except noded.exceptions.ObjectLostError as error:
        say("big", type(error).__name__)
    """
    with Driver(node.address, source) as other:
        other.expect("borrowed")
        spawner = node.status()["spawner_pid"]
        os.kill(spawner, signal.SIGSTOP)
        node.kill9()
        kill_and_wait(spawner)
        node.restart()
        other.tell("go on")
        assert other.expect("small") == "small"
        assert other.expect("big") == "ObjectLostError"
        other.end()


# ---------------------------------------------------------------- drivers

BUSY_DRIVER = """
import numpy as np
@noded.remote
def leave_children(path):
    import subprocess
    code = "import os, time; open(os.sys.argv[1], 'a').write(f'{os.getpid()}\\\\n'); time.sleep(1000)"
    subprocess.Popen([sys.executable, "-c", code, path], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(path, "a").write(f"{os.getpid()}\\n")
            time.sleep(1000)
        os._exit(0)
    os.wait()
    time.sleep(1000)
@noded.remote(num_cpus=1)
class A:
    def __init__(self): self.x = noded.put(np.arange(500000))
    def f(self): return os.getpid()
@noded.remote(num_cpus=0)
def outer(path): return noded.get(inner.remote(path))
@noded.remote(num_cpus=0)
def inner(path):
    open(path, "w").write(noded.get_runtime_context().get_job_id())
    time.sleep(1000)
actors = [A.remote() for _ in range(2)]
nested = outer.remote(sys.argv[2])
while not os.path.exists(sys.argv[2]) or open(sys.argv[2]).read() != noded.get_runtime_context().get_job_id():
    time.sleep(0.01)
noded.get([a.f.remote() for a in actors])
keep = [noded.put(np.arange(500000)) for _ in range(5)]
views = noded.get(keep)
task = leave_children.remote(sys.argv[1])
say("ready")
noded.get(task)
"""


@pytest.mark.parametrize("away", [False, True], ids=["daemon up", "daemon away"])
def test_driver_killed(tmp_path: Path, away: bool) -> None:
    children = tmp_path / "children"
    with Node("--object-store-memory", str(64 * MB), num_cpus=4) as node:
        with Driver(node.address, BUSY_DRIVER, str(children), str(tmp_path / "nested")) as driver:
            driver.expect("ready")
            wait_for(lambda: len(lines(children)) == 2, "the task's children did not start")
            if away:
                node.kill9()
            driver.kill()
            if away:
                node.restart()
        node.settle()
        pids = [int(pid) for pid in lines(children)]
        wait_for(lambda: not any(pid in all_processes() for pid in pids), "children of the worker are left")
        wait_for(lambda: node.status()["workers"] <= 1, "workers of its job are left")


FORKING_DRIVER = """
import multiprocessing, zlib, numpy as np
refs = [noded.put(np.random.default_rng(i).integers(0, 256, 3000000, dtype=np.uint8)) for i in range(4)]
views = noded.get(refs)
sums = [zlib.crc32(v) for v in views]
def look(gate, answers):
    gate.recv()
    answers.send([zlib.crc32(v) for v in views] == sums)
def plain():
    (r, w), (r2, w2) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(w)
        os.read(r, 1)
        os.write(w2, b"y" if [zlib.crc32(v) for v in views] == sums else b"n")
        os._exit(0)
    os.close(r), os.close(w2)
    return lambda: (os.write(w, b"g"), os.read(r2, 1) == b"y", os.wait())[1]
def multi():
    context = multiprocessing.get_context("fork")
    (gate, gate2), (got, got2) = context.Pipe(), context.Pipe()
    child = context.Process(target=look, args=(gate2, got2))
    child.start()
    return lambda: (gate.send(1), got.recv(), child.join())[1]
finish = [plain(), multi()]
del refs, views
say("forked")
hear()
for i in range(60):
    noded.put(np.full(3000000, i, dtype=np.uint8))
say("children", *[f() for f in finish])
hear()
"""


@pytest.mark.parametrize("restart", [False, True], ids=["daemon up", "daemon restarted"])
def test_forked_children_keep_what_they_look_at(node: Node, restart: bool) -> None:
    with Driver(node.address, FORKING_DRIVER) as driver:
        driver.expect("forked")
        if restart:
            node.restart()
        driver.tell("fill")
        assert driver.expect("children") == "True True"
        wait_for(lambda: not node.status()["objects"], "the children's objects are left")
        driver.tell("end")
        driver.end()


def jobs_become(node: Node, maker: str, last: str) -> None:
    """How the job ended that has made the detached actor, as far as is known, and the one that was there last."""

    def found() -> list[str]:
        return [job.status for job in state.list_jobs(address=node.address)]

    wait_for(lambda: (known := found()) and (known[0], known[-1]) == (maker, last), lambda: f"jobs are {found()}")


def test_a_detached_actor_outlives_drivers_and_daemons() -> None:
    first = """
    @noded.remote
    class C:
        def __init__(self): self.n = 0
        def add(self): self.n += 1; return self.n
    c = C.options(name="c", lifetime="detached").remote()
    say("n", noded.get(c.add.remote()))
    """
    then = "c = noded.get_actor('c'); say('n', noded.get(c.add.remote())); hear()"
    with Node(num_cpus=2) as node:
        with Driver(node.address, first) as driver:
            assert driver.expect("n") == "1"
            driver.end()
        with Driver(node.address, then) as driver:
            assert driver.expect("n") == "2"
            driver.kill()
        jobs_become(node, "SUCCEEDED", "FAILED")
        node.restart()
        with Driver(node.address, then) as driver:
            assert driver.expect("n") == "3"
            node.kill9()
            driver.kill()
        node.restart()
        jobs_become(node, "SUCCEEDED", "FAILED")
        with Driver(node.address, then + "; noded.kill(c)") as driver:
            assert driver.expect("n") == "4"
            driver.tell("kill")
            driver.end()
        node.settle()


def test_a_detached_actor_that_restarts_after_its_driver_has_left_is_still_of_its_job() -> None:
    first = """
    @noded.remote(max_restarts=1)
    class C:
        def look(self): return os.getpid(), os.getcwd(), sys.path
    c = C.options(name="c", lifetime="detached").remote()
    say("look", noded.get(c.look.remote())[1])
    """
    then = """
    c = noded.get_actor("c")
    pid, cwd, path = noded.get(c.look.remote())
    os.kill(pid, 9)
    while True:
        try:
            again = noded.get(c.look.remote())
            break
        except noded.exceptions.ActorUnavailableError:
            pass
    assert again[0] != pid and again[1:] == (cwd, path), again
    say("same", cwd)
    """
    with Node(num_cpus=1) as node:
        with Driver(node.address, first) as driver:
            cwd = driver.expect("look")
            driver.end()
        with Driver(node.address, then) as driver:
            assert driver.expect("same") == cwd == os.getcwd()
            driver.end()


# ---------------------------------------------------------------- results that were written before their worker died


def test_both_copies_of_a_retried_result_live(node: Node, tmp_path: Path) -> None:
    """The first run has stored its first result when it is killed: the second run stores it again elsewhere."""

    @noded.remote(num_cpus=1, num_returns=2, max_retries=1)
    def two(log: str) -> Any:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return np.full(3 * MB, 7, dtype=np.uint8), np.full(60 * MB, 9, dtype=np.uint8)

    log = tmp_path / "log"
    blocker = noded.put(np.zeros(100 * MB, dtype=np.uint8))  # so that the second result finds no room
    first, second = two.remote(str(log))
    wait_for(lambda: node.status()["store"]["waiting"], "the task's second result does not wait for room")
    objects = node.status()["store"]["objects"]
    assert objects == 2
    os.kill(int(lines(log)[0]), signal.SIGKILL)
    wait_for(lambda: len(lines(log)) == 2, "the task was not run again")
    del blocker
    view = noded.get(first, timeout=30)
    assert (noded.get(second, timeout=30) == 9).all()
    for i in range(30):
        noded.put(np.full(4 * MB, i, dtype=np.uint8))
        assert (view == 7).all()
    del view, first, second
    wait_for(lambda: not node.status()["store"]["objects"], "a copy is left")


def test_a_result_of_a_killed_actor_call_is_given_up(node: Node) -> None:
    @noded.remote
    class Two:
        def pid(self) -> int:
            return os.getpid()

        @noded.method(num_returns=2)
        def two(self) -> Any:
            return np.full(3 * MB, 7, dtype=np.uint8), np.full(60 * MB, 9, dtype=np.uint8)

    actor = Two.remote()
    pid = noded.get(actor.pid.remote(), timeout=30)
    blocker = noded.put(np.zeros(100 * MB, dtype=np.uint8))
    refs = actor.two.remote()
    wait_for(lambda: node.status()["store"]["waiting"], "the second result does not wait for room")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(noded.exceptions.ActorDiedError):
        noded.get(refs, timeout=30)
    del refs, blocker
    wait_for(lambda: not node.status()["store"]["objects"], "the stored result is left")


@pytest.mark.parametrize("full", [True, False], ids=["full store", "begun while away"])
def test_writers_that_wait_while_the_daemon_dies(node: Node, full: bool) -> None:
    """Their requests are told again; what the next daemon grants them is theirs alone."""
    source = """
    import zlib, numpy as np
    say("ready")
    hear()
    say("putting")
    refs = [noded.put(np.full(5_000_000, i + int(sys.argv[1]), dtype=np.uint8)) for i in range(4)]
    assert all((noded.get(r) == i + int(sys.argv[1])).all() for i, r in enumerate(refs))
    say("put")
    hear()
    assert all((noded.get(r) == i + int(sys.argv[1])).all() for i, r in enumerate(refs))
    say("right")
    hear()
    """
    with Driver(node.address, source, "10") as one, Driver(node.address, source, "20") as two:
        blocker = noded.put(np.zeros(120 * MB, dtype=np.uint8)) if full else None
        for driver in (one, two):
            driver.expect("ready")
        if not full:
            node.kill9()
        for driver in (one, two):
            driver.tell("put")
            driver.expect("putting")
        if full:
            wait_for(lambda: node.status()["store"]["waiting"] == 2, "they do not wait for room")
        node.restart()
        if full:
            wait_for(lambda: node.status()["store"]["waiting"] == 2, "they do not wait for room again")
        del blocker
        for driver in (one, two):
            driver.expect("put")
        for driver in (one, two):
            driver.tell("look")
            driver.expect("right")
            driver.tell("end")
            driver.end()
