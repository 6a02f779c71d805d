"""GPUs of nodes of many kinds: hidden, of a type, found late or not at all, and taken over by another daemon."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Node
from harness.drivers import Driver
from harness.gates import Gate, Notes
from harness.nvml import StandIn
from harness.wait import wait_for

import noded
from noded.exceptions import TaskUnschedulableError
from noded.util.accelerators import NVIDIA_H100, NVIDIA_TESLA_T4
from noded.util.placement_group import placement_group
from noded.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = pytest.mark.slow

TIMEOUT = 60
CUDA = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(autouse=True)
def no_setting_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUDA, raising=False)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


@pytest.fixture
def start() -> Iterator[Callable[..., Node]]:
    """`start(*flags, env=…)` starts a node with this process as its driver."""
    nodes: list[Node] = []

    def start(*flags: str, env: dict[str, str] | None = None) -> Node:
        node = Node("--object-store-memory", str(64 << 20), *flags, num_cpus=4, env=env)
        nodes.append(node.start())
        noded.init(address=node.address, log_to_driver=False)
        return node

    yield start
    noded.shutdown()
    for node in nodes:
        with node:
            pass


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


def free() -> float:
    return noded.available_resources().get("GPU", 0)


@noded.remote(num_cpus=0)
def see() -> tuple[Any, str | None]:
    return noded.get_gpu_ids(), os.environ.get(CUDA)


@noded.remote(num_cpus=0)
def hold(notes: Notes, gate: Gate) -> None:
    """Holds its GPUs until the gate is open."""
    notes.add(os.environ[CUDA])
    gate.wait()


@noded.remote(num_cpus=0)
class Seer:
    def see(self) -> tuple[Any, str | None]:
        return noded.get_gpu_ids(), os.environ.get(CUDA)


def test_eighty_times_eighteen_hundredths_run_five_on_each_device(start: Callable[..., Node]) -> None:
    start("--num-gpus", "16")
    actors = [Seer.options(num_gpus=0.18).remote() for _ in range(80)]
    ids = [tuple(ids) for ids, _ in get([actor.see.remote() for actor in actors])]
    one_more = Seer.options(num_gpus=0.18).remote()

    assert Counter(ids) == {(device,): 5 for device in range(16)}
    assert noded.wait([one_more.see.remote()], timeout=0.2)[0] == []


def test_the_switch_shows_all_gpus_to_who_asks_for_none(start: Callable[..., Node]) -> None:
    start("--num-gpus", "2", env={"NODED_GPUS_WITHOUT_ASKING": "1"})

    assert get(see.remote()) == ([], None)
    assert get(see.options(num_gpus=1).remote())[1] in ("0", "1")
    assert get(see.remote()) == ([], None)


@pytest.mark.parametrize(
    "visible, expected",
    [
        ("2,3", ["2", "3"]),
        ("GPU-00000003,1", ["GPU-00000003", "1"]),
        ("", []),
        ("1,-1,2", ["1"]),
    ],
)
def test_the_daemons_environment_restricts(
    visible: str, expected: list[str], nvml: StandIn, start: Callable[..., Node]
) -> None:
    node = start(env={**nvml.env(4), CUDA: visible})
    if not expected:
        with pytest.raises(TaskUnschedulableError, match="GPU: asks 1, the node has 0"):
            get(see.options(num_gpus=1).remote())
        return
    ids, seen = get(see.options(num_gpus=len(expected)).remote())
    assert seen == ",".join(expected)
    assert [str(one) for one in ids] == expected
    assert node.status()["gpus"] == {"ids": expected, "unknown": ""}
    assert noded.cluster_resources()["GPU"] == len(expected)


def test_the_daemons_environment_restricts_declared_ones_too(start: Callable[..., Node]) -> None:
    start("--num-gpus", "2", env={CUDA: "5,6,7"})
    assert get(see.options(num_gpus=2).remote()) == ([5, 6], "5,6")


@pytest.mark.parametrize("flags", [(), ("--num-gpus", "2")])
def test_accelerator_types(flags: tuple[str, ...], nvml: StandIn, start: Callable[..., Node]) -> None:
    """Also of declared GPUs, and also for those who ask right after the start."""
    start(*flags, env=nvml.env(2, ["NVIDIA H100 80GB HBM3"]))
    kind = f"accelerator_type:{NVIDIA_H100}"

    assert len(get(see.options(num_gpus=1, accelerator_type=NVIDIA_H100).remote())[0]) == 1
    assert get(see.options(accelerator_type=NVIDIA_H100).remote())[0] == []
    assert noded.cluster_resources()[kind] == 1
    actor = Seer.options(accelerator_type=NVIDIA_H100).remote()
    get(actor.see.remote())
    # The idle lease of the task before is kept for a moment.
    wait_for(lambda: noded.available_resources()[kind] == pytest.approx(0.999), "the actor alone has its part")
    with pytest.raises(TaskUnschedulableError, match=f"accelerator_type:{NVIDIA_TESLA_T4}: asks 0.001, the node has 0"):
        get(see.options(accelerator_type=NVIDIA_TESLA_T4).remote())


def test_nobody_waits_for_an_nvml_that_hangs_but_who_wants_gpus(
    nvml: StandIn, start: Callable[..., Node], tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    began = time.monotonic()
    node = start(env=nvml.env(2, mood="hang at first", calls=calls))
    wants = see.options(num_gpus=1).remote()
    assert get(see.remote()) == ([], "")
    assert "NVML" not in node.output() or time.monotonic() - began > 2

    wait_for(lambda: "NVML did not answer within 2 s" in node.output(), node.output)
    # It tries once more, which goes well, and the task has not been refused meanwhile.
    assert get(wants)[0] == [0] and time.monotonic() - began > 2
    assert len(calls.read_text().split()) == 2
    assert node.status()["gpus"] == {"ids": ["0", "1"], "unknown": ""}


def test_an_nvml_that_fails_is_named_in_the_refusal(nvml: StandIn, start: Callable[..., Node]) -> None:
    node = start(env=nvml.env(2, error=999))
    with pytest.raises(TaskUnschedulableError, match=r"the node has 0; its GPUs are unknown, as NVML.*--num-gpus"):
        get(see.options(num_gpus=1).remote())
    assert "NVML" in node.status()["gpus"]["unknown"]


# ---------------------------------------------------------------- a killed daemon


@pytest.mark.parametrize("how", ["declared", "found"])
def test_no_gpu_is_given_twice_by_the_daemon_after(
    how: str, request: pytest.FixtureRequest, start: Callable[..., Node], notes: Notes, gate: Gate, tmp_path: Path
) -> None:
    """Tasks, an actor, and bundles hold GPUs while the daemon is killed; what is free goes to others afterwards."""
    calls = tmp_path / "calls"
    flags = ["--num-gpus", "6"] if how == "declared" else []
    env = {} if flags else request.getfixturevalue("nvml").env(6, calls=calls)
    node = start(*flags, env=env)
    early = Seer.options(num_gpus=1).remote()
    get(early.see.remote())
    task = hold.options(num_gpus=1).remote(notes, gate)
    half = Seer.options(num_gpus=0.5).remote()
    [halfs] = get(half.see.remote())[0]
    group = placement_group([{"GPU": 1}, {"GPU": 2}])
    get(group.ready())
    bundles = [PlacementGroupSchedulingStrategy(group, index) for index in (0, 1)]
    bundled = hold.options(num_gpus=1, scheduling_strategy=bundles[1]).remote(notes, gate)
    held = [int(line) for line in notes.wait(2)]

    def inside() -> list[list[int]]:
        return [get(see.options(num_gpus=1, scheduling_strategy=bundle).remote())[0] for bundle in bundles]

    before = inside()
    del early
    wait_for(lambda: free() == 1.5, lambda: f"{free()} GPUs are free")
    node.restart()
    assert get(see.remote())[0] == []
    free_ones = [Seer.options(num_gpus=n).remote() for n in (1, 0.5)]
    got = [get(one.see.remote())[0] for one in free_ones]
    assert inside() == before  # also of the bundle in which nothing ran
    assert got[1] == [halfs]
    whole = [*held, halfs, *got[0], *before[0], *before[1]]
    assert sorted(whole) == [0, 1, 2, 3, 4, 5]
    late = see.options(num_gpus=0.1).remote()
    assert noded.wait([late], timeout=0.3)[0] == []
    gate.open()
    get([task, bundled])
    assert get(late)[0]
    assert get(half.see.remote())[0] == [halfs]
    if not flags:  # the ledger has told, not NVML
        assert len(calls.read_text().split()) == 1


def test_a_driver_that_ended_with_the_daemon_holds_nothing(start: Callable[..., Node]) -> None:
    node = start("--num-gpus", "2")
    source = """
        @noded.remote(num_gpus=1, num_cpus=0)
        def hold():
            time.sleep(60)
        refs = [hold.remote() for _ in range(2)]
        while noded.available_resources().get("GPU", 0): time.sleep(0.01)
        say("held")
        hear()
    """
    with Driver(node.address, source) as driver:
        driver.expect("held")
        assert free() == 0
        node.kill9()
        driver.kill()
    node.start()
    assert get(see.options(num_gpus=2).remote())[1] == "0,1"
