"""A real Jupyter kernel: a running event loop, cells run again, definitions that change, interrupts."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from harness.leaks import LeakCheck

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    jupyter_client = pytest.importorskip("jupyter_client")
    pytest.importorskip("ipykernel")


class Notebook:
    """Runs cells in one kernel."""

    def __init__(self, client: Any, manager: Any):
        self._client = client
        self._manager = manager

    def begin(self, cell: str) -> str:
        sent: str = self._client.execute(cell)
        return sent

    def finish(self, sent: str, seconds: float = 40) -> tuple[str, str]:
        """(what it printed and its value, its error)."""
        shown: list[str] = []
        error = ""
        while True:
            message = self._client.get_iopub_msg(timeout=seconds)
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream" and content["name"] == "stdout":
                shown.append(content["text"])
            elif kind == "execute_result":
                shown.append(content["data"]["text/plain"])
            elif kind == "error":
                error = f"{content['ename']}: {content['evalue']}"
            elif kind == "status" and content["execution_state"] == "idle":
                return "".join(shown), error

    def run(self, cell: str) -> str:
        shown, error = self.finish(self.begin(cell))
        assert not error, error
        return shown.strip()

    def fail(self, cell: str) -> str:
        shown, error = self.finish(self.begin(cell))
        assert error, f"the cell did not fail, it showed {shown!r}"
        return error

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def until(self, sent: str, text: str) -> None:
        """Wait until the running cell prints this."""
        while True:
            message = self._client.get_iopub_msg(timeout=40)
            if message["parent_header"].get("msg_id") == sent and text in message["content"].get("text", ""):
                return


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """The kernel's cluster lives as long as the module's tests: it is checked after the last."""


@pytest.fixture(scope="module")
def notebook(leak_check: LeakCheck) -> Iterator[Notebook]:
    before = leak_check.take()
    manager = jupyter_client.KernelManager()
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel(env=dict(os.environ))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        found = Notebook(client, manager)
        found.run("import noded; noded.init(num_cpus=2, log_to_driver=False); None")
        found.run("@noded.remote\ndef f(): return 'old'")
        yield found
        found.run("noded.shutdown()")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
        manager.context.destroy()
    # jupyter_client keeps an event loop in this process.
    left = [one for one in leak_check.left_since(before) if not one.startswith("descriptor")]
    assert not left, "the notebook left behind:\n  " + "\n  ".join(left)


def test_a_function_defined_in_a_cell(notebook: Notebook) -> None:
    assert notebook.run("noded.get(f.remote())") == "'old'"


def test_a_function_that_is_defined_again_is_the_new_one(notebook: Notebook) -> None:
    notebook.run("factor = 2\n@noded.remote\ndef g(x): return factor * x")
    assert notebook.run("noded.get(g.remote(3))") == "6"
    notebook.run("factor = 10\n@noded.remote\ndef g(x): return factor * x")
    assert notebook.run("noded.get(g.remote(3))") == "30"


def test_a_class_that_is_defined_again(notebook: Notebook) -> None:
    notebook.run("@noded.remote\nclass C:\n    def who(self): return 1\nold = C.remote()")
    notebook.run("@noded.remote\nclass C:\n    def who(self): return 2\nnew = C.remote()")
    assert notebook.run("noded.get([old.who.remote(), new.who.remote()])") == "[1, 2]"


def test_a_value_of_a_class_of_the_notebook(notebook: Notebook) -> None:
    notebook.run(
        "class Point:\n    def __init__(self, x): self.x = x\n@noded.remote\ndef move(p): return Point(p.x + 1)"
    )
    assert notebook.run("noded.get(move.remote(Point(1))).x, isinstance(noded.get(move.remote(Point(1))), Point)") == (
        "(2, True)"
    )


def test_init_twice(notebook: Notebook) -> None:
    assert "noded.init() was called already" in notebook.fail("noded.init()")
    notebook.run("noded.init(ignore_reinit_error=True); None")
    assert notebook.run("noded.get(f.remote())") == "'old'"


def test_the_cell_s_event_loop_can_await(notebook: Notebook) -> None:
    assert notebook.run("await f.remote()") == "'old'"
    notebook.run("import asyncio\n@noded.remote\ndef slow(x):\n    import time; time.sleep(0.05); return x")
    assert notebook.run("await asyncio.gather(*[slow.remote(i) for i in range(4)])") == "[0, 1, 2, 3]"
    notebook.run("@noded.remote\ndef stream():\n    yield from range(3)")
    assert notebook.run("[await ref async for ref in stream.remote()]") == "[0, 1, 2]"
    # A plain get blocks the loop, as in any notebook, and works all the same.
    assert notebook.run("noded.get(slow.remote(7))") == "7"


def test_interrupting_a_cell_that_waits(notebook: Notebook) -> None:
    notebook.run("@noded.remote\ndef forever():\n    import time; time.sleep(1000)\nref = forever.remote()")
    sent = notebook.begin("print('waiting', flush=True); noded.get(ref)")
    notebook.until(sent, "waiting")
    notebook.interrupt()
    _, error = notebook.finish(sent)
    assert error.startswith("KeyboardInterrupt")
    notebook.run("noded.cancel(ref, force=True)")
    assert notebook.run("noded.get(f.remote())") == "'old'"


def test_shutdown_and_a_new_cluster_in_the_same_kernel(notebook: Notebook) -> None:
    notebook.run("noded.shutdown(); noded.init(num_cpus=1, log_to_driver=False); None")
    assert notebook.run("noded.get(f.remote()), noded.cluster_resources()['CPU']") == "('old', 1.0)"
