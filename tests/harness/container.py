"""A pid namespace of its own: what runs as its first process has a container's first process's duties and rights.

    with Container([*noded_command(), "--head"], env) as container:
        container.signal(signal.SIGTERM)
        assert container.wait() == 0

The file system and the network are this machine's, unless the command says otherwise. Needs root.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.processes import Process, all_processes
from harness.wait import wait_for

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


@functools.cache
def available() -> str:
    """Why there can be no pid namespace here; "" when there can."""
    if os.geteuid() != 0:
        return "pid namespaces need root"
    if missing := [command for command in ("unshare", "nsenter") if shutil.which(command) is None]:
        return f"not installed: {', '.join(missing)}"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"pid namespaces do not work here: {done.stderr.strip()}"


class Container:
    """`command` is its first process from the start on; killed with all that is in it at the end of the block."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], *, cwd: str | Path = "/", flags: Sequence[str] = ()
    ) -> None:
        self._output: Any = tempfile.TemporaryFile(prefix="noded-test-container-")
        self._process = subprocess.Popen(
            [*UNSHARE, *flags, *command],
            env={**os.environ, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._namespace = ""

    @property
    def first(self) -> int:
        """The pid out here of the first process in there."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = wait_for(lambda: children.read_text().split(), lambda: f"no process came to be: {self.output()}")
        self._namespace = self._namespace or os.readlink(f"/proc/{found[0]}/ns/pid")
        return int(found[0])

    def signal(self, number: int) -> None:
        os.kill(self.first, number)

    def wait(self, timeout: float = 20) -> int:
        """The exit code of the first process; 128 and more for a signal."""
        return self._process.wait(timeout)

    def processes(self) -> list[Process]:
        """Those in there that have not ended, and zombies; pids are those out here."""
        if not self._namespace:
            _ = self.first
        found = []
        for process in all_processes(everybody=True).values():
            with suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == self._namespace and process.pid != self._process.pid:
                    found.append(process)
        return found

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` in there."""
        return ["nsenter", "--target", str(self.first), "--pid", "--mount", "--", *command]

    def output(self) -> str:
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError, AssertionError):
                self.signal(signal.SIGKILL)
            self._process.kill()
            self._process.wait(10)
        self._output.close()
