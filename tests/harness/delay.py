"""A relay between two TAP devices that hands on each frame some time later: what netem does where a kernel has it.

As a program it makes the devices, says "ready", and works until its stdin ends, so it does not outlive the test; the
devices go with it. The delay is the same for all frames, so they stay in order. Who plugs the devices in is netns.py.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress

DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LARGEST_FRAME = 65536
MOST_FRAMES = 50_000  # on their way; more are lost, as in any queue


def start(namespace: str, first: str, second: str, seconds: float) -> subprocess.Popen[bytes]:
    """A relay in this network namespace; its devices are there when this returns."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", "--"]
        + [sys.executable, "-I", "-S", __file__, first, second, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        end(process)
        raise AssertionError(f"the relay did not start, it ended with {process.returncode}")
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.kill()
    process.wait(10)


def main(first: str, second: str, seconds: str) -> None:
    fds = [_tap(first), _tap(second)]
    os.write(1, b"ready\n")
    _relay(fds, float(seconds))


def _tap(name: str) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def _relay(fds: list[int], seconds: float) -> None:
    under_way: deque[tuple[float, int, bytes]] = deque()
    other = {fds[0]: fds[1], fds[1]: fds[0]}
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable = select.select([0, *fds], [], [], wait)[0]
        if 0 in readable and not os.read(0, 1):
            return
        due = time.monotonic() + seconds
        for fd in fds:
            with suppress(OSError):  # none left, or the device is down
                for _ in range(min(64, MOST_FRAMES - len(under_way)) if fd in readable else 0):
                    under_way.append((due, other[fd], os.read(fd, LARGEST_FRAME)))
        while under_way and under_way[0][0] <= time.monotonic():
            _, fd, frame = under_way.popleft()
            with suppress(OSError):
                os.write(fd, frame)


if __name__ == "__main__":
    main(*sys.argv[1:])
