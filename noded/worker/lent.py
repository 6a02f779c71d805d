"""What a lease or an actor brings along, as this process shows it: resources, GPUs, placement group, threads."""

from __future__ import annotations

import os
from collections.abc import Sequence

from noded.client.context import running
from noded.wire import messages as m

CUDA = "CUDA_VISIBLE_DEVICES"
ALL_GPUS_WITHOUT_ASKING = "NODED_GPUS_WITHOUT_ASKING"
"""Set to 1 where the daemon starts: tasks that ask for no GPU see all of them, instead of none."""


class LentNow:
    """``now`` is the last one entered; workers serve one lease at a time."""

    def __init__(self) -> None:
        self.now: m.Lent | None = None
        self.omp_threads = -1 if "OMP_NUM_THREADS" in os.environ else 0
        """What we have set OMP_NUM_THREADS to; -1: the user has set it."""
        self._users_cuda = False
        self._all_gpus = os.environ.get(ALL_GPUS_WITHOUT_ASKING) == "1"

    def keep_users(self, names: Sequence[str]) -> None:
        """These variables are set by the user's runtime environment: they stay what they are."""
        self._users_cuda = CUDA in names
        if "OMP_NUM_THREADS" in names:
            self.omp_threads = -1

    def enter(self, lent: m.Lent | None) -> None:
        self.now = lent
        if lent is not None:
            self.take(lent.resources, lent.gpus, lent.where)

    def take(self, resources: dict[str, int], gpus: list[str], where: m.Place) -> None:
        running.resources, running.gpus, running.where = resources, gpus, where
        self.show_gpus(gpus)

    def show_gpus(self, gpus: list[str]) -> None:
        """Before any CUDA library looks."""
        if not self._users_cuda and (gpus or not self._all_gpus):
            os.environ[CUDA] = ",".join(gpus)

    def set_omp(self, threads: int) -> None:
        self.omp_threads = threads
        os.environ["OMP_NUM_THREADS"] = str(threads)
