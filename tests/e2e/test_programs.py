"""Whole programs, each a process of its own: what only shows in `__main__`, at start and at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RunProgram = Callable[..., str]


def test_classes_and_functions_of_main(run_program: RunProgram) -> None:
    output = run_program(
        """
        import dataclasses, enum
        import noded

        @dataclasses.dataclass
        class Point:
            x: int
            def moved(self): return Point(self.x + SHIFT)

        class Colour(enum.Enum):
            RED = 1

        class Odd(Exception):
            pass

        SHIFT = 5

        def helper(p): return p.moved()

        @noded.remote
        def work(p, colour):
            assert type(p) is Point and colour is Colour.RED
            return helper(p), colour

        @noded.remote
        def fail(): raise Odd("main")

        if __name__ == "__main__":
            noded.init(address="local", num_cpus=1)
            point, colour = noded.get(work.remote(Point(1), Colour.RED))
            print(point == Point(6), type(point) is Point, colour is Colour.RED)
            try:
                noded.get(fail.remote())
            except Odd as error:
                print("caught", isinstance(error, noded.exceptions.TaskError))
        """,
    )

    assert output.splitlines() == ["True True True", "caught True"]


def test_modules_beside_the_program_and_its_directory(run_program: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def here():\n    import os\n    return os.path.basename(os.getcwd())\n")
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "added.py").write_text("VALUE = 'added'\n")
    output = run_program(
        """
        import sys
        import noded, beside
        sys.path.append("later")

        @noded.remote
        def use():
            import added
            return beside.here(), added.VALUE

        noded.init(address="local", num_cpus=1)
        print(*noded.get([use.remote(), noded.remote(beside.here).remote()]))
        """,
    )

    assert output == f"('{tmp_path.name}', 'added') {tmp_path.name}\n"


def test_a_function_that_closes_over_a_ref_and_a_handle(run_program: RunProgram) -> None:
    output = run_program(
        """
        import noded
        noded.init(address="local", num_cpus=2)

        @noded.remote
        class Counter:
            n = 0
            def add(self, k): self.n += k; return self.n

        def program():
            small, big, counter = noded.put(4), noded.put(b"x" * 300_000), Counter.remote()

            @noded.remote
            def use(): return noded.get(counter.add.remote(noded.get(small))), len(noded.get(big))

            print(*sorted(noded.get([use.remote(), use.remote()])))

        program()
        """,
    )

    assert output == "(4, 300000) (8, 300000)\n"


def test_nested_tasks_on_one_cpu_do_not_deadlock(run_program: RunProgram) -> None:
    output = run_program(
        """
        import noded
        noded.init(address="local", num_cpus=1)

        @noded.remote
        def depth(n): return 0 if n == 0 else 1 + noded.get(depth.remote(n - 1))

        @noded.remote
        class Counter:
            def inside(self, n): return noded.get(depth.remote(n))

        print(noded.get(depth.remote(5), timeout=30), noded.get(Counter.remote().inside.remote(2), timeout=30))
        """,
    )

    assert output == "5 2\n"


def test_users_omp_num_threads_stays(run_program: RunProgram) -> None:
    output = run_program(
        """
        import os, noded
        noded.init(address="local", num_cpus=2)
        read = noded.remote(lambda: os.environ["OMP_NUM_THREADS"])
        print(noded.get([read.remote(), read.options(num_cpus=2).remote()]))
        """,
        OMP_NUM_THREADS="3",
    )

    assert output == "['3', '3']\n"


# ---------------------------------------------------------------- output of workers


def test_output_of_tasks_and_actors_comes_to_the_program(run_program: RunProgram) -> None:
    output, errors = run_program(
        """
        import os, sys
        import noded
        noded.init("local", num_cpus=2)

        @noded.remote
        def speak(word):
            print(word, "out")
            print(word, "err", file=sys.stderr)
            return os.getpid()

        @noded.remote
        class Speaker:
            def speak(self, word):
                print(f"{word}\\nsecond line")
                os.write(1, b"from C\\n")
                return os.getpid()

        # Each in one piece: print() writes it in several, and a worker's lines may come between.
        sys.stdout.write(f"TASK {noded.get(speak.remote('tâsk'))}\\n")
        sys.stdout.write(f"ACTOR {noded.get(Speaker.remote().speak.remote('actor'))}\\n")
        """,
        errors=True,
    )
    lines = output.splitlines()
    task, actor = (next(line.split()[1] for line in lines if line.startswith(word)) for word in ("TASK", "ACTOR"))

    assert f"(speak pid={task}) tâsk out" in lines
    assert f"(speak pid={task}) tâsk err" in errors.splitlines()
    for text in ("actor", "second line", "from C"):
        assert f"(Speaker pid={actor}) {text}" in lines
    assert "err" not in output


def test_the_last_words_before_the_program_ends_come_too(run_program: RunProgram) -> None:
    output = run_program(
        """
        import noded
        noded.init("local", num_cpus=1)

        @noded.remote
        def speak():
            print("without an end", end="")
            for i in range(2000): print("\\nline", i, end="")

        noded.get(speak.remote())
        """
    )

    assert output.count("line ") == 2000
    assert output.rstrip().endswith("line 1999") and "without an end" in output


def test_the_output_of_a_crash_comes_too(run_program: RunProgram) -> None:
    output, errors = run_program(
        """
        import os, sys
        import noded
        noded.init("local", num_cpus=1)

        @noded.remote(max_retries=0)
        def crash():
            print("said before")
            sys.stderr.write("half a line")
            sys.stderr.flush()
            os._exit(1)

        try:
            noded.get(crash.remote())
        except noded.exceptions.WorkerCrashedError as error:
            print("half a line" in str(error))
        """,
        errors=True,
    )

    assert "said before" in output and "half a line" in errors
    assert "True" in output.splitlines()


def test_log_to_driver_false_keeps_it_away(run_program: RunProgram) -> None:
    output, errors = run_program(
        """
        import sys
        import noded
        noded.init("local", num_cpus=1, log_to_driver=False)

        @noded.remote
        def speak():
            print("out")
            print("err", file=sys.stderr)

        noded.get(speak.remote())
        print("done")
        """,
        errors=True,
    )

    assert (output, errors) == ("done\n", "")


def test_a_quiet_program_says_nothing(run_program: RunProgram) -> None:
    """No word of noded's own, neither at the start nor at the end, also without shutdown()."""
    source = """
        import noded
        square = noded.remote(lambda x: x * x)
        print(sum(noded.get([square.remote(i) for i in range(10)])))
        """

    assert run_program(source, errors=True) == ("285\n", "")
    assert run_program(source + "noded.shutdown()\n", errors=True) == ("285\n", "")


