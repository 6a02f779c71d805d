"""Pages of metrics: what a reader sees, what finds no room, and what another process or a fork may do with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import REPOSITORY

from noded.metrics.family import Family, Histogram
from noded.metrics.page import DIRECTORY, LINES, SIZE, MetricsPage, PageReader, Series, page_path
from noded.node.counts import GRANT, Counts
from noded.node.user_metrics import UserMetrics

PAGE = bytes(7)


def counter(name: str, **tags: str) -> Series:
    return Series("counter", name, f"what {name} is", tuple(sorted(tags.items())))


def gauge(name: str, **tags: str) -> Series:
    return Series("gauge", name, "", tuple(sorted(tags.items())))


def histogram(name: str, *boundaries: float) -> Series:
    return Series("histogram", name, "", (), boundaries)


def write(page: MetricsPage, series: Series, *values: float) -> None:
    at = page.place(series)
    for index, value in enumerate(values):
        page.values[at + index] = value


def read(path: Path) -> dict[Series, tuple[float, ...]]:
    reader = PageReader(str(path))
    assert reader.read()
    return dict(reader.series())


def test_a_reader_sees_what_is_written_from_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.page"
    page = MetricsPage()
    write(page, counter("before"), 1.5)
    page.keep(str(path))
    reader = PageReader(str(path))
    assert reader.read() and reader.series() == [(counter("before"), (1.5,))]
    write(page, counter("before"), 2.5)
    write(page, histogram("h", 1, 2), 1, 2, 3, 11.5)
    write(page, gauge("g", é="ü"), -1)

    assert reader.read()
    assert dict(reader.series()) == read(path) == dict(page.series())
    assert read(path) == {counter("before"): (2.5,), histogram("h", 1, 2): (1, 2, 3, 11.5), gauge("g", é="ü"): (-1,)}


def test_what_is_no_page_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.page"
    assert not PageReader(str(path)).read()
    for content in (b"", b"x" * SIZE, b"NODEDMP1"):
        path.write_bytes(content)
        assert not PageReader(str(path)).read()


def test_only_so_many_series_find_room(tmp_path: Path) -> None:
    path = tmp_path / "a.page"
    page = MetricsPage()
    page.keep(str(path))
    places = [page.place(counter("c", number=str(number))) for number in range(LINES + 500)]
    again = [page.place(counter("c", number=str(number))) for number in range(LINES + 500)]
    reader = PageReader(str(path))

    assert places == again and places.count(-1) == 500
    assert reader.read() and len(reader.series()) == LINES and reader.refused == 500
    assert page.place(counter("long", tag="x" * 5000)) == -1


def test_a_full_disk_leaves_out_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = MetricsPage()
    page.keep(str(tmp_path / "a.page"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    places = [page.place(counter("c", number=str(number), pad="x" * 500)) for number in range(500)]

    assert places[0] > 0 and places[-1] == -1
    page.values[places[0]] += 1
    with pytest.raises(OSError, match="No space"):
        MetricsPage().keep(str(tmp_path / "b.page"))


def test_the_next_process_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "counts.page"
    for round_ in (1, 2, 3):
        counts = Counts()
        counts.open(str(path))
        counts.observe(GRANT, 0.02, "kind=task")
        counts.follow("noded_workers_started_total", 5)
        counts.follow("noded_workers_started_total", 7)
        found = {family.name: family.samples for family in counts.families()}

        assert found["noded_workers_started_total"] == [({}, 7 * round_)]
        ((labels, value),) = found[GRANT]
        assert labels == {"kind": "task"} and isinstance(value, Histogram) and sum(value.buckets) == round_


def test_a_forked_process_does_not_write_on_its_parents_page(tmp_path: Path) -> None:
    code = f"""
import os
from noded.client import metrics
from noded.util.metrics import Counter
from noded.metrics.page import PageReader
metrics.keep_in({str(tmp_path / "a.page")!r})
counter = Counter("c")
counter.inc(3)
child = os.fork()
if not child:
    counter.inc(100)
    Counter("other").inc()
    os._exit(0)
os.waitpid(child, 0)
counter.inc(4)
reader = PageReader({str(tmp_path / "a.page")!r})
assert reader.read()
print([(series.name, values) for series, values in reader.series()])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[('c', (7.0,))]\n", done.stderr


# ------------------------------------------------------------ what the node makes of them


