"""What a user sees when something goes wrong in a task, in what it carries, or under it."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

import noded
from noded.exceptions import NodedError, SerializationError, TaskError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cluster")
TIMEOUT = 30


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


@noded.remote
def same(value: Any) -> Any:
    return value


@noded.remote
def fail(message: str = "the message") -> None:
    raise ValueError(message)


class NeedsTwo(Exception):
    """Plain pickle cannot load this one: its constructor wants what args does not hold."""

    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"code {code} at {where}")
        self.code = code
        self.where = where


class Slotted(Exception):
    __slots__ = ("slot",)

    def __init__(self, slot: int) -> None:
        self.slot = slot


class HasLock(Exception):
    def __init__(self) -> None:
        super().__init__("carries a lock")
        self.lock = threading.Lock()


class Final(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses, please")


# ---------------------------------------------------------------- the user's exception


def test_the_error_is_of_both_types_and_tells_the_users_frames() -> None:
    with pytest.raises(ValueError, match="the message") as caught:
        get(fail.remote())
    error = caught.value

    assert isinstance(error, TaskError) and isinstance(error, NodedError)
    assert error.args == ("the message",)
    assert isinstance(error.cause, ValueError) and error.task_name == "fail" and error.pid != os.getpid()
    text = str(error)
    assert "test_errors.py" in text and "in fail" in text and "raise ValueError(message)" in text
    assert "noded/worker" not in text and text.rstrip().endswith("ValueError: the message")


def test_each_get_raises_a_fresh_error() -> None:
    ref = fail.remote()
    caught = []
    for _ in range(3):
        with pytest.raises(ValueError) as info:
            get(ref)
        caught.append(info.value)

    assert len(set(map(id, caught))) == 3
    depth = [len(list(_frames(error))) for error in caught]
    assert depth == [depth[0]] * 3


def _frames(error: BaseException) -> Any:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


@pytest.mark.parametrize(
    "make",
    [
        lambda: NeedsTwo(7, where="here"),
        lambda: Slotted(3),
        lambda: OSError(2, "No such file", "name"),
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        lambda: StopIteration("stop"),
        lambda: KeyError("key"),
        lambda: SyntaxError("odd", ("file.py", 1, 2, "text")),
        lambda: ImportError("no", name="x"),
        lambda: ExceptionGroup("several", [ValueError(1), TypeError(2)]),
        lambda: TimeoutError(),
    ],
)
def test_exceptions_of_every_shape(make: Any) -> None:
    original = make()

    def throw() -> None:
        raise make()

    with pytest.raises(type(original)) as caught:
        get(noded.remote(throw).remote())
    error = caught.value
    assert isinstance(error, TaskError)
    for name in ("code", "where", "slot", "errno", "filename", "reason", "object", "lineno", "name", "exceptions"):
        if hasattr(original, name) and name != "exceptions":
            assert getattr(error, name) == getattr(original, name)
    if isinstance(original, ExceptionGroup):
        assert isinstance(error, ExceptionGroup) and [type(e) for e in error.exceptions] == [ValueError, TypeError]


def test_exceptions_that_cannot_be_carried_still_tell_their_story() -> None:
    def with_lock() -> None:
        raise HasLock

    def final() -> None:
        raise Final("sealed")

    with pytest.raises(TaskError, match=r"(?s)HasLock.*carries a lock") as caught:
        get(noded.remote(with_lock).remote())
    assert caught.value.cause_type.endswith("HasLock") and caught.value.cause_message == "carries a lock"
    with pytest.raises(TaskError, match="sealed"):
        get(noded.remote(final).remote())


def test_an_exception_class_of_a_local_scope() -> None:
    class Local(Exception):
        def __init__(self, number: int) -> None:
            super().__init__(number)
            self.number = number

    def throw() -> None:
        raise Local(4)

    with pytest.raises(Local) as caught:
        get(noded.remote(throw).remote())
    assert caught.value.number == 4


def test_causes_and_notes_are_told() -> None:
    def throw() -> None:
        try:
            raise KeyError("first")
        except KeyError as first:
            second = ValueError("second")
            second.add_note("and a note")
            raise second from first

    with pytest.raises(ValueError, match=r"(?s)KeyError: 'first'.*direct cause.*second\nand a note"):
        get(noded.remote(throw).remote())


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_errors_that_are_no_exceptions_do_not_end_the_worker(kind: type[BaseException]) -> None:
    def throw() -> None:
        raise kind("base")

    with pytest.raises(TaskError, match=kind.__name__):
        get(noded.remote(throw).remote())
    assert get(same.remote(1)) == 1


# ---------------------------------------------------------------- through several tasks


def test_dependents_fail_with_the_root_cause() -> None:
    third = same.remote(same.remote(fail.remote("root")))

    with pytest.raises(ValueError, match="root") as caught:
        get(third)
    assert caught.value.task_name == "fail"
    assert "in fail" in str(caught.value)
    with pytest.raises(ValueError, match="root"):
        get([same.remote(1), same.options(num_returns=2).remote(fail.remote("root"))[1]])


def test_dependents_of_a_crash_fail_with_the_crash() -> None:
    crash = noded.remote(lambda: os._exit(4)).options(max_retries=0)

    with pytest.raises(WorkerCrashedError, match="exited with code 4"):
        get(same.remote(crash.remote()))


def test_errors_of_nested_tasks_keep_type_and_both_stories() -> None:
    @noded.remote
    def outer() -> Any:
        return noded.get(fail.remote("inner"))

    with pytest.raises(ValueError, match="inner") as caught:
        get(outer.remote())
    assert "in outer" in str(caught.value) and "in fail" in str(caught.value)
    assert isinstance(caught.value.cause, TaskError)


def test_an_error_can_be_caught_in_a_task_by_its_type() -> None:
    @noded.remote
    def outer() -> str:
        try:
            noded.get(fail.remote("inner"))
        except ValueError as error:
            return f"caught {type(error).__name__}"
        return "nothing"

    assert get(outer.remote()) == "caught TaskError(ValueError)"


def test_errors_are_values_too() -> None:
    """An exception that is returned or put is not raised."""
    error = get(same.remote(ValueError("a value")))

    assert type(error) is ValueError
    assert type(get(noded.put(KeyError("x")))) is KeyError


def test_a_failed_ref_inside_a_value_fails_where_it_is_got() -> None:
    @noded.remote
    def look(box: list[Any]) -> str:
        try:
            noded.get(box[0])
        except ValueError as error:
            return str(error.args[0])
        return "nothing"

    assert get([look.remote([fail.remote("nested")]) for _ in range(3)]) == ["nested"] * 3


# ---------------------------------------------------------------- what cannot be pickled


class Holder:
    def __init__(self) -> None:
        self.name = "fine"
        self.connection = {"socket": threading.Lock()}


def test_unpicklable_arguments_say_which_part() -> None:
    with pytest.raises(SerializationError, match=r"arguments of same .*lock.*\.connection\['socket'\]") as caught:
        same.remote(Holder())
    assert isinstance(caught.value, TypeError)
    with pytest.raises(TypeError, match=r"given to noded.put\(\).*\.connection\['socket'\]"):
        noded.put(Holder())
    assert get(same.remote(1)) == 1


def test_unpicklable_results_say_which_part() -> None:
    @noded.remote
    def make() -> Any:
        return [1, Holder()]

    with pytest.raises(TypeError, match=r"return value of .*make.*\[1\]\.connection\['socket'\]"):
        get(make.remote())


def test_unpicklable_functions_and_classes_say_which_part() -> None:
    lock = threading.Lock()

    @noded.remote
    def uses() -> Any:
        return lock

    @noded.remote
    class Uses:
        def method(self) -> Any:
            return lock

    with pytest.raises(TypeError, match=r"function .*uses.*lock"):
        uses.remote()
    with pytest.raises(TypeError, match=r"class .*Uses.*lock"):
        Uses.remote()


def test_what_cannot_be_loaded_in_the_worker_or_here() -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return _explode, ("on loading",)

    with pytest.raises(RuntimeError, match="on loading"):
        get(same.remote(Trap()))
    with pytest.raises(RuntimeError, match="on loading"):
        get(noded.remote(lambda: Trap()).remote())
    assert get(same.remote(1)) == 1


def _explode(text: str) -> None:
    raise RuntimeError(text)


# ---------------------------------------------------------------- dead workers


def test_a_dead_worker_tells_code_and_last_words() -> None:
    @noded.remote(max_retries=0)
    def leave() -> None:
        import sys

        for number in range(30):
            print(f"line {number}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(13)

    with pytest.raises(
        WorkerCrashedError, match=r"(?s)leave died.*exited with code 13.*\| line 28\n.*\| line 29"
    ) as info:
        get(leave.remote())
    assert info.value.exit_code == 13 and not info.value.signal and info.value.pid
    assert info.value.stderr_tail[-1] == "line 29"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_killed_worker_tells_the_signal(number: signal.Signals) -> None:
    def end() -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    with pytest.raises(WorkerCrashedError, match=number.name) as caught:
        get(noded.remote(end).options(max_retries=0).remote())
    assert caught.value.signal == number.name and caught.value.exit_code is None


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_tasks_beside_a_crash_are_not_its_victims(retries: int) -> None:
    """Short tasks are sent ahead, many to one worker; those behind one that ends it run all the same."""

    @noded.remote(max_retries=retries)
    def work(n: int) -> int:
        if n % 40 == 17:
            os._exit(1)
        return n

    get([work.remote(0) for _ in range(20)])  # now their duration is known to be short
    refs = [work.remote(n) for n in range(100)]
    for n, ref in enumerate(refs):
        if n % 40 == 17:
            with pytest.raises(WorkerCrashedError):
                get(ref)
        else:
            assert get(ref) == n
