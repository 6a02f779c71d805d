"""Whole programs, each a process of its own: what only shows in `__main__`, at start and at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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

            print(*noded.get([use.remote(), use.remote()]))

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
