"""noded.exceptions: texts, pickling, and errors that are TaskError and the user's class at once."""

from __future__ import annotations

import gc
import inspect
import pickle
import subprocess
import sys
import textwrap
import traceback
import weakref
from typing import Any

import cloudpickle
import pytest

from noded import exceptions
from noded.exceptions import (
    ActorDiedError,
    ActorError,
    ActorUnavailableError,
    GetTimeoutError,
    NodedError,
    ObjectFreedError,
    ObjectLostError,
    OwnerDiedError,
    ReferenceCountingAssertionError,
    SerializationError,
    TaskCancelledError,
    TaskError,
    TaskPlacementGroupRemoved,
    UnserializableException,
    WorkerCrashedError,
)


class Refused(Exception):
    """Its constructor cannot be called with its args, so plain pickle fails on it."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"refused: {why}")
        self.code = code
        self.node = "the user's own attribute"


class Slotted(Exception):
    __slots__ = ("limit",)


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set")


class WithProperty(Exception):
    @property
    def pid(self) -> int:
        return self._pid  # type: ignore[attr-defined, no-any-return]


class Picky(Exception):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("no subclasses, please")


class Custom(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return Custom, ("rebuilt by its own __reduce__",)


class BrokenText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text today")


def failed(error: BaseException, task_name: str = "shop.sell") -> TaskError:
    """What a worker makes of `error`, as it arrives at the submitter."""

    def task() -> None:
        raise error

    try:
        task()
    except BaseException as caught:
        story = TaskError.from_exception(caught, task_name, pid=17, node="head")
    return round_trip(story)


def round_trip(error: Any) -> Any:
    return pickle.loads(pickle.dumps(error, protocol=5))


# --- TaskError -------------------------------------------------------------------------------------------


def test_dual_is_caught_as_the_users_class_and_as_ours() -> None:
    dual = failed(ValueError("bad price", 3)).as_dual()
    assert isinstance(dual, TaskError) and isinstance(dual, ValueError)
    with pytest.raises(ValueError) as caught:
        raise dual
    assert caught.value.args == ("bad price", 3)
    assert isinstance(dual.cause, ValueError) and not isinstance(dual.cause, TaskError)
    assert (dual.task_name, dual.pid, dual.node) == ("shop.sell", 17, "head")
    assert (dual.cause_type, dual.cause_message) == ("ValueError", "('bad price', 3)")


def test_text_has_the_task_and_the_users_frames_only() -> None:
    namespace: dict[str, Any] = {}
    inside = compile("def run(task):\n    task()\n", exceptions.__file__.replace("exceptions", "run"), "exec")
    exec(inside, namespace)

    def sell() -> None:
        raise KeyError("apples")

    with pytest.raises(KeyError) as caught:
        namespace["run"](sell)
    lines = str(TaskError.from_exception(caught.value, "shop.sell", pid=17, node="head").as_dual()).split("\n")
    assert lines[0] == "task shop.sell (pid 17, node head) raised:"
    assert lines[1] == "Traceback (most recent call last):"
    assert __file__ in lines[2]
    assert not any("run.py" in line for line in lines)
    assert lines[-1] == "KeyError: 'apples'"


def test_an_error_wholly_inside_noded_keeps_its_frames() -> None:
    namespace: dict[str, Any] = {}
    exec(compile("def fail():\n    1 / 0\n", exceptions.__file__, "exec"), namespace)
    with pytest.raises(ZeroDivisionError) as caught:
        namespace["fail"]()
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # type: ignore[union-attr]
    assert exceptions.__file__ in TaskError.from_exception(caught.value, "f").traceback_text


def test_the_chain_of_causes_is_in_the_text() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as caught:
        text = str(TaskError.from_exception(caught, "f"))
    assert "KeyError: 'inner'" in text and "direct cause" in text and text.endswith("ValueError: outer")


def test_dual_keeps_attributes_notes_and_those_of_builtin_classes() -> None:
    error = Refused(7, why="closed")
    error.add_note("ask again tomorrow")
    dual: Any = failed(error).as_dual()
    assert isinstance(dual, Refused)
    assert dual.code == 7 and dual.node == "the user's own attribute"
    assert dual.__notes__ == ["ask again tomorrow"]
    assert "node head" in str(dual), "the user's attribute must not change our text"

    missing: Any = failed(FileNotFoundError(2, "No such file", "/nowhere")).as_dual()
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.strerror, missing.filename) == (2, "No such file", "/nowhere")
    assert str(missing.cause) == "[Errno 2] No such file: '/nowhere'"
    assert str(failed(OSError(5, "bad")).cause) == "[Errno 5] bad"

    decode: Any = failed(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")).as_dual()
    assert isinstance(decode, UnicodeDecodeError)
    assert (decode.object, decode.end, decode.reason) == (b"\xff", 1, "invalid")

    slotted = Slotted("full")
    slotted.limit = 12
    assert failed(slotted).as_dual().limit == 12  # type: ignore[attr-defined]


def test_attribute_error_does_not_carry_the_object() -> None:
    lacking = type("Lacking", (), {"__reduce__": lambda self: 1 / 0})()
    with pytest.raises(AttributeError) as caught:
        _ = lacking.wheels
    dual = round_trip(TaskError.from_exception(caught.value, "f")).as_dual()
    assert isinstance(dual, AttributeError) and dual.name == "wheels"


def test_classes_that_resist() -> None:
    assert isinstance(failed(Frozen("f")).as_dual(), Frozen)
    error = WithProperty("p")
    error.__dict__["_pid"] = 99
    dual = failed(error).as_dual()
    assert dual.pid == 99 and "pid 17" in str(dual)
    broken = failed(BrokenText()).as_dual()
    assert isinstance(broken, BrokenText) and "not available" in broken.cause_message
    assert isinstance(failed(Custom("x")).cause, Custom)
    assert failed(Custom("x")).cause.args == ("rebuilt by its own __reduce__",)  # type: ignore[union-attr]


@pytest.mark.parametrize("error", [Picky("p"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_falls_back_to_plain(error: BaseException) -> None:
    dual = failed(error).as_dual()
    assert type(dual) is TaskError
    assert type(dual.cause) is type(error)
    assert str(dual).startswith("task shop.sell (pid 17, node head) raised:\n")


def test_exception_groups_can_be_split() -> None:
    group = ExceptionGroup("two failed", [ValueError("a"), KeyError("b")])
    seen: list[BaseException] = []
    try:
        raise failed(group).as_dual()
    except* KeyError as caught:
        seen += caught.exceptions
    except* ValueError as caught:
        seen += caught.exceptions
    assert [type(error) for error in seen] == [KeyError, ValueError]


def test_nested_tasks_show_the_innermost_class() -> None:
    inner = failed(ValueError("deep"), "inner").as_dual()
    outer = failed(inner, "outer").as_dual()
    assert isinstance(outer, ValueError) and outer.args == ("deep",)
    assert outer.task_name == "outer"
    assert isinstance(outer.cause, TaskError) and outer.cause.task_name == "inner"
    assert "task inner" in str(outer) and str(outer).endswith("ValueError: deep")


def test_our_own_errors_can_be_causes() -> None:
    dual = failed(ObjectFreedError("ab12")).as_dual()
    assert isinstance(dual, ObjectFreedError) and dual.object_id == "ab12"


def test_ray_s_names_of_a_task_error_give_way_to_the_users_attributes() -> None:
    error = TaskError.from_exception(ValueError("no"), "f")
    assert error.function_name == "f"
    assert error.traceback_str == error.traceback_text
    assert isinstance(error.as_instanceof_cause(), ValueError)
    mine = Refused(1, why="x")
    mine.function_name = "mine"  # type: ignore[attr-defined]
    assert TaskError.from_exception(mine, "f").as_dual().function_name == "mine"


def test_dual_stays_dual_through_pickle() -> None:
    dual = failed(Refused(7, why="closed")).as_dual()
    dual.add_note("seen")
    again = round_trip(dual)
    assert isinstance(again, Refused) and isinstance(again, TaskError)
    assert again.code == 7 and str(again) == str(dual) and again.__notes__ == ["seen"]
    assert type(again) is type(dual), "one class per cause's class"
    assert type(round_trip(failed(Refused(1, why="x")))) is TaskError


def test_without_cause_and_what_cannot_be_pickled() -> None:
    error = ValueError("holds a lock")
    error.lock = __import__("threading").Lock()  # type: ignore[attr-defined]
    story = TaskError.from_exception(error, "f", node="n")
    with pytest.raises(TypeError):
        pickle.dumps(story)
    bare = round_trip(story.without_cause())
    assert bare.cause is None and bare.cause_type == "ValueError" and bare.cause_message == "holds a lock"
    assert str(bare.as_dual()) == str(story)
    assert type(bare.as_dual()) is TaskError


def test_each_dual_is_fresh_and_chains() -> None:
    story = failed(ValueError("v"))
    first, second = story.as_dual(), story.as_dual()
    assert first is not second and type(first) is type(second)
    with pytest.raises(RuntimeError) as caught:
        try:
            raise first
        except ValueError as error:
            raise RuntimeError("while selling") from error
    assert caught.value.__cause__ is first and second.__traceback__ is None
    printed = "".join(traceback.format_exception(caught.value))
    assert "noded.exceptions.TaskError(ValueError): task shop.sell (pid 17" in printed


def test_a_users_class_is_let_go() -> None:
    gone = weakref.ref(make := type("Passing", (Exception,), {}))
    dual = TaskError.from_exception(make("x"), "f").as_dual()
    assert isinstance(dual, make)
    del make, dual
    gc.collect()  # the combined class goes,
    gc.collect()  # and then nothing refers to the user's
    assert gone() is None


def test_class_defined_in_main_travels_by_value() -> None:
    code = """
        import cloudpickle, sys
        from noded.exceptions import TaskError
        class Mine(Exception):
            def __init__(self, a, b):
                super().__init__("mine")
                self.sum = a + b
        error = TaskError.from_exception(Mine(1, 2), "f")
        sys.stdout.buffer.write(cloudpickle.dumps(error.as_dual()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True)
    dual = cloudpickle.loads(done.stdout)
    assert type(dual).__name__ == "TaskError(Mine)" and dual.sum == 3


# --- the others ------------------------------------------------------------------------------------------


def every_error() -> list[NodedError]:
    made: list[NodedError] = []
    for cls in vars(exceptions).values():
        if inspect.isclass(cls) and issubclass(cls, NodedError):
            made.append(cls("shop.sell", "Traceback: …") if cls is TaskError else cls("some text"))
    return made


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_every_error_survives_pickle(error: NodedError) -> None:
    error.add_note("a note")
    for again in (round_trip(error), cloudpickle.loads(cloudpickle.dumps(error))):
        assert type(again) is type(error) and isinstance(again, NodedError)
        assert str(again) == str(error) and again.__dict__ == error.__dict__
        assert "some text" in str(again) or isinstance(again, TaskError)
    assert type(error).__doc__ and type(error).__module__ == "noded.exceptions"


def test_every_error_is_in_the_drawing() -> None:
    drawing = exceptions.__doc__ or ""
    for error in every_error():
        assert type(error).__name__ in drawing


def test_standard_classes_beside_ours() -> None:
    assert isinstance(GetTimeoutError("slow"), TimeoutError)
    assert isinstance(SerializationError("x"), TypeError)
    assert isinstance(ReferenceCountingAssertionError("ab"), AssertionError)
    assert issubclass(ActorDiedError, ActorError) and issubclass(ActorUnavailableError, ActorError)
    assert issubclass(OwnerDiedError, ObjectLostError)


def test_the_end_of_a_process_is_told() -> None:
    ending: dict[str, Any] = {"pid": 17, "stderr_tail": ["Fatal: no\n", "bye"], "max_rss": 3 << 20}
    crashed = round_trip(WorkerCrashedError(worker_id="w1", signal="SIGSEGV", **ending))
    assert str(crashed) == (
        "worker w1 ended while it ran a task: its process (pid 17) was ended by SIGSEGV; "
        "it had used 3 MiB at most\nlast lines of its stderr:\n  | Fatal: no\n  | bye"
    )
    died = round_trip(ActorDiedError(actor_id="a1", exit_code=4, **ending))
    assert str(died).startswith("the actor a1 died: its process (pid 17) exited with code 4; it had")
    assert (died.actor_id, died.exit_code, died.max_rss) == ("a1", 4, 3 << 20)
    assert died.stderr_tail == ["Fatal: no\n", "bye"]
    assert str(ActorDiedError("killed by noded.kill", actor_id="a1")).startswith("killed by noded.kill (its")
    assert str(WorkerCrashedError()) == "worker ended while it ran a task: its process ended"


def test_texts_name_the_id_and_the_next_step() -> None:
    assert str(ObjectLostError("ab12")) == (
        "object ab12 is lost: all its copies are gone, and it cannot be computed again: submit its task again"
    )
    assert str(TaskCancelledError("t1")) == "task t1 was cancelled"
    assert "the placement group g1 of this task was removed" in str(TaskPlacementGroupRemoved("g1"))
    assert "max_task_retries" in str(ActorUnavailableError(actor_id="a1"))
    assert str(UnserializableException("ValueError: x")).endswith("it said:\nValueError: x")
    assert str(SerializationError("f cannot be pickled", path="args[0].lock")) == (
        "f cannot be pickled (at args[0].lock)"
    )
