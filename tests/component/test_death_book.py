"""The book of a node's dead: bounded in memory and on disk, and the same for the daemon that comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.wait import wait_for

from noded.node import death_book
from noded.node.death_book import FILE, DeathBook
from noded.node.session import Client
from noded.node.workers import Worker, WorkerRecord
from noded.policy import deaths
from noded.wire import messages as m

TASK = "aa" * 16


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(death_book, "KEPT", 10)
    monkeypatch.setattr(death_book, "_LINES", 40)
    return


def ran(wid: str) -> list[dict[str, Any]]:
    return [{"task": TASK, "name": "f", "since": 1.0}] if wid == wid_of(0) else []


def wid_of(number: int) -> str:
    return f"{number:014x}ff"


def die(book: DeathBook, number: int, kind: str = deaths.CRASH) -> None:
    worker = Worker(wid_of(number), WorkerRecord(pid=number + 1, job="00010001"))
    if number % 2:
        worker.record.actor = bytes([number % 256]) * 16
    death = m.Death(worker.id, number + 1, None, 11, "it crashed", 2048, ["last words"], "node", kind)
    book.worker_died(worker, death)


async def opened(directory: Path) -> DeathBook:
    book = DeathBook(str(directory), "node", ran)
    await book.start()
    return book


async def test_it_is_found_by_all_its_names_also_by_the_next_daemon(tmp_path: Path) -> None:
    book = await opened(tmp_path)
    die(book, 0)
    die(book, 1)
    book.driver_ended(Client(b"driver7", "driver", 77, 1, "00010001"))
    book.driver_ended(Client(b"leaving", "driver", 78, 1, "00010002", detached=True))
    await book.stop()
    for each in (book, await opened(tmp_path)):
        await asyncio.sleep(0)  # what the thread has found out is entered on the loop
        for name in (wid_of(0), wid_of(0)[:14], TASK):
            told = each.find(name)
            assert told is not None, name
            assert (told["kind"], told["pid"], told["signal"], told["max_rss"]) == ("crash", 1, "SIGSEGV", 2 << 20)
            assert told["running"][0]["name"] == "f" and told["stderr_tail"] == ["last words"]
        driver = each.find("00010001")
        assert driver is not None and driver["pid"] == 77 and "without leaving" in driver["reason"]
        assert (each.find("00010002") or {})["kind"] == deaths.LEFT and each.find("no such") is None
        death = each.death_of(wid_of(1))
        assert death is not None
        assert (death.signal, death.kind, death.max_rss_kb, death.node) == (11, "crash", 2048, "node")
        assert [dead.id for dead in each.of_actors()] == [b"\1" * 16]
        assert each.death_of(b"driver7".hex()) is None
        assert (each.find((b"\1" * 16).hex()) or {})["id"] == wid_of(1), "not found by its actor"
        assert each.jobs_left() == ["00010002"]
        await each.stop()


@pytest.mark.usefixtures("small")
async def test_it_stays_small_and_those_that_ended_as_intended_displace_no_others(tmp_path: Path) -> None:
    book = await opened(tmp_path)
    for number in range(100):
        die(book, number, deaths.IDLE if number >= 20 else deaths.CRASH)
    await book.stop()
    for each in (book, await opened(tmp_path)):
        known = [number for number in range(100) if each.find(wid_of(number))]
        assert known == [*range(10, 20), *range(90, 100)]
        await each.stop()
    assert len((tmp_path / FILE).read_bytes().splitlines()) <= 41


async def test_half_a_line_and_a_directory_that_is_gone(tmp_path: Path) -> None:
    book = await opened(tmp_path)
    die(book, 1)
    await book.stop()
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"id": "half')
    book = await opened(tmp_path)
    assert book.find(wid_of(1))
    die(book, 2)
    await book.stop()
    again = await opened(tmp_path)
    assert again.find(wid_of(1)) and again.find(wid_of(2))
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    die(again, 3)
    assert again.find(wid_of(3))
    await again.stop()
    wait_for(lambda: not tmp_path.exists(), "it has made its directory anew")
