"""Runtime environments: variables, a working directory and modules, for a job, a task or an actor."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import pytest
import ray

TIMEOUT = 60
CLUSTER = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def start(**runtime_env: Any) -> None:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=runtime_env)


def reading_task() -> Any:
    @ray.remote
    def read(*names: str) -> list[Any]:
        return [os.environ.get(name) for name in names]

    return read


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A module `shipped_module`, a package `shipped_package` and a data file."""
    place = tmp_path / "shipped"
    (place / "shipped_package").mkdir(parents=True)
    (place / "shipped_module.py").write_text("VALUE = 5\n")
    (place / "shipped_package" / "__init__.py").write_text("from shipped_package.part import PART\n")
    (place / "shipped_package" / "part.py").write_text("PART = 6\n")
    (place / "data.txt").write_text("data")
    (place / "left_out.log").write_text("log")
    return place


# ---------------------------------------------------------------- variables


@CLUSTER
def test_variables_of_a_task() -> None:
    read = reading_task()

    assert get(read.options(runtime_env={"env_vars": {"COMPAT_A": "1"}}).remote("COMPAT_A")) == ["1"]
    assert get(read.remote("COMPAT_A")) == [None]
    assert "COMPAT_A" not in os.environ


@CLUSTER
def test_variables_of_the_decorator() -> None:
    @ray.remote(runtime_env={"env_vars": {"COMPAT_B": "decorated"}})
    def read() -> str | None:
        return os.environ.get("COMPAT_B")

    assert get(read.remote()) == "decorated"


@CLUSTER
def test_variables_of_an_actor() -> None:
    @ray.remote
    class Reader:
        def __init__(self) -> None:
            self.at_first = os.environ.get("COMPAT_C")

        def read(self) -> Any:
            return self.at_first, os.environ.get("COMPAT_C")

    reader = Reader.options(runtime_env={"env_vars": {"COMPAT_C": "actor"}}).remote()

    assert get(reader.read.remote()) == ("actor", "actor")


@CLUSTER
def test_variables_refer_to_those_of_the_worker() -> None:
    read = reading_task()
    (path,) = get(read.remote("PATH"))

    found = get(read.options(runtime_env={"env_vars": {"COMPAT_PATH": "${PATH}:/more"}}).remote("COMPAT_PATH"))

    assert found[0].endswith(":/more") and path.split(":")[-1] in found[0]


@CLUSTER
def test_tasks_with_other_variables_run_in_other_processes() -> None:
    @ray.remote
    def where() -> Any:
        return os.getpid(), os.environ["COMPAT_D"]

    pids = {}
    for value in ("a", "b", "a"):
        pid, found = get(where.options(runtime_env={"env_vars": {"COMPAT_D": value}}).remote())
        assert found == value
        pids.setdefault(value, set()).add(pid)
    assert not pids["a"] & pids["b"]


@CLUSTER
def test_children_inherit_the_variables_of_their_parent() -> None:
    read = reading_task()

    @ray.remote
    def parent() -> Any:
        return ray.get(read.remote("COMPAT_E"))

    assert get(parent.options(runtime_env={"env_vars": {"COMPAT_E": "inherited"}}).remote()) == ["inherited"]


def test_variables_of_the_job(alone: None) -> None:
    start(env_vars={"COMPAT_JOB": "job", "COMPAT_BOTH": "job"})
    read = reading_task()
    own = read.options(runtime_env={"env_vars": {"COMPAT_BOTH": "task"}})

    assert get(read.remote("COMPAT_JOB", "COMPAT_BOTH")) == ["job", "job"]
    assert get(own.remote("COMPAT_JOB", "COMPAT_BOTH")) == ["job", "task"]


@CLUSTER
@pytest.mark.parametrize("value", [{"A": 1}, {1: "a"}], ids=str)
def test_variables_are_text(value: Any) -> None:
    with pytest.raises(TypeError):
        reading_task().options(runtime_env={"env_vars": value}).remote()


@CLUSTER
def test_a_runtime_env_object() -> None:
    environment = ray.runtime_env.RuntimeEnv(env_vars={"COMPAT_F": "object"})

    assert environment["env_vars"] == {"COMPAT_F": "object"}
    assert get(reading_task().options(runtime_env=environment).remote("COMPAT_F")) == ["object"]


@CLUSTER
def test_the_context_knows_the_runtime_env() -> None:
    @ray.remote
    def tell() -> Any:
        return dict(ray.get_runtime_context().runtime_env)

    found = get(tell.options(runtime_env={"env_vars": {"COMPAT_G": "1"}}).remote())

    assert found["env_vars"]["COMPAT_G"] == "1"


# ---------------------------------------------------------------- files


def test_a_working_directory(alone: None, directory: Path) -> None:
    start(working_dir=str(directory), excludes=["*.log"])

    @ray.remote
    def look() -> Any:
        import shipped_module
        import shipped_package

        return {
            "value": shipped_module.VALUE + shipped_package.PART,
            "data": Path("data.txt").read_text(),
            "files": sorted(path.name for path in Path(".").iterdir() if path.name != "__pycache__"),
            "where": os.getcwd(),
        }

    found = get(look.remote())

    assert found["value"] == 11
    assert found["data"] == "data"
    assert found["files"] == ["data.txt", "shipped_module.py", "shipped_package"]
    assert found["where"] != str(directory)  # a copy


def test_a_working_directory_for_actors(alone: None, directory: Path) -> None:
    start(working_dir=str(directory))

    @ray.remote
    class Reader:
        def read(self) -> str:
            return Path("data.txt").read_text()

    assert get(Reader.remote().read.remote()) == "data"


def test_modules_of_a_job(alone: None, directory: Path) -> None:
    start(py_modules=[str(directory / "shipped_package")])

    @ray.remote
    def use() -> int:
        import shipped_package

        return shipped_package.PART

    assert get(use.remote()) == 6


def test_a_setup_hook_runs_in_each_worker(alone: None) -> None:
    def set_up() -> None:
        os.environ["COMPAT_HOOK"] = "ran"

    start(worker_process_setup_hook=set_up)

    assert get(reading_task().remote("COMPAT_HOOK")) == ["ran"]


@CLUSTER
@pytest.mark.improves("a task may have a directory of its own; on Ray only a whole job may")
def test_a_working_directory_of_a_task(directory: Path) -> None:
    @ray.remote
    def look() -> str:
        return Path("data.txt").read_text()

    assert get(look.options(runtime_env={"working_dir": str(directory)}).remote()) == "data"


@pytest.mark.parametrize(
    ("runtime_env", "error"),
    [
        ({"working_dir": 3}, TypeError),
        ({"working_dir": "/does/not/exist"}, ValueError),
        ({"py_modules": "module"}, TypeError),
        ({"env_vars": ["A"]}, TypeError),
    ],
    ids=str,
)
@CLUSTER
def test_wrong_runtime_envs_are_refused(runtime_env: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        reading_task().options(runtime_env=runtime_env).remote()


def test_a_program_imports_its_neighbours(alone: None, tmp_path: Path, run_program: Any) -> None:
    (tmp_path / "neighbour.py").write_text(
        textwrap.dedent(
            """
            import ray

            class Point:
                def __init__(self, x):
                    self.x = x

            @ray.remote
            def make(x):
                return Point(x)
            """
        )
    )
    done = run_program(
        """
        import ray
        from neighbour import Point, make
        ray.init("local", num_cpus=1, log_to_driver=False)
        point = ray.get(make.remote(3))
        print(type(point) is Point, point.x)
        """
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "3"]
