"""The template process: `python -m noded.template --fd N --dir D --tag T [--preload M ...] [--target M:F]`.

Started by the spawner with one end of a socket pair (packets: `noded.spawner.protocol`). It imports what
workers need, then forks one for each request, twice, so that the worker becomes the spawner's child; the
worker calls `target(args)`. It serves only with a single thread: a fork would take another thread's locks
along, held for ever. Exit codes: 0 the spawner closed the connection, 2 wrong options, 3 the process cannot
be forked from. Nothing is imported after a fork. Not here: what a worker does (`noded.worker`).
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import importlib
import io
import os
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from noded.spawner import protocol

Target = Callable[[dict[str, Any]], int | None]

PR_SET_PDEATHSIG = 1
THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
UNFIT = 3
LOOK = 0.0001
OOM_SCORE = 500
"""Of workers and all that they start: before a driver of the same size, and long before the node's own processes."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.getenv.restype = ctypes.c_void_p
_libc.getenv.argtypes = [ctypes.c_char_p]
# fork() without Python's hooks, for the process between template and worker, which only forks and exits: they
# would copy some hundred pages for nothing.
_plain_fork: Callable[[], int] = ctypes.PyDLL(None, use_errno=True).fork


class UnfitError(Exception):
    """This process must not be forked from; the text says why."""


class Mark:
    """The place of NODED_MARK in the initial environment block, which is what /proc/PID/environ shows."""

    def __init__(self, tag: str) -> None:
        placeholder = f"{tag}:{protocol.TEMPLATE_WID}"
        # Before anything sets this variable: that would leave the block alone and point getenv elsewhere.
        address = _libc.getenv(protocol.MARK.encode())
        if not address or ctypes.string_at(address) != placeholder.encode():
            found = os.environ.get(protocol.MARK)
            raise UnfitError(f"{protocol.MARK} must be {placeholder!r} in the environment at start, not {found!r}")
        self._tag = tag
        self._wid_at = address + len(tag) + 1

    def write(self, wid: str) -> None:
        """Name this process's worker, for itself, for what it forks, and for what it execs."""
        ctypes.memmove(self._wid_at, wid.encode(), len(protocol.TEMPLATE_WID))
        os.environ[protocol.MARK] = f"{self._tag}:{wid}"


class Forker:
    """Forks workers whose parent is the spawner."""

    def __init__(self, sock: socket.socket, spawner: int, mark: Mark, target: Target) -> None:
        self._sock = sock
        self._spawner = spawner
        self._mark = mark
        self._target = target
        # What a worker needs is made ready here: in a new process each touched page costs a fault.
        self._signals = [
            number for number in signal.valid_signals() - {signal.SIGPIPE} if signal.getsignal(number) != signal.SIG_DFL
        ]
        self._oom_score = oom_score()
        self._seeds = [sys.modules[name].seed for name in ("random", "numpy.random") if name in sys.modules]
        self._streams = (
            io.TextIOWrapper(io.FileIO(0, "r", closefd=False), "utf-8"),
            output(1, "strict"),
            output(2, "backslashreplace"),
        )

    def serve(self) -> None:
        """Answer fork packets until the spawner closes the connection."""
        while True:
            try:
                packet, fds = protocol.recv(self._sock)
            except (EOFError, ConnectionResetError):
                return
            protocol.close_all(fds)
            wid = packet["wid"]
            try:
                pid = self._fork(wid, packet["args"])
            except OSError as error:
                reason = f"cannot fork worker {wid}: {error}; too many processes or too little memory"
                protocol.send(self._sock, {"t": "fork_failed", "wid": wid, "error": reason})
            else:
                protocol.send(self._sock, {"t": "forked", "wid": wid, "pid": pid})

    def _fork(self, wid: str, args: dict[str, Any]) -> int:
        """The worker's pid. Its parent is the spawner when this returns."""
        read_end, write_end = os.pipe()
        try:
            between = _plain_fork()
            if between < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            if between == 0:
                self._fork_again(wid, args, read_end, write_end)
            os.close(write_end)
            write_end = -1
            answer = int(os.read(read_end, 32) or b"0")
            os.waitpid(between, 0)
        finally:
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)
        if answer <= 0:
            raise OSError(-answer, os.strerror(-answer) if answer else "the process between was killed")
        return answer

    def _fork_again(self, wid: str, args: dict[str, Any], read_end: int, write_end: int) -> NoReturn:
        me = os.getpid()
        try:
            try:
                pid = os.fork()
            except OSError as error:
                pid = -(error.errno or 1)
            if pid == 0:
                os.close(read_end)
                os.close(write_end)
                self._work(wid, args, me)
            os.write(write_end, b"%d" % pid)
        finally:
            os._exit(0)

    def _work(self, wid: str, args: dict[str, Any], between: int) -> NoReturn:
        code = 1
        try:
            self._become_worker(wid, args, between)
            code = exit_code(self._target(args))
        except SystemExit as leaving:
            code = exit_code(leaving.code)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    pass  # its disk is full or it was closed; the exit code still counts
            os._exit(code)

    def _become_worker(self, wid: str, args: dict[str, Any], between: int) -> None:
        # The mark comes before the session: at each moment the process is found by one of them.
        self._mark.write(wid)
        os.setsid()
        if self._oom_score < OOM_SCORE:
            set_oom_score(OOM_SCORE)
        self._sock.close()
        signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for seed in self._seeds:
            seed()
        redirect(args["stdout"], args["stderr"])
        sys.stdin, sys.stdout, sys.stderr = self._streams
        # Last, because the process between takes its time to end.
        self._wait_for_the_spawner(between)

    def _wait_for_the_spawner(self, between: int) -> None:
        while os.getppid() == between:
            time.sleep(LOOK)
        if _libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != self._spawner:
            os._exit(UNFIT)  # it ended before the kernel was asked to watch it: someone else is the parent


