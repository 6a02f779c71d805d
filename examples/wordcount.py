"""Which words does Python's standard library use most, and how do tasks share one big array?

Run it with `make demo`, or with `noded start --head` and then `python examples/wordcount.py`.
"""

import os
import re
import sysconfig
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

import noded

WORD = re.compile(r"[a-z]{4,}")


@noded.remote
def count_words(paths: list[Path]) -> Counter[str]:
    """A task: runs in one of the workers, and its result travels back."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(WORD.findall(path.read_text(errors="replace").lower()))
    return counts


@noded.remote
class Tally:
    """An actor: an object with a process of its own. Its methods run one after the other."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, counts: Counter[str]) -> int:
        self.counts.update(counts)
        return self.counts.total()

    def most_common(self, n: int) -> list[tuple[str, int]]:
        return self.counts.most_common(n)


@noded.remote
def sum_slice(array: np.ndarray, start: int, stop: int) -> tuple[float, bool, int]:
    """The array is not copied: it is mapped from shared memory, read-only."""
    return float(array[start:stop].sum()), array.flags.writeable, os.getpid()


def words() -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    chunks = [files[i : i + 8] for i in range(0, len(files), 8)]
    began = time.perf_counter()

    tally = Tally.remote()
    waiting = [count_words.remote(chunk) for chunk in chunks]
    while waiting:
        # Whatever is ready first is added first. The counts go straight to the actor, not through here.
        done, waiting = noded.wait(waiting)
        total = tally.add.remote(done[0])

    print(f"{noded.get(total):,} words in {len(files)} files, counted by {len(chunks)} tasks", end=" ")
    print(f"in {time.perf_counter() - began:.2f} s")
    for word, count in noded.get(tally.most_common.remote(5)):
        print(f"  {count:6,}  {word}")


def shared_array() -> None:
    array = np.arange(5_000_000, dtype=np.float64)
    began = time.perf_counter()
    shared = noded.put(array)
    put = time.perf_counter() - began

    began = time.perf_counter()
    edges = np.linspace(0, len(array), 5, dtype=int).tolist()
    parts = noded.get([sum_slice.remote(shared, a, b) for a, b in pairwise(edges)])
    took = time.perf_counter() - began

    total = sum(part for part, _, _ in parts)
    assert total == array.sum(), "the slices do not add up"
    assert not any(writeable for _, writeable, _ in parts), "a task could have changed the shared array"
    workers = len({pid for _, _, pid in parts})
    print(f"{array.nbytes / 1e6:.0f} MB array put once in {put * 1e3:.1f} ms; four slices summed", end=" ")
    print(f"in {took * 1e3:.1f} ms by {workers} worker{'s' * (workers > 1)}, none of which copied it:")
    print(f"  sum {total:,.0f}, and no task could write to it")


if __name__ == "__main__":
    noded.init()
    words()
    shared_array()
    noded.shutdown()
