"""What a program can ask about where it runs: ``get_runtime_context()``."""

from __future__ import annotations

import contextvars
import json
import os
from typing import Any

from noded import ids
from noded.client.runtime import Runtime
from noded.resources import base_name
from noded.wire import messages as m


class Running:
    """What this worker is and executes; set by the worker."""

    call: Any = None
    """What the main thread runs, in a worker that does one thing at a time."""
    task_name = ""
    """Of a constructor, which is no call."""
    class_name = ""
    actor_id = b""
    actor_name = ""
    resources: dict[str, int] = {}
    gpus: list[str] = []
    where: m.Place = m.ANYWHERE
    restarted = False


running = Running()
call_now: contextvars.ContextVar[Any] = contextvars.ContextVar("noded_call", default=None)
"""What the current thread or coroutine runs, in an actor that runs several calls at once."""


def current_call() -> Any:
    return call_now.get() or running.call


def where_now() -> m.Place:
    """Where the calling code runs; the placement group of a worker is in it."""
    return running.where


def gpu_ids() -> list[str]:
    return list(running.gpus)


class RuntimeContext:
    """Where the calling code runs. Ids are hex strings; those that do not apply are None."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime

    def get_job_id(self) -> str:
        return self._runtime.job

    def get_node_id(self) -> str:
        return self._runtime.node_id

    def get_worker_id(self) -> str:
        return self._runtime.worker_id

    def get_task_id(self) -> str | None:
        call = current_call()
        return call.task_id.hex() if call is not None else None

    def get_task_name(self) -> str | None:
        call = current_call()
        return call.name if call is not None else running.task_name or None

    def get_task_function_name(self) -> str | None:
        call = current_call()
        return call.function_name if call is not None else running.task_name or None

    def get_actor_id(self) -> str | None:
        return running.actor_id.hex() if running.actor_id else None

    def get_actor_name(self) -> str | None:
        return (running.actor_name or "") if running.actor_id else None

    def get_assigned_resources(self) -> dict[str, float]:
        return {base_name(name): units / 10_000 for name, units in running.resources.items()}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        return {"GPU": gpu_ids()}

    def get_resource_ids(self) -> dict[str, list[str]]:
        return self.get_accelerator_ids()

    def get_placement_group_id(self) -> str | None:
        return running.where.group.hex() if running.where.group else None

    @property
    def current_placement_group_id(self) -> str | None:
        return self.get_placement_group_id()

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        return running.where.capture

    def get_node_labels(self) -> dict[str, str]:
        labels: dict[str, str] = self._runtime.ask("nodes")[0]["Labels"]
        return labels

    def get_session_name(self) -> str:
        return os.path.basename(self._runtime.run_dir)

    def get_temp_dir(self) -> str:
        return self._runtime.run_dir

    def get_runtime_env_string(self) -> str:
        return self._runtime.environments.now or "{}"

    @property
    def runtime_env(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get_runtime_env_string())
        return found

    def is_canceled(self) -> bool:
        """Whether the running call was cancelled. An actor's method that asks is not interrupted any more."""
        call = current_call()
        if call is None:
            return False
        call.asked = True
        found: bool = call.cancelled
        return found

    @property
    def namespace(self) -> str:
        return self._runtime.namespace

    @property
    def gcs_address(self) -> str:
        return self._runtime.address

    @property
    def job_id(self) -> ids.HexId:
        return ids.HexId(self.get_job_id())

    @property
    def node_id(self) -> ids.HexId:
        return ids.HexId(self.get_node_id())

    @property
    def task_id(self) -> ids.HexId | None:
        found = self.get_task_id()
        return None if found is None else ids.HexId(found)

    @property
    def actor_id(self) -> ids.HexId | None:
        found = self.get_actor_id()
        return None if found is None else ids.HexId(found)

    @property
    def was_current_actor_reconstructed(self) -> bool:
        return running.restarted

    @property
    def current_actor(self) -> Any:
        from noded.client.actor_handle import handle_of

        if not running.actor_id:
            raise RuntimeError("current_actor is for code that runs in an actor")
        return handle_of(self._runtime, self._runtime.ask("actor_info", id=running.actor_id.hex()), weak=False)

    def get(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "namespace": self.namespace,
            "pid": os.getpid(),
        }
        if (task := self.get_task_id()) is not None:
            found["task_id"] = task
        if running.actor_id:
            found["actor_id"] = running.actor_id.hex()
        return found