def oom_score() -> int:
    """What the kernel adds to this process's badness when it looks for one to end; 1000 where that is not known."""
    try:
        with open("/proc/self/oom_score_adj") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1000


def set_oom_score(score: int) -> None:
    """More is allowed to everybody, but there may be no such file."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))
    except OSError:
        return


def exit_code(result: object) -> int:
    """What the process ends with when its target returned this, or left by sys.exit with it."""
    if result is None:
        return 0
    if isinstance(result, int):
        return result & 0xFF
    print(result, file=sys.stderr)
    return 1


def redirect(stdout: str, stderr: str) -> None:
    """Standard files of a worker: nothing to read, output appended to two files."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    for fd, path, how in ((0, os.devnull, os.O_RDONLY), (1, stdout, flags), (2, stderr, flags)):
        opened = os.open(path, how, 0o600)
        os.dup2(opened, fd)
        os.close(opened)


def output(fd: int, errors: str) -> io.TextIOWrapper:
    """A line-buffered text stream on a standard file, whatever that is by then."""
    raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
    return io.TextIOWrapper(raw, "utf-8", errors, line_buffering=True)


def load(target: str, preload: list[str]) -> Target:
    """Import everything with one thread per numeric library: their pools would not survive the fork."""
    before = {name: os.environ.get(name) for name in THREAD_COUNTS}
    os.environ.update(dict.fromkeys(THREAD_COUNTS, "1"))
    try:
        module, _, function = target.partition(":")
        found: Target = getattr(importlib.import_module(module), function)
        for name in preload:
            importlib.import_module(name)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return found


def check_threads() -> None:
    """Raise UnfitError unless this is the only thread, in Python's count and in the kernel's."""
    count = max(threading.active_count(), len(os.listdir("/proc/self/task")))
    if count != 1:
        names = ", ".join(sorted(thread.name for thread in threading.enumerate()))
        raise UnfitError(
            f"{count} threads run after the preload ({names}), workers can be forked from one only: "
            "preload no module that starts threads when it is imported"
        )


def spawner_pid(sock: socket.socket) -> int:
    """The process that made the socket pair, if it is the parent."""
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    if pid != os.getppid():
        raise UnfitError(f"the spawner (pid {pid}) is not the parent (pid {os.getppid()}): it has ended")
    return pid


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("noded template", description="Forks workers; the spawner starts it.")
    parser.add_argument("--fd", type=int, required=True, help="socket pair to the spawner")
    parser.add_argument("--dir", required=True, help="run directory; shows in `ps` whose template this is")
    parser.add_argument("--tag", required=True, help="node tag")
    parser.add_argument("--preload", nargs="+", default=[], help="modules to import before the first fork")
    parser.add_argument("--target", default="noded.worker.main:run", help="function(args) that a worker runs")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    found = parse(argv)
    try:
        mark = Mark(found.tag)
        sock = socket.socket(fileno=found.fd)
        sock.set_inheritable(False)
        _libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        spawner = spawner_pid(sock)
        target = load(found.target, found.preload)
        check_threads()
    except UnfitError as error:
        print(f"noded template: {error}", file=sys.stderr)
        return UNFIT
    # Workers inherit it for nothing: a crash of native code writes the Python lines that led to it to their stderr.
    faulthandler.enable(2)
    sys.stdout.flush()  # a worker would write what is left in the buffers once more
    sys.stderr.flush()
    gc.collect()
    gc.freeze()
    Forker(sock, spawner, mark, target).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
