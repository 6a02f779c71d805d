"""The runtime context: who and where the calling code is."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray

TIMEOUT = 60
CLUSTER = pytest.mark.usefixtures("cluster")


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT)


def start(**arguments: Any) -> Any:
    given = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, **arguments}
    return ray.init("local", **given)


# ---------------------------------------------------------------- the runtime context


@CLUSTER
def test_the_context_of_the_driver() -> None:
    context = ray.get_runtime_context()

    for found in (context.get_job_id(), context.get_node_id(), context.get_worker_id()):
        assert isinstance(found, str) and int(found, 16) >= 0
    assert context.get_task_id() is None
    assert context.get_task_name() is None
    assert context.get_actor_id() is None
    assert context.get_actor_name() is None
    assert context.get_placement_group_id() is None
    assert context.namespace == "compat"
    assert context.gcs_address == ray.init(ignore_reinit_error=True).address_info["gcs_address"]
    assert context.get_accelerator_ids()["GPU"] == []


@CLUSTER
def test_the_context_of_a_task() -> None:
    @ray.remote(num_cpus=0.5, resources={"widget": 1})
    def tell() -> dict[str, Any]:
        context = ray.get_runtime_context()
        return {
            "job": context.get_job_id(),
            "node": context.get_node_id(),
            "worker": context.get_worker_id(),
            "task": context.get_task_id(),
            "name": context.get_task_name(),
            "function": context.get_task_function_name(),
            "actor": context.get_actor_id(),
            "group": context.get_placement_group_id(),
            "resources": context.get_assigned_resources(),
            "namespace": context.namespace,
        }

    driver = ray.get_runtime_context()
    first, second = get([tell.options(name="named").remote(), tell.remote()])

    assert first["job"] == driver.get_job_id() and first["node"] == driver.get_node_id()
    assert first["worker"] != driver.get_worker_id()
    assert first["task"] and first["task"] != second["task"]
    assert first["name"] == "named" and second["name"].endswith("tell")
    assert first["function"].endswith("tell")
    assert first["actor"] is None and first["group"] is None
    assert first["resources"] == {"CPU": 0.5, "widget": 1}
    assert first["namespace"] == "compat"


@CLUSTER
def test_the_context_of_an_actor() -> None:
    @ray.remote(num_cpus=1)
    class Teller:
        def __init__(self) -> None:
            context = ray.get_runtime_context()
            self.at_first = context.get_actor_id(), context.get_actor_name()

        def tell(self) -> dict[str, Any]:
            context = ray.get_runtime_context()
            return {
                "at_first": self.at_first,
                "actor": context.get_actor_id(),
                "name": context.get_actor_name(),
                "task": context.get_task_id(),
                "task_name": context.get_task_name(),
                "resources": context.get_assigned_resources(),
                "restarted": context.was_current_actor_reconstructed,
            }

    teller = Teller.options(name="teller").remote()
    first, second = get([teller.tell.remote(), teller.tell.remote()])

    assert first["at_first"] == (first["actor"], "teller")
    assert first["actor"] == second["actor"] and first["task"] != second["task"]
    assert first["name"] == "teller"
    assert first["task_name"] == "Teller.tell"
    assert first["resources"] == {"CPU": 1}
    assert first["restarted"] is False


@CLUSTER
def test_an_actor_without_a_name_has_an_empty_one() -> None:
    @ray.remote
    class Nameless:
        def name(self) -> Any:
            return ray.get_runtime_context().get_actor_name()

    assert get(Nameless.remote().name.remote()) == ""


@CLUSTER
def test_an_actor_can_give_away_its_own_handle() -> None:
    @ray.remote
    class Giver:
        def __init__(self) -> None:
            self.n = 0

        def me(self) -> Any:
            return ray.get_runtime_context().current_actor

        def add(self) -> int:
            self.n += 1
            return self.n

    giver = Giver.remote()
    same = get(giver.me.remote())

    assert get(same.add.remote()) == 1
    assert get(giver.add.remote()) == 2


@CLUSTER
def test_there_is_no_current_actor_outside_of_one() -> None:
    with pytest.raises(RuntimeError):
        _ = ray.get_runtime_context().current_actor


@CLUSTER
def test_the_context_of_an_async_actor() -> None:
    import asyncio

    @ray.remote
    class Teller:
        async def tell(self, others: int) -> Any:
            task = ray.get_runtime_context().get_task_id()
            for _ in range(others):
                await asyncio.sleep(0.01)
            return task, ray.get_runtime_context().get_task_id(), ray.get_runtime_context().get_actor_id()

    teller = Teller.remote()
    found = get([teller.tell.remote(n) for n in (5, 3, 1)])

    assert all(before == after for before, after, _ in found)
    assert len({before for before, _, _ in found}) == 3
    assert len({actor for _, _, actor in found}) == 1


@CLUSTER
def test_the_namespace_of_tasks_and_actors() -> None:
    @ray.remote
    class Teller:
        def namespace(self) -> str:
            return ray.get_runtime_context().namespace

    assert get(Teller.remote().namespace.remote()) == "compat"


def test_a_namespace_of_ones_own(alone: None) -> None:
    start()

    assert ray.get_runtime_context().namespace


@CLUSTER
def test_the_pid_of_a_worker_is_not_the_drivers() -> None:
    @ray.remote
    class Teller:
        def pid(self) -> int:
            return os.getpid()

    assert len({get(Teller.remote().pid.remote()), get(Teller.remote().pid.remote()), os.getpid()}) == 3