# ---------------------------------------------------------------- ends


def test_a_program_may_end_with_tasks_and_actors_at_work(run_program: RunProgram) -> None:
    """Its tasks end with it, and nothing is left (the check of every test)."""
    output, errors = run_program(
        """
        import time
        import noded
        noded.init("local", num_cpus=2)

        @noded.remote
        class Actor:
            def sleep(self): time.sleep(999)
            def ready(self): return "ready"

        busy = [noded.remote(lambda: time.sleep(999)).remote() for _ in range(5)]
        actor, other = Actor.remote(), Actor.remote()
        calls = [actor.sleep.remote(), actor.sleep.remote()]
        print(noded.get(other.ready.remote()))
        """,
        errors=True,
    )

    assert (output, errors) == ("ready\n", "")


def test_an_uncaught_error_of_a_task_ends_the_program_with_its_story(run_program: RunProgram, tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text("def deep():\n    return 1 / 0\n")
    output, errors = run_program(
        """
        import runpy, sys, traceback
        import noded
        import inner
        noded.init("local", num_cpus=1)

        @noded.remote
        def work(): return inner.deep()

        try:
            noded.get(work.remote())
        except ZeroDivisionError:
            traceback.print_exc()
        """,
        errors=True,
    )

    assert "inner.py" in errors and "in deep" in errors and "in work" in errors
    assert errors.rstrip().endswith("ZeroDivisionError: division by zero") and not output


def test_a_daemon_thread_in_get_does_not_keep_the_program(run_program: RunProgram) -> None:
    output = run_program(
        """
        import threading, time
        import noded
        noded.init("local", num_cpus=1)
        ref = noded.remote(lambda: time.sleep(999)).remote()
        thread = threading.Thread(target=lambda: noded.get(ref), daemon=True)
        thread.start()
        thread.join(0.2)
        print("end")
        """
    )

    assert output == "end\n"


def test_fork_in_the_program(run_program: RunProgram) -> None:
    """A child of the program has no cluster of its parent's, and its end does not end the parent's."""
    output = run_program(
        """
        import os
        import noded
        noded.init("local", num_cpus=1)
        one = noded.remote(lambda: 1)
        noded.get(one.remote())
        child = os.fork()
        if child == 0:
            print("child", noded.is_initialized(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print("parent", noded.get(one.remote()))
        """
    )

    assert output == "child False\nparent 1\n"
