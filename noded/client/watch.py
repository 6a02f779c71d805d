"""For helpers that keep many calls under way: being told of each answer, and waiting until something is so.

A thread that waits here reads the answers itself (see ``reader.py``); when nobody waits the process's helper
thread reads them. A watch belongs to the connection it was made for: after ``shutdown`` it makes no new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from noded.client.refs import FAILED, PENDING, REMOTE, ObjectRef
from noded.client.runtime import runtime
from noded.exceptions import LocalDaemonDiedError


class Watch:
    """For the current connection; as everywhere, the first use of noded makes one."""

    def __init__(self) -> None:
        self._runtime = runtime()

    @property
    def closed(self) -> bool:
        return self._runtime.closed

    @property
    def of_driver(self) -> bool:
        return self._runtime.kind == "driver"

    def when_done(self, ref: ObjectRef[Any], call: Callable[[], None]) -> None:
        """``call()`` once the ref has its value or error, at once if it has. Keep the ref until then.

        The call comes in whichever thread reads, under the runtime's lock: it must be short, must not raise, and
        must run none of the user's code.
        """
        rt = self._runtime
        with rt.lock:
            if ref._state == REMOTE and not rt.closed:
                rt.objects.when_ready_locked(ref, call)
                rt.control.flush()
            elif ref._state == PENDING and ref._task is not None:
                if ref._task.waiters is None:
                    ref._task.waiters = []
                ref._task.waiters.append(call)
            else:
                call()
                rt.reader.notify()  # who waits in another thread has read the answer, but could not know of this

    def is_done(self, ref: ObjectRef[Any]) -> bool:
        return ref._state not in (PENDING, REMOTE)

    def failure(self, ref: ObjectRef[Any]) -> BaseException | None:
        """Why there is no answer, as noded says it; None when there is one, also if it is the task's own error."""
        return ref._value if ref._state == FAILED and isinstance(ref._value, BaseException) else None

    def load(self, ref: ObjectRef[Any]) -> Any:
        """The value of a ref that is done; raises its error."""
        return self._runtime.objects.load(ref)

    def wait_until(self, done: Callable[[], Any], timeout: float | None = None) -> bool:
        """Wait until ``done()``, which is asked after every answer and after ``look_again``; False after
        ``timeout`` seconds. Raises LocalDaemonDiedError when the connection ends meanwhile.
        """
        if done():
            return True
        rt = self._runtime
        if rt.closed:
            raise LocalDaemonDiedError("noded.shutdown() was called in this process")
        deadline = None if timeout is None else time.monotonic() + max(0.0, timeout)
        with rt.interrupts:
            return rt.objects.sleep(done, deadline)

    def look_again(self) -> None:
        """Have every thread in ``wait_until`` ask its condition again."""
        if not self._runtime.closed:
            self._runtime.reader.notify()

    def withdraw(self, ref: ObjectRef[Any]) -> bool:
        """Cancel the task of a ref that no worker was given yet; False when it is too late."""
        rt = self._runtime
        with rt.interrupts, rt.lock:
            task = ref._task
            if task is None or task.over or task.link is not None:
                return False
            rt.tasks.cancel_locked(task, False, True)
            return True

    def under_way(self, ref: ObjectRef[Any]) -> bool:
        """Whether a worker has the task, and has not answered."""
        task = ref._task
        return task is not None and task.link is not None and not task.over
