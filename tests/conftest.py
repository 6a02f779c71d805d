"""Each pytest process has its own NODED_RUN_DIR and NODED_HOME, and each test is checked for leaks."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.leaks import LeakCheck
from hypothesis import settings

# The machine may be busy, so an example's duration says nothing.
settings.register_profile("noded", deadline=None)
settings.load_profile("noded")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job; what the tests start would not see their interrupts either.
    signal.signal(signal.SIGINT, signal.default_int_handler)


_BASE = pytest.StashKey[str]()
_OUTER = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    outer = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("NODED_")}
    base = tempfile.mkdtemp(prefix="nd-", dir="/tmp")  # short: a Unix socket's path has 107 bytes
    os.environ["NODED_RUN_DIR"] = f"{base}/run"
    os.environ["NODED_HOME"] = f"{base}/home"
    if outer.pop("NODED_TEST_TLS", "") == "1":
        _encrypt(base)
    config.stash[_OUTER] = outer
    config.stash[_BASE] = base


def _encrypt(base: str) -> None:
    """NODED_TEST_TLS=1: every node and driver of this session speaks TLS."""
    from harness.certs import Authority

    files = Authority(Path(base) / "tls").node("tests")
    for name, path in (("CERT", files.cert), ("KEY", files.key), ("CA", files.ca)):
        os.environ[f"NODED_TLS_{name}"] = str(path)


def pytest_unconfigure(config: pytest.Config) -> None:
    base = config.stash.get(_BASE, None)
    if base is None:
        return
    for name in [name for name in os.environ if name.startswith("NODED_")]:
        del os.environ[name]
    os.environ.update(config.stash[_OUTER])
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def outer_environment(pytestconfig: pytest.Config) -> dict[str, str]:
    """What begins with NODED_ where pytest was started; the tests' own processes do not have it."""
    return pytestconfig.stash[_OUTER]


@pytest.fixture(scope="session")
def leak_check(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> LeakCheck:
    return LeakCheck([pytestconfig.stash[_BASE], str(tmp_path_factory.getbasetemp())])


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, leak_check: LeakCheck) -> Iterator[None]:
    """Opt out with @pytest.mark.may_leak("why")."""
    before = leak_check.take()
    yield
    if request.node.get_closest_marker("may_leak") is not None:
        leak_check.end_all(before)
        return
    left = leak_check.left_since(before)
    if left:
        leak_check.end_all(before)
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)
