"""A driver as a process of its own, that a test can talk to, stop, interrupt and kill.

Its source prints a line for each thing it has done (`expect` waits for it) and may read lines from stdin
(`tell`). What it wrote to stderr is part of every failure's text.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

PREAMBLE = """
import os, sys, time
import noded
def say(*words): print(*words, flush=True)
def hear(): return sys.stdin.readline().strip()
noded.init(address=os.environ["TEST_ADDRESS"], log_to_driver=False, namespace="test")
"""


class Driver:
    """`with Driver(node.address, source) as driver:` — killed at the end if it still runs."""

    def __init__(
        self,
        address: str,
        source: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
        root: Path | None = None,
    ):
        """`inside`: a command that runs another one somewhere, as `nsenter` does; `root`: where its noded is."""
        self._errors: Any = tempfile.TemporaryFile(prefix="noded-test-driver-")
        self._seen = b""
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-c", PREAMBLE + textwrap.dedent(source), *arguments],
            env={**os.environ, "TEST_ADDRESS": address, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            cwd=root,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def expect(self, word: str, timeout: float = 30) -> str:
        """Wait for a line that begins with `word`; the rest of it. Other lines before it are dropped."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while True:
            line, found, rest = self._seen.partition(b"\n")
            if found:
                self._seen = rest
                text = line.decode(errors="replace")
                if text.split(" ", 1)[0] == word:
                    return text[len(word) :].strip()
                continue
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                self._fail(f"the driver did not say {word!r} in {timeout:g} s")
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                self._fail(f"the driver ended without saying {word!r}")
            self._seen += chunk

    def has_said(self, word: str) -> bool:
        """Whether it has, by now; fails when it has ended without."""
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], 0)[0]:
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                self._fail(f"the driver ended without saying {word!r}")
            self._seen += chunk
        return any(line.split(b" ", 1)[0] == word.encode() for line in self._seen.split(b"\n")[:-1])

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self, timeout: float = 30) -> None:
        """Wait for its end, which must be in order."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._fail(f"the driver did not end in {timeout:g} s")
        if code:
            self._fail(f"the driver ended with {code}")

    def errors(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")

    def keep_errors(self, path: Path) -> None:
        """All of its stderr."""
        size = os.fstat(self._errors.fileno()).st_size
        path.write_bytes(os.pread(self._errors.fileno(), size, 0))

    def _fail(self, reason: str) -> NoReturn:
        raise AssertionError(f"{reason}; its stderr:\n{self.errors()}")

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:  # a line it never read
                pass
        self._errors.close()
