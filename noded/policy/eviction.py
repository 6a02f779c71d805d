"""Which regions of the arena make way for a new one: a pure function over block numbers.

What was unused longest goes first. As a new region is one run of blocks, regions are added in that order until, with
the free extents between them, a run is long enough; of that run the part that takes the fewest blocks away goes. So it
also says what makes one run of free blocks that lie scattered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """A region that may go. `used`: when it was last of use, on any clock."""

    start: int
    blocks: int
    used: float


def choose(free: Iterable[tuple[int, int]], candidates: Sequence[Candidate], need: int) -> list[Candidate] | None:
    """The candidates to take away for a run of `need` blocks; [] when there is such a run, None when there cannot be
    one. `free`: (start, blocks) of the free extents.
    """
    if need <= 0:
        raise ValueError(f"a region needs at least one block, not {need}")
    ends: dict[int, int] = {}
    starts: dict[int, int] = {}
    pieces: dict[int, Candidate | int] = {}
    """By start: a candidate, or the blocks of a free extent."""

    def join(start: int, blocks: int) -> tuple[int, int]:
        end = start + blocks
        start = starts.pop(start, start)
        end = ends.pop(end, end)
        ends[start], starts[end] = end, start
        return start, end

    for start, blocks in free:
        if blocks >= need:
            return []
        pieces[start] = blocks
        join(start, blocks)
    for candidate in sorted(candidates, key=lambda each: each.used):
        pieces[candidate.start] = candidate
        start, end = join(candidate.start, candidate.blocks)
        if end - start >= need:
            return _cheapest(pieces, start, end, need)
    return None


def _cheapest(pieces: dict[int, Candidate | int], start: int, end: int, need: int) -> list[Candidate]:
    """The stretch of the run start..end, of whole pieces, that is long enough and takes the fewest blocks away."""
    stretch: list[Candidate | int] = []
    length = taken = 0
    best: list[Candidate] = []
    least = end - start + 1
    at = start
    while at < end:
        piece = pieces[at]
        stretch.append(piece)
        blocks, cost = _size(piece)
        length, taken, at = length + blocks, taken + cost, at + blocks
        while length - _size(stretch[0])[0] >= need:
            blocks, cost = _size(stretch.pop(0))
            length, taken = length - blocks, taken - cost
        if length >= need and taken < least:
            least = taken
            best = [each for each in stretch if isinstance(each, Candidate)]
    return best


def _size(piece: Candidate | int) -> tuple[int, int]:
    """(blocks, blocks that are taken away)."""
    return (piece.blocks, piece.blocks) if isinstance(piece, Candidate) else (piece, 0)
