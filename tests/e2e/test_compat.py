"""`import ray` means noded: in the program, in what it starts, in its workers; and `noded run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.cluster import REPOSITORY, Node, noded_command
from packaging.version import Version

from noded.compat import environment
from noded.compat.absent import ABSENT
from noded.compat.finder import MODULES

Program = Callable[..., str]
RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def noded_run(tmp_path: Path) -> RunCommand:
    """`noded run` with these arguments in tmp_path; `program` is the source of program.py there."""

    def run(*arguments: str, program: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "program.py").write_text(textwrap.dedent(program))
        return subprocess.run(
            [*noded_command(), "run", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A directory with something that is installed as `ray`, and says so when it is imported."""
    package = tmp_path / "site" / "ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("installed = True\n")
    return str(package.parent)


# ---------------------------------------------------------------- names


def test_names_are_noded_s_own(run_program: Program) -> None:
    run_program("""
        import noded, noded.compat.ray
        import ray, ray.util.queue, ray.exceptions
        from ray.actor import ActorHandle, exit_actor
        from ray.exceptions import RayActorError, RayTaskError
        from ray.util import ActorPool
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        import noded.util.queue

        assert ray is noded.compat.ray and ray.__name__ == "noded.compat.ray"
        assert ray.remote is noded.remote and ray.ObjectRef is noded.ObjectRef is ray.types.ObjectRef
        assert ray.util.queue is noded.util.queue and ActorPool is noded.util.ActorPool
        assert ActorHandle is noded.ActorHandle
        assert RayTaskError is noded.exceptions.TaskError and issubclass(RayActorError, ray.exceptions.RayError)
        import cloudpickle, ray.cloudpickle
        assert ray.cloudpickle is cloudpickle
        names = {}
        exec("from ray import *", names)
        assert names["get"] is noded.get and names["util"] is ray.util
    """)


def test_what_ray_imports_by_itself_is_there(run_program: Program) -> None:
    run_program("""
        import noded.compat.ray, ray
        assert issubclass(ray.exceptions.RayTaskError, ray.exceptions.RayError)
        assert ray.util.ActorPool and ray.util.placement_group and ray.actor.exit_actor
        assert ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        assert ray.util.queue.Queue and ray.runtime_context.RuntimeContext and ray.cloudpickle.dumps
        assert {"get", "util", "exceptions"} <= set(ray.__all__) and "ActorPool" in dir(ray.util)
    """)


def test_version_says_which_ray_and_that_it_is_not_ray(run_program: Program) -> None:
    said, installed = run_program("""
        import noded.compat.ray, ray
        from importlib.metadata import version
        print(ray.__version__, version("ray"))
    """).split()
    dumps = (REPOSITORY / "tests/data").glob("ray-*-api.json")
    newest = max(Version(json.loads(path.read_text())["version"]) for path in dumps)
    for version in said, installed:
        assert "noded" in version
        assert Version(version).release >= newest.release


def test_every_module_of_the_table_is_there(run_program: Program) -> None:
    optional = "ray.util.joblib"  # needs joblib itself
    run_program(f"""
        import importlib, noded.compat.ray
        for name in {sorted(set(MODULES) - {optional})}:
            module = importlib.import_module(name)
            parent, _, child = name.rpartition(".")
            if parent and not callable(getattr(importlib.import_module(parent), child)):
                assert getattr(importlib.import_module(parent), child) is module, name
        import noded.util, ray
        assert callable(ray.util.placement_group) and callable(noded.util.placement_group)
    """)


def test_what_is_not_there_says_so(run_program: Program) -> None:
    assert not set(ABSENT) & set(MODULES)
    run_program(f"""
        import importlib, importlib.util, noded.compat.ray, ray
        for name in {sorted(ABSENT)}:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                assert error.name == name and name in str(error) and "docs/ray-api.md" in str(error), error
            else:
                raise AssertionError(name)
            assert importlib.util.find_spec(name) is None, name
        for line in ("import ray.data", "from ray import tune", "from ray.train.torch import TorchTrainer",
                     "import ray.nothing_of_this_name"):
            try:
                exec(line)
            except ImportError as error:
                assert "noded" in str(error), error
            else:
                raise AssertionError(line)
        assert not hasattr(ray, "serve") and not hasattr(ray.util, "collective")
        assert importlib.util.find_spec("ray") is not None and importlib.util.find_spec("ray.util.queue") is not None
        try:
            from ray import tune
        except ImportError as error:
            assert "library on top of Ray Core" in str(error)
    """)


def test_installed_ray_is_passed_over_imported_ray_is_an_error(run_program: Program, stand_in: str) -> None:
    first = run_program("import noded.compat.ray, ray; print(ray.__name__)", PYTHONPATH=stand_in)
    assert first.strip() == "noded.compat.ray"
    run_program(
        """
        import ray
        assert ray.installed
        try:
            import noded.compat.ray
        except ImportError as error:
            assert "imported in this process already" in str(error) and ray.__file__ in str(error)
        else:
            raise AssertionError("two rays")
        """,
        PYTHONPATH=stand_in,
    )


