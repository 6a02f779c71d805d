"""Figures of the machine and of the node's processes, as a collector (``collectors.py``): everything here blocks, and a
disk of another host may hang.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from noded.metrics.family import Family, by_label, counter, gauge
from noded.node.memory_usage import own_pages

_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_PROCESS_TEXT = "of the node's processes, by role; what they share with the object store is not in it"


class MachineFigures:
    """``disks``: what for, and directories whose file systems are told of; ``processes()``: pids by role, asked
    in the collector's thread.
    """

    def __init__(
        self, disks: list[tuple[str, str]], processes: Callable[[], dict[str, list[int]]], root: Path = Path("/")
    ):
        self._disks = disks
        self._processes = processes
        self._root = root

    def collect(self) -> list[Family]:
        return [*self._cpu(), *self._memory(), *self._disk(), *self._network(), *self._node_processes()]

    def _cpu(self) -> Iterable[Family]:
        times = psutil.cpu_times()
        seconds = [(mode, getattr(times, mode)) for mode in _MODES if hasattr(times, mode)]
        text = "Seconds of all CPUs of the machine, by what they did"
        yield by_label(counter("noded_node_cpu_seconds_total", text), "mode", seconds)
        yield gauge("noded_node_cpus", "CPUs of the machine", psutil.cpu_count() or 1)
        yield gauge("noded_node_load1", "Load average of the last minute", os.getloadavg()[0])
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        yield gauge("noded_node_boot_time_seconds", "When the machine was started, since the epoch", round(boot))

    def _memory(self) -> Iterable[Family]:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        yield gauge("noded_node_memory_size_bytes", "Memory of the machine", memory.total)
        yield gauge("noded_node_memory_available_bytes", "Memory that programs could still have", memory.available)
        yield gauge("noded_node_swap_used_bytes", "Swap of the machine in use", swap.used)

    def _disk(self) -> Iterable[Family]:
        text = "of the file system, by what noded has there: run (sockets), logs, spill"
        size = gauge("noded_node_disk_size_bytes", f"Size {text}")
        free = gauge("noded_node_disk_free_bytes", f"Bytes that are free for us {text}")
        for use, path in self._disks:
            try:
                found = os.statvfs(path)
            except FileNotFoundError:  # nothing was spilled yet
                continue
            size.samples.append(({"use": use, "path": path}, found.f_blocks * found.f_frsize))
            free.samples.append(({"use": use, "path": path}, found.f_bavail * found.f_frsize))
        yield from (size, free)
        if (io := psutil.disk_io_counters()) is not None:
            yield counter("noded_node_disk_read_bytes_total", "Bytes read by the machine's disks", io.read_bytes)
            yield counter("noded_node_disk_written_bytes_total", "Bytes written by its disks", io.write_bytes)

    def _network(self) -> Iterable[Family]:
        cards = [card for name, card in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        text = "by the machine's network cards"
        received, sent = sum(card.bytes_recv for card in cards), sum(card.bytes_sent for card in cards)
        yield counter("noded_node_network_received_bytes_total", f"Bytes received {text}", received)
        yield counter("noded_node_network_sent_bytes_total", f"Bytes sent {text}", sent)
        dropped = sum(card.dropin + card.dropout + card.errin + card.errout for card in cards)
        yield counter("noded_node_network_dropped_packets_total", f"Packets dropped or damaged {text}", dropped)

    def _node_processes(self) -> Iterable[Family]:
        roles = self._processes()
        memory = gauge("noded_processes_memory_bytes", f"Memory {_PROCESS_TEXT}")
        for role, pids in roles.items():
            own = sum(own_pages(self._root, pid, swap=False) for pid in pids)
            memory.samples.append(({"role": role}, own))
        count = gauge("noded_processes", "Processes of the node, by role")
        yield memory
        yield by_label(count, "role", {role: len(pids) for role, pids in roles.items()})