class Node:
    """Pages of processes that live until they are said to be dead."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.alive: dict[str, str] = {}
        self.user = UserMetrics(str(directory), lambda: dict(self.alive))
        (directory / DIRECTORY).mkdir(exist_ok=True)

    def process(self, number: int) -> MetricsPage:
        path = Path(page_path(str(self.directory), bytes((number,)) * 7))
        page = MetricsPage()
        page.keep(str(path))
        self.alive[path.name] = f"w{number}"
        return page

    def dies(self, number: int) -> None:
        del self.alive[Path(page_path("", bytes((number,)) * 7)).name]

    def values(self) -> dict[Any, Any]:
        return {
            (family.name, *sorted(labels.values())): value
            for family in self.families()
            for labels, value in family.samples
            if family.name != "noded_user_series_dropped_total"
        }

    def families(self) -> list[Family]:
        return self.user.collect()

    def dropped(self) -> float:
        (family,) = [f for f in self.families() if f.name == "noded_user_series_dropped_total"]
        return family.samples[0][1]  # type: ignore[return-value]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_counters_are_summed_up_and_gauges_are_per_process(node: Node) -> None:
    first, second = node.process(1), node.process(2)
    for page, amount in ((first, 1), (second, 10)):
        write(page, counter("c", a="x"), amount)
        write(page, histogram("h", 1), amount, amount, 3 * amount)
        write(page, gauge("g"), amount)
    both = {("c_total", "x"): 11, ("h",): Histogram((1,), (11, 11), 33), ("g", "w1"): 1, ("g", "w2"): 10}
    assert node.values() == both

    node.dies(2)
    assert node.values() == {name: value for name, value in both.items() if name != ("g", "w2")}
    assert len(list((node.directory / DIRECTORY).glob("*.page"))) == 1, "the page of a dead process stays"
    write(first, counter("c", a="x"), 5)
    assert node.values()[("c_total", "x")] == 15
    node.dies(1)
    node.user = UserMetrics(str(node.directory), dict)
    assert node.values() == {("c_total", "x"): 15, ("h",): Histogram((1,), (11, 11), 33)}
    assert {f.help for f in node.families() if f.name == "c_total"} == {"what c is"}


@pytest.mark.parametrize("killed", ["before the file", "before the page is removed"])
def test_a_kill_in_between_counts_nothing_twice(node: Node, killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(node.process(1), counter("c"), 7)
    node.dies(1)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace" if killed == "before the file" else "unlink", die)
        node.user.collect()
    node.user = UserMetrics(str(node.directory), dict)

    assert node.values() == {("c_total",): 7} == node.values()


def test_who_comes_first_stays_and_gauges_make_room(node: Node) -> None:
    first = node.process(1)
    for number in range(LINES):
        write(first, gauge("g", number=str(number)), number)
    assert len(node.values()) == LINES and node.dropped() == 0
    second = node.process(2)
    for number in range(10):
        write(second, counter("late", number=str(number)), 1)
    kept = node.values()
    assert len(kept) == LINES and node.dropped() == 10 and not [name for name in kept if name[0] == "late_total"]

    node.dies(1)
    assert len(node.values()) == 10
    node.dies(2)
    assert len(node.values()) == 10


@pytest.mark.parametrize(
    ("series", "shown"),
    [
        (counter("a-b c"), ("a_b_c_total",)),
        (counter("done_total"), ("done_total",)),
        (gauge("9lives"), ("_9lives", "w1")),
        (gauge("noded_store_used_bytes"), ("user_noded_store_used_bytes", "w1")),
        (gauge("up"), ("user_up", "w1")),
        (gauge("update"), ("update", "w1")),
        (gauge("process_cpu"), ("user_process_cpu", "w1")),
    ],
)
def test_names_are_made_such_that_prometheus_takes_them(node: Node, series: Series, shown: tuple[str, ...]) -> None:
    write(node.process(1), series, 1)

    assert list(node.values()) == [shown]


def test_labels_are_made_so_too(node: Node) -> None:
    write(node.process(1), gauge("g", le="1", WorkerId="2", __a="3", **{"9": "4", "b-c": "5"}), 1)

    (family,) = [f for f in node.families() if f.name == "g"]
    assert family.samples[0][0] == {
        "tag_le": "1", "tag_WorkerId": "2", "tag_a": "3", "tag_9": "4", "b_c": "5", "WorkerId": "w1",
    }  # fmt: skip


def test_of_two_kinds_of_one_name_the_first_counts(node: Node) -> None:
    page = node.process(1)
    write(page, histogram("x", 1, 2), 1, 0, 0, 1)
    write(page, gauge("x"), 5)
    write(page, histogram("x", 3), 1, 0, 1)

    assert node.values() == {("x",): Histogram((1, 2), (1, 0, 0), 1)}
    assert node.dropped() == 2
