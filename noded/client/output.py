"""Worker output at the driver: ``(name pid=…) line``, of other nodes ``(name pid=…, ip=…) line``.

Printed by a thread of its own, so that a terminal that is paused, or a full pipe, holds up nothing else. Lines that
several workers write alike are shown once with a count (``repeats.py``), and there is a limit to the lines a second:
what is not shown is counted, and the count says how to read it.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from typing import Any

from noded.client.repeats import Line, Repeats
from noded.wire import messages as m

LINES_PER_SECOND = 2_000
BURST = 20_000
"""Lines that may come at once, and that wait while the program's own output is held up."""
END_SECONDS = 2.0
"""So long a program's end waits for what is to be printed."""
_TELL_SECONDS = 5.0
_TOLD_WORKERS = 5
_COLOURS = (36, 32, 33, 35, 34, 96)
_HINT = "a line that several workers print is shown once, with a count of the others; NODED_DEDUP_LOGS=0 shows them all"


class Printer:
    """``show`` may be called by any thread and does not wait."""

    def __init__(self) -> None:
        self.home = ""
        """The address of the driver's node."""
        self.flag = ""
        """What the command line needs to name the cluster."""
        self._repeats = Repeats() if os.environ.get("NODED_DEDUP_LOGS", "1") != "0" else None
        self._hinted = False
        self._tokens, self._filled = float(BURST), time.monotonic()
        self._suppressed: dict[str, m.Skipped] = {}
        """By worker."""
        self._told = -math.inf
        self._queue: deque[m.LogLines] = deque()
        self._queued = 0
        """Lines in it."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ending = False

    def on_message(self, message: Any, payload: Any) -> None:
        """Takes LogLines, ignores other messages."""
        if type(message) is m.LogLines:
            self.show(message)

    def show(self, message: m.LogLines) -> None:
        with self._changed:
            if self._ending:
                return
            if self._queued > BURST:
                self._suppress_all(message)
                return
            self._queue.append(message)
            self._queued += _lines_of(message)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="noded-output", daemon=True)
                self._thread.start()
            self._changed.notify()

    def finish(self, last: str = "") -> None:
        """Print what is left, and then this; nothing after that."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(END_SECONDS)
        if last:
            self._note(last)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._ending and (pause := self._pause()) != 0:
                    self._changed.wait(pause)
                message = self._queue.popleft() if self._queue else None
                self._queued -= _lines_of(message) if message is not None else 0
                over = self._ending and message is None
            if message is not None:
                self._take(message)
            self._show_repeats(math.inf if over else time.monotonic())
            self._tell_suppressed(at_once=over)
            if over:
                return

    def _pause(self) -> float | None:
        """Seconds until something is due; None: nothing is."""
        now = time.monotonic()
        end = self._repeats.next_end() if self._repeats is not None else None
        times = [] if end is None else [end]
        if self._suppressed:
            times.append(self._told + _TELL_SECONDS)
        return max(0.0, min(times) - now) if times else None

    def _take(self, message: m.LogLines) -> None:
        now = time.monotonic()
        self._tokens = min(float(BURST), self._tokens + (now - self._filled) * LINES_PER_SECOND)
        self._filled = now
        workers = message.workers or [""] * len(message.batches)
        for worker, (name, pid, is_error, lines) in zip(workers, message.batches, strict=True):
            shown: list[str] = []
            source = message.ip, pid
            for at, text in enumerate(lines):
                if self._tokens < 1:
                    self._suppress(worker, name, pid, lines[at:])
                    break
                repeats = self._repeats
                if repeats is None or not repeats.is_repeated(name, source, is_error, text, now=now):
                    shown.append(text)
                    self._tokens -= 1
            if shown:
                self._print(Line(name, source, is_error, ""), shown)
        for one in message.skipped:
            self._count(one)

    def _suppress_all(self, message: m.LogLines) -> None:
        for worker, (name, pid, _, lines) in zip(message.workers, message.batches, strict=False):
            self._suppress(worker, name, pid, lines)
        for one in message.skipped:
            self._count(one)

    def _suppress(self, worker: str, name: str, pid: int, lines: list[str]) -> None:
        self._count(m.Skipped(worker, name, pid, sum(map(len, lines)) + len(lines), len(lines)))

    def _count(self, one: m.Skipped) -> None:
        known = self._suppressed.get(one.worker)
        if known is None:
            self._suppressed[one.worker] = one
        else:
            known.bytes += one.bytes
            known.lines += one.lines

    # ------------------------------------------------------------ printing

    def _show_repeats(self, now: float) -> None:
        for line, count in self._repeats.over(now) if self._repeats is not None else ():
            if count == 1:
                self._print(line, [line.text])
                continue
            hint = "" if self._hinted else f" ({_HINT})"
            self._hinted = True
            self._print(line, [f"{line.text} [repeated {count}x across cluster]{hint}"])

    def _tell_suppressed(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if not self._suppressed or not (at_once or now - self._told >= _TELL_SECONDS):
            return
        self._told = now
        with self._changed:
            left, self._suppressed = list(self._suppressed.values()), {}
        left.sort(key=lambda one: -one.bytes)
        for one in left[:_TOLD_WORKERS]:
            self._note(
                f"about {one.lines:,} lines ({one.bytes:,} bytes) of {one.name or 'a worker'} pid={one.pid} were "
                f"suppressed, read: noded logs --worker {one.worker}{self.flag}"
            )
        if len(left) > _TOLD_WORKERS:
            lines = sum(one.lines for one in left[_TOLD_WORKERS:])
            self._note(f"and about {lines:,} lines of {len(left) - _TOLD_WORKERS} others: noded logs{self.flag}")

    def _note(self, text: str) -> None:
        self._write(sys.stderr, "".join(f"(noded) {text}\n"))

    def _print(self, whose: Line, lines: list[str]) -> None:
        stream = sys.stderr if whose.is_error else sys.stdout
        ip, pid = whose.source
        words = [whose.name] if whose.name else []
        words.append(f"pid={pid}" if not ip or ip == self.home else f"pid={pid}, ip={ip}")
        prefix = f"({' '.join(words)})"
        if _has_colours(stream):
            prefix = f"\x1b[{_COLOURS[pid % len(_COLOURS)]}m{prefix}\x1b[0m"
        self._write(stream, "".join(f"{prefix} {line}\n" for line in lines))

    @staticmethod
    def _write(stream: Any, text: str) -> None:
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError, AttributeError):  # the user's stream is closed, or there is none
            pass


def _lines_of(message: m.LogLines) -> int:
    return sum(len(lines) for _, _, _, lines in message.batches)


def _has_colours(stream: Any) -> bool:
    try:
        return not os.environ.get("NO_COLOR") and bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
