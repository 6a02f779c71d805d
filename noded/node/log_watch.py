"""Which files of the log directory have grown: inotify tells, and nothing is looked at that has not.

For one thread; others may wake it.
"""

from __future__ import annotations

import logging
import os
import select
import struct
from collections.abc import Callable
from typing import Any

from noded.logs.files import files_of

log = logging.getLogger("noded.logs")

_WITHOUT_INOTIFY = 0.5
"""Seconds between looks at the files of living workers, where inotify is not to be had."""
_EVENT = struct.Struct("iIII")
_OVERFLOW = 0x4000
"""inotify's own limit: events were lost."""
_READ = 64 << 10


class Watch:
    """``living``: the workers that may write."""

    def __init__(self, directory: str, living: Callable[[], list[str]]):
        self._living = living
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._inotify = _open(directory)

    def close(self) -> None:
        os.close(self._wake)
        if self._inotify is not None:
            self._inotify.close()

    def wake(self) -> None:
        """End the wait of ``changed`` or ``rest``."""
        os.eventfd_write(self._wake, 1)

    def rest(self, seconds: float) -> None:
        """Wait, whatever changes, until it is woken."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.poll(seconds * 1000)

    def living(self) -> set[str]:
        """The files of all workers that may write."""
        return {name for worker in self._living() for name in files_of(worker)}

    def changed(self, seconds: float) -> set[str]:
        """The names of files that have changed; waits for one, or until it is woken."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if self._inotify is not None:
            poller.register(self._inotify.fd, select.POLLIN)
        else:
            seconds = min(seconds, _WITHOUT_INOTIFY)
        ready = {fd for fd, _ in poller.poll(seconds * 1000)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        if self._inotify is None:
            return self.living()
        return self._events() if self._inotify.fd in ready else set()

    def _events(self) -> set[str]:
        """As they come from the kernel: there may be very many, and most are of the same few files."""
        found: set[bytes] = set()
        lost = 0
        while True:
            try:
                data = os.read(self._inotify.fd, _READ)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                _, mask, _, size = _EVENT.unpack_from(data, at)
                at += _EVENT.size + size
                found.add(data[at - size : at])
                lost |= mask & _OVERFLOW
        names = {name.rstrip(b"\0").decode(errors="replace") for name in found}
        return names | self.living() if lost else names


def _open(directory: str) -> Any:
    from asyncinotify import Inotify, Mask

    inotify = None
    try:
        inotify = Inotify()
        inotify.add_watch(directory, Mask.MODIFY)
        os.set_blocking(inotify.fd, False)
        return inotify
    except OSError as error:
        if inotify is not None:
            inotify.close()
        log.warning(
            "inotify cannot be had (%s): the output of living workers is looked at every %g s instead; its limits are "
            "in /proc/sys/fs/inotify",
            error,
            _WITHOUT_INOTIFY,
        )
        return None
