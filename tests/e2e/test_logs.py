"""Logs of a real cluster: what drivers see, `noded logs` from any node, exact bytes of a call, files within limits."""

from __future__ import annotations

import ctypes
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Node, noded_command
from harness.members import Members
from harness.wait import wait_for

import noded
from noded.util.state import get_log, list_logs

MB = 1_000_000
RunProgram = Callable[..., Any]


def command(*words: str, rc: int = 0, raw: bool = False) -> Any:
    """What a command says on stdout, or on stderr when it is to fail."""
    done = subprocess.run(
        [*noded_command(), *words], env={**os.environ}, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.returncode == rc, f"{words} ended with {done.returncode}: {done.stdout!r} {done.stderr!r}"
    found = done.stdout if rc == 0 else done.stderr
    return found if raw else found.decode()


def text_of(**wanted: Any) -> str:
    return "".join(get_log(**wanted))


def log_dir(node: Node) -> Path:
    return Path(os.environ["NODED_HOME"], "clusters", node.cluster, "logs")


def written(directory: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in directory.glob("worker-*.out"))


def task_id() -> str:
    found = noded.get_runtime_context().get_task_id()
    assert found is not None
    return found


def by_c(text: bytes, fd: int = 1) -> None:
    ctypes.CDLL(None).write(fd, text, len(text))


# ---------------------------------------------------------------- what the driver sees


def tasks_that_end_at_once(node: Node, run_program: RunProgram, count: int) -> None:
    output, errors = run_program(
        f"""
        import os, noded
        noded.init({node.address!r})

        @noded.remote(max_retries=0)
        def speak(number, end):
            print(f"unique line {{number}}")
            if end:
                os._exit(0)

        refs = [speak.remote(number, number % 10 == 0) for number in range({count})]
        noded.wait(refs, num_returns=len(refs))

        @noded.remote
        def slow():
            import time
            print("slow begins")
            time.sleep(60)
        left = slow.remote()
        noded.wait([left], timeout=0.5)
        """,
        errors=True,
    )
    unique = [f"unique line {number}" for number in range(count)]
    assert sorted(re.findall(r"unique line \d+", written(log_dir(node)))) == sorted(unique), "the files have them all"
    assert sorted(re.findall(r"unique line \d+", output)) == sorted(unique), "all came before the driver left"
    assert "slow begins" in output
    (job,) = re.findall(r"noded logs --job (\w+) --cluster", errors)
    assert "1 task had not ended when this program left" in errors
    assert "slow begins\n" in command("logs", "--job", job, "--cluster", node.cluster)


def test_what_tasks_print_before_they_end_is_lost_to_nobody(run_program: RunProgram) -> None:
    with Node() as node:
        tasks_that_end_at_once(node, run_program, 60)


@pytest.mark.slow
def test_what_a_thousand_tasks_print_is_lost_to_nobody(run_program: RunProgram) -> None:
    with Node() as node:
        tasks_that_end_at_once(node, run_program, 1000)


def test_no_line_comes_twice_when_the_daemon_is_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Node() as node:
        with noded.init(node.address):

            @noded.remote
            class Speaker:
                def speak(self, number: int) -> None:
                    print("spoken", number)

            speaker = Speaker.remote()
            seen = ""

            def has(word: str) -> bool:
                nonlocal seen
                seen += capfd.readouterr().out
                return word in seen

            noded.get(speaker.speak.remote(1))
            wait_for(lambda: has("spoken 1"), lambda: f"the first line is missing: {seen!r}")
            node.kill9()
            noded.get(speaker.speak.remote(2))
            actor = speaker._actor_id.hex()
            flags = ("logs", "--actor", actor, "--cluster", node.cluster)
            assert command(*flags) == "spoken 1\nspoken 2\n", "the files are read while the daemon is away"
            node.start()
            wait_for(lambda: has("spoken 2"), lambda: f"the second line is missing: {seen!r}", 30)
            assert command(*flags) == "spoken 1\nspoken 2\n"
            assert text_of(actor_id=actor) == "spoken 1\nspoken 2\n"
        seen += capfd.readouterr().out
        assert seen.count("spoken 1") == seen.count("spoken 2") == 1, seen


# ---------------------------------------------------------------- limits


def writes_much(size: int, cap: int) -> None:
    with Node("--log-worker-max-bytes", str(cap)) as node:
        with noded.init(node.address, log_to_driver=False):

            @noded.remote
            def write(size: int) -> str:
                line = "x" * 99
                for number in range(size // 100_000):
                    print("\n".join([line] * 999))
                    print(f"{number:099d}")
                return task_id()

            id_ = noded.get(write.remote(size))
            (path,) = [path for path in log_dir(node).glob("worker-*.out") if path.stat().st_size > size // 2]
            wait_for(
                lambda: path.stat().st_blocks * 512 <= cap + MB,
                lambda: f"{path.stat().st_blocks * 512:,} bytes are on disk, of {path.stat().st_size:,}",
            )
            kept = list(get_log(task_id=id_))
            assert kept[-1] == f"{size // 100_000 - 1:099d}\n" and sum(map(len, kept)) > cap // 2, "the newest are kept"
            shown = command("logs", "--worker", path.name[7:23], "--cluster", node.cluster, "-n", "1")
            assert shown == kept[-1]


def test_a_worker_that_writes_much_is_kept_within_its_cap() -> None:
    writes_much(20 * MB, 2 * MB)


@pytest.mark.slow
def test_half_a_gigabyte_is_kept_within_twenty_megabytes() -> None:
    writes_much(500 * MB, 20 * MB)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fast_writer_does_not_slow_others_down(tmp_path: Path) -> None:
    """100 MB a second to stdout. Compared with the same writer to a file of its own, so that the disk and the CPU that
    it takes itself do not count; the quietest round of each, so that other programs of the machine do not either.
    """
    with Node(num_cpus=2) as node:
        with noded.init(node.address):

            @noded.remote
            def write(path: str, seconds: float) -> float:
                data, begun, total = b"x" * 99 + b"\n", time.monotonic(), 0
                block = data * 10_000
                fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if path else 1
                while (now := time.monotonic() - begun) < seconds:
                    if total < 100 * MB * now:
                        total += os.write(fd, block)
                    else:
                        time.sleep(0.002)
                if path:
                    os.close(fd)
                    os.unlink(path)
                return total / seconds

            @noded.remote
            def nothing() -> None:
                return None

            def p99(path: str) -> float:
                writer = write.remote(path, 4.0)
                time.sleep(1.0)
                times = []
                until = time.monotonic() + 2.8
                while time.monotonic() < until:
                    begun = time.perf_counter()
                    noded.get(nothing.remote())
                    times.append(time.perf_counter() - begun)
                assert noded.get(writer) > 90 * MB, "the writer itself was too slow for this test"
                return statistics.quantiles(times, n=100)[98]

            def cpu() -> float:
                found = next(each for each in node.status()["collectors"] if each["name"] == "logs")
                return float(found["cpu_s"])

            p99(str(tmp_path / "warm"))
            before, begun = cpu(), time.monotonic()
            rounds = [(p99(str(tmp_path / f"own{turn}")), p99("")) for turn in range(7)]
            alone, with_logs = map(min, zip(*rounds, strict=True))
            part = (cpu() - before) / (time.monotonic() - begun) * 2  # half of the time it had nothing to do
            ratio = with_logs / alone
            print(f"p99 {alone * 1e3:.3f} ms beside a writer to its own file, {with_logs * 1e3:.3f} ms to stdout")
            print(f"ratio {ratio:.2f}, the monitor takes {part:.1%} of a core; rounds: {rounds}")
    assert ratio < 1.2 and part < 0.1, rounds


# ---------------------------------------------------------------- from any node


@pytest.fixture
def two() -> Iterator[Members]:
    with Members() as members:
        members.add(name="n1")
        yield members


def test_the_last_words_of_other_nodes_come_before_the_program_ends(two: Members, run_program: RunProgram) -> None:
    output = run_program(
        f"""
        import noded
        from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        noded.init({two.address!r})
        (there,) = [node["NodeID"] for node in noded.nodes() if node["NodeName"] == "n1"]

        @noded.remote(scheduling_strategy=NodeAffinitySchedulingStrategy(there, soft=False))
        def speak(number):
            print(f"unique line {{number}}")

        noded.get([speak.remote(number) for number in range(50)])
        """
    )
    assert sorted(re.findall(r"unique line \d+", output)) == sorted(f"unique line {number}" for number in range(50))
    assert "ip=" not in output, "both nodes have the same address here"


def test_any_node_tells_the_logs_of_all_also_while_the_head_is_away(two: Members) -> None:
    cluster = two.head.cluster
    with noded.init(two["n1"].address):
        where = {node["NodeName"]: node["NodeID"] for node in noded.nodes()}

        @noded.remote
        class Speaker:
            def speak(self, word: str) -> tuple[str, int]:
                print("said on", word)
                print("err of", word, file=sys.stderr)
                return task_id(), os.getpid()

        def on(name: str) -> Any:
            from noded.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            return Speaker.options(scheduling_strategy=NodeAffinitySchedulingStrategy(where[name], soft=False)).remote()

        speakers = {name: on(name) for name in ("head", "n1")}
        told = {name: noded.get(speaker.speak.remote(name)) for name, speaker in speakers.items()}

        listing = command("logs", "--cluster", cluster)
        assert listing.count("Speaker") == 4 and "daemon.log" in listing
        for name, (task, pid) in told.items():
            assert command("logs", "--task", task, "--cluster", cluster) == f"said on {name}\n"
            assert command("logs", "--task", task, "--err", "--cluster", cluster) == f"err of {name}\n"
            assert text_of(node_id=where[name], pid=pid) == f"said on {name}\n"
            files = list_logs(node_id=where[name])
            assert files["daemon"] == ["daemon.log"] and len(files["worker_out"]) >= 1
            assert "is ready at" in text_of(node_id=where[name], filename="daemon.log") or name != "head"
        assert "noded" in command("logs", "--node", "head", "--cluster", cluster, "-n", "1")
        worker = next(
            line.split()[0][7:23] for line in listing.splitlines() if str(told["n1"][1]) in line and ".out" in line
        )
        assert command("logs", "--worker", worker, "--cluster", cluster) == "said on n1\n"

        assert "leases  debug" in command("log-level", "leases", "debug", "--node", "n1", "--cluster", cluster)
        assert "debug" not in command("log-level", "--node", "head", "--cluster", cluster)
        assert "no component" in command("log-level", "nonsense", "debug", "--cluster", cluster, rc=1)
        for words in (["--worker", "xx"], ["--task", "12"], ["--worker", worker, "--node", "n1"]):
            assert "give" in command("logs", *words, "--cluster", cluster, rc=2)
        assert "there is no worker" in command("logs", "--worker", "ffffff0000000001", "--cluster", cluster, rc=1)
        assert "has anything" in command("logs", "--task", "00" * 16, "--cluster", cluster, rc=1)
        assert "there is no node" in command("logs", "--node", "nowhere", "--cluster", cluster, rc=1)

        two.head.kill9()
        task, _ = told["n1"]
        assert command("logs", "--task", task, "--cluster", cluster) == "said on n1\n", "n1 answers for itself"
        two.head.start()
        for name, (task, _) in told.items():
            words = [*noded_command(), "logs", "--task", task, "--cluster", cluster]
            wait_for(
                lambda words=words: subprocess.run(words, capture_output=True).stdout,
                f"the line of {name} is not told after the head's restart",
                30,
            )
            assert command(*words[3:]) == f"said on {name}\n"


def test_following_shows_what_comes_and_ends_with_the_worker() -> None:
    with Node() as node:
        with noded.init(node.address, log_to_driver=False):

            @noded.remote(max_restarts=0)
            class Speaker:
                def speak(self, word: str) -> str:
                    print(word)
                    return noded.get_runtime_context().get_worker_id()

            speaker = Speaker.remote()
            noded.get(speaker.speak.remote("one"))
            (file,) = [name for name in list_logs()["worker_out"] if (log_dir(node) / name).stat().st_size]
            following = subprocess.Popen(
                [*noded_command(), "logs", "--worker", file[7:23], "--follow", "--cluster", node.cluster],
                stdout=subprocess.PIPE,
            )
            try:
                assert following.stdout is not None
                assert following.stdout.readline() == b"one\n"
                noded.get(speaker.speak.remote("two"))
                assert following.stdout.readline() == b"two\n"
                noded.kill(speaker)
                assert following.wait(20) == 0, "it is to end with the worker"
            finally:
                following.kill()
                following.wait()
                following.stdout.close()  # type: ignore[union-attr]


# ---------------------------------------------------------------- exact bytes: on one cluster for all that follow


def test_each_task_has_its_own_bytes(cluster: Any) -> None:
    @noded.remote
    def speak(number: int) -> str:
        if number % 4 == 0:
            print(f"line {number}\nsecond", end="" if number % 8 else "\n")
        elif number % 4 == 1:
            time.sleep(0.002)
            by_c(b"C %d\nno end" % number)
        elif number % 4 == 2:
            print(f"before {number}")
            by_c(b"C %d\n" % number)
            print("after", file=sys.stderr)
        return task_id()

    expected = [
        lambda number: f"line {number}\nsecond" + ("" if number % 8 else "\n"),
        lambda number: f"C {number}\nno end",
        lambda number: f"before {number}\nC {number}\n",
    ]
    ids = noded.get([speak.remote(number) for number in range(16)])
    for number, id_ in enumerate(ids):
        if number % 4 == 3:
            with pytest.raises(ValueError, match="has written nothing"):
                get_log(task_id=id_)
        else:
            assert text_of(task_id=id_) == expected[number % 4](number)
    assert text_of(task_id=ids[2], suffix="err") == "after\n"


def test_calls_of_actors_of_every_kind_have_their_own_bytes(cluster: Any) -> None:
    class Base:
        def __init__(self) -> None:
            print("made")

    @noded.remote
    class Plain(Base):
        def speak(self, word: str) -> str:
            print(word)
            os.system(f"echo child of {word}")
            return task_id()

    @noded.remote(max_concurrency=4)
    class Threaded(Base):
        def speak(self, word: str) -> str:
            for number in range(50):
                print(word, number)
                time.sleep(0.0005)
            return task_id()

    @noded.remote
    class Async(Base):
        async def speak(self, word: str) -> str:
            import asyncio

            for number in range(50):
                print(word, number)
                await asyncio.sleep(0)
            return task_id()

    words = ["a", "b", "c", "d"]
    plain = Plain.remote()
    for word, id_ in zip(words, noded.get([plain.speak.remote(word) for word in words]), strict=True):
        assert text_of(task_id=id_) == f"{word}\nchild of {word}\n"
    lines = text_of(actor_id=plain._actor_id.hex()).splitlines()
    assert lines == ["made", *(line for word in words for line in (word, f"child of {word}"))]
    noded.kill(plain)
    for kind in (Threaded, Async):
        actor = kind.remote()
        for word, id_ in zip(words, noded.get([actor.speak.remote(word) for word in words]), strict=True):
            assert text_of(task_id=id_) == "".join(f"{word} {number}\n" for number in range(50))
        assert next(get_log(actor_id=actor._actor_id.hex(), tail=1)).endswith(" 49\n")
        noded.kill(actor)


def test_what_c_code_writes_in_a_short_call_is_found_when_the_worker_rests(cluster: Any) -> None:
    @noded.remote
    class Quick:
        def speak(self, text: bytes) -> str:
            by_c(text)
            return task_id()

    quick = Quick.remote()
    first = noded.get(quick.speak.remote(b"first\n"))
    wait_for(lambda: _written(first) == "first\n", lambda: f"the first call's bytes are {_written(first)!r}")
    ids = noded.get([quick.speak.remote(b"%d\n" % number) for number in range(20)])
    assert [_written(id_) for id_ in ids] == [f"{number}\n" for number in range(20)], "from now on all are exact"
    noded.kill(quick)


def _written(id_: str) -> str:
    try:
        return text_of(task_id=id_)
    except ValueError:  # nothing yet
        return ""


def test_wrong_questions_are_refused_with_a_reason(cluster: Any) -> None:
    for wrong in (
        {},
        {"task_id": "00" * 16, "pid": 1},
        {"pid": 1},
        {"filename": "x"},
        {"task_id": "00", "suffix": "x"},
    ):
        with pytest.raises(ValueError, match=r"give|suffix"):
            get_log(**wrong)
    with pytest.raises(ValueError, match="no node"):
        list_logs(node_ip="192.0.2.1")
    with pytest.raises(ValueError, match="no node"):
        list_logs(node_id="ff" * 16)
