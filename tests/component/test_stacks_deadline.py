"""A node tells of many workers what it knows in time, also when some do not answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noded import stack_dump
from noded.node import stacks
from noded.wire import messages as m

STUCK = 40


def test_who_does_not_answer_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_TELL_SECONDS", 0.8)
    over = threading.Event()

    def take(*_: Any, **given: Any) -> stack_dump.Dump:
        over.wait(30)  # the kernel does not even let it be looked at
        return stack_dump.Dump("")

    monkeypatch.setattr(stack_dump, "take", take)
    wids = [f"{number:014x}00" for number in range(STUCK + 1)]
    records = SimpleNamespace(pid=1, lease=b"", actor=b"", job="1")
    workers = {wid: SimpleNamespace(id=wid, record=records) for wid in wids}
    good = SimpleNamespace(session=object(), version=m.PROTOCOL_VERSION)

    async def ask(client: Any, question: Callable[[int], Any], seconds: float) -> bytes:
        assert client is good and question(5) == m.WhatStack(5)
        return b'{"stack": "it"}'

    async def main() -> tuple[list[dict[str, Any]], float]:
        asked = stacks.Stacks(
            SimpleNamespace(workers=workers),  # type: ignore[arg-type]
            {bytes.fromhex(wids[-1])[:7]: good},  # type: ignore[dict-item]
            ask,
            log_dir=str(tmp_path),
            run_dir=str(tmp_path),
            tag="",
            node_id="node",
            node_name="head",
            number=1,
            running=lambda wid: [],
            ask_head=None,  # type: ignore[arg-type]
            head_problem=lambda: "",
        )
        began = time.monotonic()
        found, took = await asked.tell({"id": "", "node": ""}), time.monotonic() - began
        over.set()
        await asked.stop(ended=True)
        return found, took

    found, took = asyncio.run(main())
    assert took < 3, took  # it waits for 0.8 s, and the thread that is stuck for 30
    assert [one["worker"] for one in found] == wids
    assert found[-1]["stack"] == "it" and "problem" not in found[-1]
    for one in found[:-1]:
        assert f"has not told its stack within 0.8 s, in which {STUCK + 1} workers" in one["problem"], one
