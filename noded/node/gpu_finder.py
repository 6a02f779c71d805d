"""Which GPUs the node has: declared, found by the daemon before us, or looked for while the node already works.

NVML may take long, or hang (``gpu_detector.py``): the node does not wait for it, only what asks for GPUs does. What was
found is in the ledger before it is given to anybody: indices of devices mean the same to the next daemon, and it need
not ask NVML again. Who gets which GPU: see ``capacity.py``.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping

import msgspec

from noded.node import gpu_detector, gpu_ids
from noded.node.leases import Leases
from noded.node.ledger import Ledger
from noded.resources import UNIT

log = logging.getLogger("noded.gpus")

KIND = "accelerator_type:"
_SECONDS = (2.0, 15.0)
"""How long NVML is given to answer, at the first try and at the second."""
_KEY = b"gpus"


class Found(msgspec.Struct, array_like=True):
    """What the ledger keeps: names in CUDA_VISIBLE_DEVICES by index, and the models among them."""

    ids: list[str] = []
    kinds: list[str] = []


class GpuFinder:
    """``declared``: so many, whatever there is; None: find them."""

    def __init__(self, ledger: Ledger, environ: Mapping[str, str], declared: float | None):
        self._ledger = ledger
        self._environ = environ
        self._declared = declared
        self._task: asyncio.Task[None] | None = None

    def at_start(self) -> tuple[dict[str, float], list[str]]:
        """(resources, names by index) as far as they are known without NVML. Raises ValueError when the environment
        allows fewer than are declared.
        """
        stored = self._stored()
        ids = stored.ids
        if self._declared is not None:
            ids = gpu_ids.ids_for(self._environ, math.ceil(self._declared))
        kinds = stored.kinds if ids == stored.ids else []
        resources = {KIND + kind: 1.0 for kind in kinds}
        if ids:
            resources["GPU"] = len(ids) if self._declared is None else self._declared
        return resources, ids

    def start(self, loop: asyncio.AbstractEventLoop, leases: Leases) -> None:
        """Look for what is not known."""
        if self._declared == 0 or self._stored().ids:
            return
        leases.not_known_yet = (KIND,) if self._declared else ("GPU", KIND)
        self._task = loop.create_task(self._look(leases), name="find GPUs")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _stored(self) -> Found:
        data = self._ledger.node.get(_KEY)
        return msgspec.msgpack.decode(data, type=Found) if data else Found()

    async def _look(self, leases: Leases) -> None:
        try:
            for seconds in _SECONDS:
                found = await gpu_detector.detect_async(self._environ, seconds)
                leases.gpus_unknown = found.reason if found.state == "unknown" else ""
                if found.state != "unknown":
                    break
                log.warning("it is not known which GPUs this node has: %s", found.reason)
            self._take(found, leases)
        except Exception as problem:
            log.exception("the search for GPUs failed")
            leases.gpus_unknown = f"the search for them failed ({problem})"
        finally:
            leases.not_known_yet = ()
            leases.kick()

    def _take(self, found: gpu_detector.Gpus, leases: Leases) -> None:
        gpus = found.devices if self._declared is None else found.devices[: math.ceil(self._declared)]
        if not gpus:
            return
        kinds = sorted({gpu_detector.accelerator_type(gpu.name) for gpu in gpus if gpu.name})
        new = [gpu.visible_id for gpu in gpus] if self._declared is None else []
        self._ledger.node.put(_KEY, msgspec.msgpack.encode(Found(new or leases.capacity.ids, kinds)))
        leases.capacity.add_gpus(new, {KIND + kind: UNIT for kind in kinds})
        log.info("found %d GPUs (%s)", len(gpus), ", ".join(kinds) or "of unknown kind")