def test_ids_of_ray(run_program: Program) -> None:
    run_program("""
        import noded.compat.ray, ray, pickle
        for kind in (ray.NodeID, ray.ActorID, ray.TaskID, ray.PlacementGroupID, ray.WorkerID, ray.UniqueID):
            made = kind.from_random()
            assert kind.from_hex(made.hex()) == kind(made.binary()) == pickle.loads(pickle.dumps(made)) == made
            assert not made.is_nil() and kind.nil().is_nil() and len({made, kind.from_hex(made.hex())}) == 1
            assert len(made.binary()) == kind.size()
        assert ray.JobID.from_int(3).int() == 3
        try:
            ray.NodeID(b"short")
        except ValueError as error:
            assert "NodeID" in str(error)
        else:
            raise AssertionError
    """)


def test_ids_of_noded_do_what_ray_s_do(run_program: Program) -> None:
    run_program("""
        import noded.compat.ray, ray
        ray.init(num_cpus=1)

        @ray.remote
        class A:
            def ids(self):
                context = ray.get_runtime_context()
                return context.actor_id, context.task_id, context.node_id, context.job_id

        a = A.remote()
        call = a.ids.remote()
        actor, task, node, job = ray.get(call)
        assert actor.hex() == a._actor_id.hex() == a._ray_actor_id.hex() == actor
        assert ray.ActorID(actor.binary()).hex() == actor
        assert task.hex() == call.task_id().hex() and ray.TaskID.from_hex(task).binary() == task.binary()
        assert node.hex() == ray.get_runtime_context().get_node_id() == ray.nodes()[0]["NodeID"]
        assert ray.JobID.from_hex(job.hex()).hex() == ray.get_runtime_context().get_job_id()
        assert not job.is_nil()
    """)


# ---------------------------------------------------------------- processes


def test_child_processes_inherit_it(run_program: Program, stand_in: str) -> None:
    """Of a program that has only imported noded.compat.ray."""
    out = run_program(
        """
        import multiprocessing, subprocess, sys
        import noded.compat.ray

        def name():
            import ray
            return ray.__name__

        if __name__ == "__main__":
            print(subprocess.run([sys.executable, "-c", "import ray; print(ray.__name__)"],
                                 check=True, capture_output=True, text=True).stdout.strip())
            for method in ("spawn", "fork"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    print(pool.apply(name))
        """,
        PYTHONPATH=stand_in,
    )
    assert out.split() == ["noded.compat.ray"] * 3


