"""What a program can ask about where it runs: ``get_runtime_context()``."""

from __future__ import annotations

import os
from typing import Any

from noded import ids
from noded.client.runtime import Runtime


class Running:
    """The task or actor this worker executes; set by the executor."""

    task: Any = None
    task_id = b""
    task_name = ""
    actor_id = b""
    actor_name = ""
    resources: dict[str, int] = {}
    restarted = False


running = Running()


class RuntimeContext:
    """Where the calling code runs. Ids are hex strings; those that do not apply are None."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime

    def get_job_id(self) -> str:
        return self._runtime.job

    def get_node_id(self) -> str:
        return self._runtime.node_id

    def get_worker_id(self) -> str:
        return self._runtime.prefix.hex()

    def get_task_id(self) -> str | None:
        return running.task_id.hex() if running.task_id else None

    def get_task_name(self) -> str | None:
        return running.task_name or None

    def get_task_function_name(self) -> str | None:
        return running.task_name or None

    def get_actor_id(self) -> str | None:
        return running.actor_id.hex() if running.actor_id else None

    def get_actor_name(self) -> str | None:
        return (running.actor_name or "") if running.actor_id else None

    def get_assigned_resources(self) -> dict[str, float]:
        return {name: units / 10_000 for name, units in running.resources.items()}

    @property
    def namespace(self) -> str:
        return self._runtime.namespace

    @property
    def gcs_address(self) -> str:
        return self._runtime.address

    @property
    def was_current_actor_reconstructed(self) -> bool:
        return running.restarted

    @property
    def current_actor(self) -> Any:
        from noded.client.remote import ActorHandle

        if not running.actor_id:
            raise RuntimeError("current_actor is for code that runs in an actor")
        answer = self._runtime.ask("actor_info", id=running.actor_id.hex())
        with self._runtime.lock:
            token = self._runtime.holds.take(running.actor_id)
        return ActorHandle(token, answer["class_name"], {k: tuple(v) for k, v in answer["methods"].items()})

    def get(self) -> dict[str, Any]:
        found = {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "namespace": self.namespace,
            "pid": os.getpid(),
        }
        if running.task_id:
            found["task_id"] = ids.task_id(ids.prefix_of(running.task_id), ids.seq_of(running.task_id)).hex()
        if running.actor_id:
            found["actor_id"] = running.actor_id.hex()
        return found
