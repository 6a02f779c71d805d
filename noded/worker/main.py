"""A worker's start: called by the template in the freshly forked process, returns when the worker is to end."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
from typing import Any

import cloudpickle as cloudpickle  # warm in the template, so that workers need not import it

from noded import stack_dump
from noded.client import remote as remote  # likewise
from noded.client.runtime import Runtime, set_current
from noded.telemetry import Page, worker_page
from noded.wire import messages as m
from noded.worker import streams
from noded.worker.executor import Executor
from noded.worker.inbound import Inbound

_GRACE = 3600.0
"""The spawner ends the node's workers when its daemon stays away; a worker itself has no opinion."""


def run(args: dict[str, Any]) -> int:
    """``args``: wid, run_dir. Returns the exit code."""
    wid, run_dir = args["wid"], args["run_dir"]
    streams.install()
    path = os.path.join(run_dir, "w", f"{wid}.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1024)
    listener.setblocking(False)
    executor = Executor()
    page = _open_page(args["pages"] and os.path.join(args["pages"], worker_page(wid)))
    executor.page = page
    lost: list[str] = []

    def attach(message: m.Attach) -> None:
        message.worker = wid
        message.lease = executor.highest_lease
        message.actor, message.leaving = executor.seat.spec, executor.seat.leaving
        message.actor_alive = executor.seat.alive

    def on_lost(reason: str) -> None:
        lost.append(reason)
        executor.exiting = reason
        executor.runtime.reader.wake()

    runtime = Runtime(
        "worker",
        run_dir,
        prefix=bytes.fromhex(wid)[:7],
        job_config=None,
        grace=_GRACE,
        attach_extra=attach,
        on_message=executor.on_control,
        on_lost=on_lost,
        retell_extra=executor.retell_locked,
        tick=executor.tick,
        page=page,
        worker=wid,
    )
    executor.bind(runtime)
    runtime.start(_GRACE)
    _install_stack_dump(args["stdout"].removesuffix(".out") + stack_dump.SUFFIX, runtime.control.helper)
    executor.after_attach()
    set_current(runtime)
    reader = runtime.reader

    def on_connect(what: int) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            with runtime.lock:
                take_in(sock, False)

    def take_in(sock: socket.socket, remote: bool) -> None:
        executor.inbound.append(
            Inbound(
                sock, runtime.lock, reader, executor.on_data, executor.on_closed, executor.on_drained, remote=remote
            )
        )

    executor.take_in = take_in

    reader.add(listener.fileno(), on_connect)
    try:
        executor.run()
    finally:
        listener.close()
        try:
            os.unlink(path)
        except OSError:
            pass
    if lost:
        streams.NamedStream.now = streams.Author("")
        print(f"noded: worker {wid} ends: {lost[0]}", file=sys.stderr)
    with runtime.lock:
        runtime.control.send(m.WorkerIdle(executor.exiting))
        runtime.control.flush()
    atexit._run_exitfuncs()
    streams.NamedStream.ask = None  # what calls have begun to write goes out, too
    sys.stdout.flush()
    sys.stderr.flush()
    return 0


def _install_stack_dump(path: str, helper: threading.Thread | None) -> None:
    try:
        if helper is not None:
            stack_dump.call_helper(helper)
        stack_dump.install(path)
    except OSError as error:
        print(f"noded: the stack of this worker cannot be asked for: {error}", file=sys.stderr)


def _open_page(path: str) -> Page | None:
    """None: telemetry is off, or has no place."""
    try:
        return Page(path) if path else None
    except OSError as error:  # a full disk must not keep it from working
        print(f"noded: what runs here is not written down: {error}", file=sys.stderr)
        return None
