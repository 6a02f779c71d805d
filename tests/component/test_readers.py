"""Questions that hang, as on a stuck disk, and what they may not hold up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.wait import wait_for

from noded.node import logs, readers
from noded.node.readers import Readers


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """What waits for it hangs until the test is over."""
    event = threading.Event()
    yield event
    event.set()
    wait_for(lambda: not _threads(), lambda: f"{_threads()} are left")


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "noded-readers"]


async def test_answers_and_errors_come_back(hung: threading.Event) -> None:
    some = Readers()
    try:
        assert await asyncio.gather(*(some.run(pow, 2, number) for number in range(20))) == [2**n for n in range(20)]
        assert len(_threads()) <= readers.THREADS
        with pytest.raises(ZeroDivisionError):
            await some.run(divmod, 1, 0)
    finally:
        some.stop()
    with pytest.raises(ValueError, match="daemon ends"):
        await some.run(pow, 2, 2)


async def test_hung_questions_refuse_more_and_hold_up_neither_the_loop_s_threads_nor_the_end(
    hung: threading.Event,
) -> None:
    some = Readers()
    asked = [asyncio.ensure_future(some.run(hung.wait)) for _ in range(readers.MOST)]
    await asyncio.sleep(0)  # each has taken its place
    asked[-1].cancel()  # who gives up leaves its place taken: the question still waits
    await asyncio.wait([asked[-1]])
    with pytest.raises(ValueError, match=r"64 questions .* wait on this node already"):
        await some.run(hung.wait)
    assert await asyncio.wait_for(asyncio.to_thread(pow, 2, 3), 5) == 8
    some.stop()
    ends = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    assert {type(end) for end in ends} == {ValueError, asyncio.CancelledError}


async def test_logs_are_read_in_these_threads(
    hung: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    some = Readers()
    node = logs.NodeLogs(
        str(tmp_path), str(tmp_path), *[None] * 4, some, None,  # type: ignore[arg-type]
        head_is_there=lambda: False, limits=None, number=1, name="n", node_id="", ip="",
    )  # fmt: skip
    monkeypatch.setattr(node._files, "list", lambda args: seen.append(threading.current_thread().name))
    try:
        await node.tell({"do": "list"})
    finally:
        some.stop()
    assert seen == ["noded-readers"]