def test_workers_and_what_they_start_have_it(run_program: Program, tmp_path: Path, stand_in: str) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            import ray
            from ray.exceptions import RayError

            class Refused(RayError):
                pass

            class Holder:
                ref: ray.ObjectRef
                def __init__(self, ref): self.ref = ref

            def value(holder):
                assert isinstance(holder.ref, ray.ObjectRef)
                return ray.get(holder.ref)

            def refuse():
                raise Refused("no")
        """)
    )
    run_program(
        """
        import noded.compat.ray
        import ray, mine
        from ray.util.queue import Queue

        ray.init(num_cpus=2)
        assert ray.get(ray.remote(mine.value).remote(mine.Holder(ray.put(5)))) == 5

        @ray.remote
        def inside(queue):
            import os, subprocess, sys
            import ray as found
            queue.put(found.__name__)
            assert found is ray
            return subprocess.run([sys.executable, "-c", "import ray; print(ray.__name__)"],
                                  check=True, capture_output=True, text=True).stdout.strip()

        queue = Queue()
        assert ray.get(inside.remote(queue)) == "noded.compat.ray"
        assert queue.get(timeout=10) == "noded.compat.ray"

        try:
            ray.get(ray.remote(mine.refuse).remote())
        except mine.Refused as error:
            assert isinstance(error, ray.exceptions.RayTaskError) and isinstance(error, ray.exceptions.RayError)
        else:
            raise AssertionError("not refused")
        """,
        PYTHONPATH=stand_in,
    )


def test_python_without_noded_says_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import ray"],  # -S: nothing that is installed
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": environment.PATH},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "has no noded" in done.stderr
    assert environment.PATH in done.stderr


# ---------------------------------------------------------------- init


def test_init_takes_what_ray_takes(run_program: Program) -> None:
    out = run_program("""
        import warnings
        import noded.compat.ray
        import ray
        from ray.job_config import JobConfig

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            context = ray.init(
                num_cpus=1, include_dashboard=False, dashboard_port=8265, _temp_dir="/tmp/x", _system_config={"a": 1},
                _redis_password="p", logging_level="info", local_mode=True, cgroup_path="/sys",
                logging_config=ray.LoggingConfig(encoding="JSON"), job_config=JobConfig(ray_namespace="mine"),
            )
        assert any("local_mode" in str(warning.message) for warning in caught)
        print(ray.get_runtime_context().namespace, ray.cluster_resources()["CPU"], context["node_id"] != "")
        ray.shutdown()
        with ray.client().namespace("other").connect():
            print(ray.get_runtime_context().namespace)
        for call in (ray.java_function, ray.cpp_function):
            try:
                call(*["x"] * (2 if call is ray.java_function else 1))
            except NotImplementedError as error:
                assert "Ray itself" in str(error)
        try:
            ray.init(no_such_argument=1)
        except TypeError as error:
            assert "no_such_argument" in str(error)
    """)
    assert out.splitlines() == ["mine 1.0 True", "other"]


def test_ray_address(run_program: Program) -> None:
    program = """
        import noded.compat.ray
        import ray

        @ray.remote
        def inside():
            import ray as found
            return found.__name__, found.cluster_resources()["CPU"]

        %s
        print(*ray.get(inside.remote()))
    """
    with Node(num_cpus=3) as node:
        for start in ("ray.init()", "", "ray.init(address='auto')"):
            assert run_program(program % start, RAY_ADDRESS=node.address).split() == ["noded.compat.ray", "3.0"]
        private = run_program(program % "ray.init('local', num_cpus=1)", RAY_ADDRESS=node.address)
        assert private.split() == ["noded.compat.ray", "1.0"]
        both = run_program(program % "ray.init()", RAY_ADDRESS="ray://nowhere:1", NODED_ADDRESS=node.address)
        assert both.split() == ["noded.compat.ray", "3.0"]


@pytest.mark.parametrize(
    ("address", "said"), [("ray://127.0.0.1:10001", "no such client protocol"), ("127.0.0.1:1", "listens at")]
)
def test_wrong_ray_address(run_program: Program, address: str, said: str) -> None:
    out = run_program(
        """
        import noded.compat.ray, ray
        try:
            ray.init()
        except ConnectionError as error:
            print(error)
        """,
        RAY_ADDRESS=address,
    )
    assert said in out
    assert address in out


# ---------------------------------------------------------------- noded run


def test_run_is_python(noded_run: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("name = 'beside'\n")
    program = """
        import json, os, sys
        import beside
        print(json.dumps([__name__, sys.argv, os.path.dirname(os.path.abspath(__file__)), beside.name]))
        sys.exit(int(sys.argv[1]))
    """
    done = noded_run("program.py", "7", "--as-ray", "-m", "--", "--help", program=program)
    assert done.returncode == 7, done.stderr
    name, argv, directory, beside = json.loads(done.stdout)
    assert (name, directory, beside) == ("__main__", str(tmp_path), "beside")
    assert argv == ["program.py", "7", "--as-ray", "-m", "--", "--help"]


def test_run_of_a_module(noded_run: RunCommand, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text("import ray, sys; print(ray.__name__, sys.argv[1:], __package__)\n")
    done = noded_run("--as-ray", "-m", "package", "--help", "-m", "x")
    assert done.stdout == "noded.compat.ray ['--help', '-m', 'x'] package\n", done.stderr


def test_run_shows_the_program_s_own_traceback(noded_run: RunCommand) -> None:
    done = noded_run("--as-ray", "program.py", program="import ray\nraise ValueError('mine')\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert done.stderr.splitlines()[-1] == "ValueError: mine"
    assert "noded" not in done.stderr
    assert noded_run("--as-ray", "there-is-no-such.py").returncode == 2
    assert noded_run("--no-such-flag", "program.py").returncode == 2
    assert "PROGRAM" in noded_run().stderr


def test_run_alone_leaves_ray_alone(noded_run: RunCommand, stand_in: str) -> None:
    program = "import noded, ray; print(ray.installed)\n"
    assert noded_run("program.py", program=program, PYTHONPATH=stand_in).stdout == "True\n"


def test_run_as_ray_reaches_the_whole_tree_of_processes(noded_run: RunCommand, stand_in: str) -> None:
    program = """
        import os, subprocess, sys
        import ray
        depth = int(sys.argv[1])
        print(depth, ray.__name__, flush=True)
        if depth:
            os.execv(sys.executable, [sys.executable, *sys.argv[:1], str(depth - 1)])

        @ray.remote
        def inside():
            code = "import ray; print(ray.__name__)"
            return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

        ray.init(num_cpus=1)
        print(ray.get(inside.remote()).strip())
    """
    done = noded_run("--as-ray", "program.py", "1", program=program, PYTHONPATH=stand_in)
    assert done.stdout.splitlines() == ["1 noded.compat.ray", "0 noded.compat.ray", "noded.compat.ray"], done.stderr
