"""One call that runs in this worker, and the table of those that run.

Whoever asks what runs (the runtime context, a cancel, the parent of a new task) asks here: in a worker that does one
thing at a time it is ``running.call``, with threads or coroutines it is the context variable ``call_now``
(``client/context.py``).
"""

from __future__ import annotations

from typing import Any

from noded import ids
from noded.client.context import running
from noded.client.runtime import Runtime
from noded.telemetry import NOT_BEGUN, RETURNED
from noded.worker.inbound import Inbound


class Execution:
    """``message`` is the Push or Call; its identity marks what the call submits."""

    __slots__ = (
        "answer",
        "asked",
        "borrowed",
        "cancelled",
        "error",
        "function_name",
        "inbound",
        "message",
        "name",
        "number",
        "outcome",
        "run",
        "runtime",
        "stream",
        "task",
        "thread",
        "user_code",
    )

    def __init__(self, runtime: Runtime, inbound: Inbound, message: Any):
        self.runtime = runtime
        self.inbound = inbound
        self.message = message
        self.name = "a task"
        self.function_name = ""
        self.borrowed = False
        """Its arguments held refs: the answer must say which holds the worker took."""
        self.cancelled = False
        self.asked = False
        """It has looked whether it was cancelled: a method that does so ends by itself."""
        self.answer: tuple[Any, bytes] | None = None
        """A message and its payload; None as well when there is nobody to answer, as of an actor that has ended."""
        self.outcome = RETURNED
        self.error = ""
        """The class of what it raised."""
        self.run = NOT_BEGUN
        """Where it is on the page, while it runs."""
        self.number = 0
        """Of its name, there."""
        self.thread = 0
        """The system's number of the thread that runs it, or 0 for the main thread."""
        self.user_code = False
        """The user's code runs right now: the only place where a soft cancel may raise."""
        self.task: Any = None
        """The asyncio task, in an async actor."""
        self.stream: Any = None

    @property
    def task_id(self) -> bytes:
        return ids.task_id(self.inbound.prefix, self.message.seq)

    # What a mark in its output says (``streams.py``); asked when it writes something.

    @property
    def label(self) -> str:
        return running.class_name or self.name

    @property
    def task_hex(self) -> str:
        return self.task_id.hex()

    @property
    def actor_hex(self) -> str:
        return running.actor_id.hex()

    def entries(self, view: memoryview) -> list[Any]:
        """For the ids inside an argument: refs and handles."""
        self.borrowed = True
        return self.runtime.objects.entries(view)
