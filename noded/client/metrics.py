"""The values of the user's metrics in this process: what ``noded.util.metrics`` records.

They lie in a page (``noded/metrics/page.py``), which is a file as soon as it is known where the node looks for it: then
its agent exports them. Metrics of the same kind, name and boundaries share their values, whoever recorded them.
"""

from __future__ import annotations

import bisect
import os
import sys
import threading
from collections.abc import Sequence

from noded.metrics.page import MetricsPage, Series

Tags = tuple[tuple[str, str], ...]
"""Sorted pairs of key and value."""

_lock = threading.Lock()
_page: MetricsPage | None = None
"""Made for the first series: most processes have none."""
_path = ""
_inode = 0


def place(kind: str, name: str, description: str, tags: Tags, boundaries: Sequence[float] = ()) -> int:
    """Where the values of this series are, for the functions below; -1: there are too many series."""
    global _page
    with _lock:
        if _page is None:
            _page = MetricsPage()
        if _path and not _inode:
            _make_file()
        return _page.place(Series(kind, name, description, tags, tuple(map(float, boundaries))))


def add(at: int, amount: float) -> None:
    if at >= 0:
        with _lock:
            _page.values[at] += amount  # type: ignore[union-attr]


def put(at: int, value: float) -> None:
    if at >= 0:
        with _lock:
            _page.values[at] = value  # type: ignore[union-attr]


def observe(at: int, boundaries: Sequence[float], value: float) -> None:
    """A bucket counts what is at most its boundary and above the one before; the last one all that is above."""
    if at >= 0:
        bucket = at + bisect.bisect_left(boundaries, value)
        with _lock:
            _page.values[bucket] += 1  # type: ignore[union-attr]
            _page.values[at + len(boundaries) + 1] += value  # type: ignore[union-attr]


def keep_in(path: str) -> None:
    """The node looks for this process's page here. Again after each attach: a node that has started over has removed
    the file.
    """
    global _path, _inode
    with _lock:
        if _inode and path == _path and _inode_of(path) == _inode:
            return
        _path, _inode = path, 0
        if _page is not None:
            _make_file()


def let_go() -> None:
    """What has been counted so far is the node's; from now on it is counted for the next one."""
    global _path, _inode
    with _lock:
        if _page is not None and _inode:
            _page.forget_file()
            _page.clear_counts()
        _path, _inode = "", 0


def read_page() -> MetricsPage | None:
    """This process's page; None before the first series."""
    return _page


def _make_file() -> None:
    global _path, _inode
    assert _page is not None
    try:
        _page.keep(_path)
        _inode = _inode_of(_path)
    except OSError as error:  # a full disk must not keep it from working
        print(f"noded: the metrics of this process are not exported: {error}", file=sys.stderr)
        _path = ""


def _inode_of(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _in_a_fork() -> None:
    """The parent's page is the parent's; and another thread of it may have had the lock."""
    global _lock
    _lock = threading.Lock()
    let_go()


os.register_at_fork(after_in_child=_in_a_fork)
