"""noded.util's small parts that need no cluster: log_once, annotations, the lazy package, values of failures."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from noded.util import annotations, debug


@pytest.fixture(autouse=True)
def as_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_disabled", "_periodic"):
        monkeypatch.setattr(debug, name, False)
    debug.reset_log_once()


def test_log_once_is_true_once_per_key() -> None:
    assert [debug.log_once("a"), debug.log_once("a"), debug.log_once("b")] == [True, False, True]


def test_reset_forgets_one_key_or_all() -> None:
    debug.log_once("a"), debug.log_once("b")
    debug.reset_log_once("a")
    assert [debug.log_once("a"), debug.log_once("b")] == [True, False]
    debug.reset_log_once()
    assert [debug.log_once("a"), debug.log_once("b")] == [True, True]


def test_disabled_it_is_never_true() -> None:
    debug.disable_log_once_globally()
    assert not debug.log_once("a")


def test_periodic_logging_begins_anew_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(debug.time, "monotonic", lambda: now)
    debug.enable_periodic_logging()
    assert [debug.log_once("a"), debug.log_once("a")] == [True, False]

    now += debug.PERIOD + 1
    assert not debug.log_once("a")  # this call finds that it is time
    assert debug.log_once("a")


def test_annotations_leave_what_they_mark_as_it_is() -> None:
    @annotations.PublicAPI
    def plain() -> int:
        return 1

    @annotations.DeveloperAPI()
    class Kind:
        pass

    @annotations.PublicAPI(stability="alpha")
    def young() -> int:
        return 2

    assert (plain(), young(), Kind().__class__) == (1, 2, Kind)
    with pytest.raises(ValueError, match="stability"):
        annotations.PublicAPI(stability="shaky")


def test_deprecated_warns_only_where_asked() -> None:
    @annotations.Deprecated
    def silent() -> int:
        return 1

    @annotations.Deprecated(message="Use the new one.", warning=True)
    def loud() -> int:
        return 2

    @annotations.Deprecated(warning=True)
    class Old:
        pass

    assert silent() == 1
    with pytest.warns(DeprecationWarning, match=r"loud is deprecated\. Use the new one"):
        assert loud() == 2
    with pytest.warns(DeprecationWarning, match="Old is deprecated"):
        assert isinstance(Old(), Old)


def test_the_package_imports_nothing_before_it_is_asked_for() -> None:
    code = """
        import sys, noded, noded.util
        heavy = ("asyncio", "joblib", "multiprocessing", "noded.util.queue", "numpy")
        print([name for name in heavy if name in sys.modules])
        print(noded.util.queue.Queue.__module__, noded.util.ActorPool.__module__)
        print(sorted(set(noded.util.__all__) - set(dir(noded.util))))
        try:
            noded.util.nothing
        except AttributeError as error:
            print(error)
    """
    source = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "noded.util.queue noded.util.actor_pool",
        "[]",
        "module 'noded.util' has no attribute 'nothing'",
    ]
