"""Which GPUs a task or actor sees: declared ones, and ones that NVML tells of (a stand-in that the tests compile)."""

from __future__ import annotations

import atexit
import builtins
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.gates import Gate, Notes
from harness.leaks import LeakCheck
from harness.nvml import StandIn
from harness.wait import wait_for

import noded
from noded.util.placement_group import placement_group, remove_placement_group
from noded.util.scheduling_strategies import PlacementGroupSchedulingStrategy

TIMEOUT = 60
CUDA = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(autouse=True, scope="module")
def no_setting_of_the_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(CUDA, raising=False)
        yield


@pytest.fixture(scope="module", params=["declared", "found"])
def cluster(request: pytest.FixtureRequest, leak_check: LeakCheck) -> Iterator[noded.ClientContext]:
    """With two GPUs that it was told of, or that it has found."""
    before = leak_check.take()
    with pytest.MonkeyPatch.context() as patch:
        declared = 2 if request.param == "declared" else None
        if declared is None:
            for name, value in request.getfixturevalue("nvml").env(2).items():
                patch.setenv(name, value)
        context = noded.init("local", num_cpus=4, num_gpus=declared, object_store_memory=64 << 20, log_to_driver=False)
    with context:
        yield context
    left = leak_check.left_since(before)
    if left:
        leak_check.end_all(before)
        pytest.fail("the module's cluster left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


def get(refs: Any) -> Any:
    return noded.get(refs, timeout=TIMEOUT)


def free() -> float:
    return noded.available_resources().get("GPU", 0)


@noded.remote(num_cpus=0)
def see() -> tuple[Any, str | None, int]:
    return noded.get_gpu_ids(), os.environ.get(CUDA), os.getpid()


@noded.remote(num_cpus=0)
def hold(notes: Notes, gate: Gate) -> list[str]:
    """Holds its GPUs until the gate is open; notes which and when."""
    ids = noded.get_runtime_context().get_accelerator_ids()["GPU"]
    assert os.environ[CUDA] == ",".join(ids)
    notes.add(f"{','.join(ids)} {time.monotonic()}")
    gate.wait()
    notes.add(f"{','.join(ids)} {time.monotonic()} end")
    return ids


@noded.remote(num_cpus=0)
class Seer:
    def see(self) -> tuple[Any, str | None]:
        return noded.get_gpu_ids(), os.environ.get(CUDA)


def most_at_once(lines: list[str]) -> dict[str, int]:
    """Device -> how many held it at the same time, from what `hold` has noted."""
    now, most = Counter[str](), Counter[str]()
    for line in sorted(lines, key=lambda line: float(line.split()[1])):
        device = line.split()[0]
        now[device] += -1 if line.endswith("end") else 1
        most[device] = max(most[device], now[device])
    assert not any(now.values())
    return dict(most)


# ---------------------------------------------------------------- two GPUs


@pytest.mark.usefixtures("cluster")
def test_an_actor_and_a_task_with_one_gpu_each_see_different_ones() -> None:
    """The example of Ray's documentation."""
    actor = Seer.options(num_gpus=1).remote()
    ids, seen = get(actor.see.remote())
    other, also_seen, _ = get(see.options(num_gpus=1).remote())

    assert sorted(ids + other) == [0, 1]
    assert (seen, also_seen) == (str(ids[0]), str(other[0]))
    assert get(actor.see.remote()) == (ids, seen)
    del actor
    wait_for(lambda: free() == 2, "the actor's GPU is not free")
    assert get(see.options(num_gpus=2).remote())[:2] == ([0, 1], "0,1")


@pytest.mark.usefixtures("cluster")
def test_who_asks_for_none_sees_none() -> None:
    assert noded.get_gpu_ids() == []
    assert get(see.remote())[:2] == ([], "")
    assert get(see.options(num_gpus=0).remote())[:2] == ([], "")
    assert get(Seer.remote().see.remote()) == ([], "")


@pytest.mark.usefixtures("cluster")
def test_ten_times_six_tenths_run_two_at_once(notes: Notes, gate: Gate) -> None:
    refs = [hold.options(num_gpus=0.6).remote(notes, gate) for _ in range(10)]
    notes.wait(2)
    assert noded.wait(refs, timeout=0.3)[0] == [] and len(notes.all()) == 2
    gate.open()
    ids = get(refs)
    assert all(len(one) == 1 for one in ids)
    assert most_at_once(notes.all()) == {"0": 1, "1": 1}


@pytest.mark.usefixtures("cluster")
def test_fractions_share_a_device_and_whole_ones_do_not(notes: Notes, gate: Gate) -> None:
    halves = [Seer.options(num_gpus=0.5).remote() for _ in range(2)]
    [shared], [same] = [get(half.see.remote())[0] for half in halves]
    whole = hold.options(num_gpus=1).remote(notes, gate)
    [line] = notes.wait(1)
    waiting = see.options(num_gpus=0.1).remote()

    assert shared == same and line.split()[0] == str(1 - shared)
    assert noded.wait([waiting], timeout=0.3)[0] == []
    noded.kill(halves[0])
    assert get(waiting)[0] == [shared]
    gate.open()
    get(whole)


@pytest.mark.usefixtures("cluster")
def test_a_device_in_pieces_is_not_a_whole_one() -> None:
    halves = [Seer.options(num_gpus=0.6).remote() for _ in range(2)]
    get([half.see.remote() for half in halves])
    assert free() == pytest.approx(0.8)
    waiting = see.options(num_gpus=0.8).remote()

    assert noded.wait([waiting], timeout=0.3)[0] == []
    del halves[0]
    assert len(get(waiting)[0]) == 1


@pytest.mark.usefixtures("cluster")
def test_each_gpu_task_is_a_process_of_its_own_unless_it_says_how_many() -> None:
    assert len({get(see.options(num_gpus=1).remote())[2] for _ in range(4)}) == 4
    again = noded.remote(num_cpus=0, num_gpus=1, max_calls=0)(see._function)
    ids, pids = [], set()
    for _ in range(4):
        one, seen, pid = get(again.remote())
        assert seen == ",".join(map(str, one))
        ids.append(one)
        pids.add(pid)
    assert len(pids) == len({tuple(one) for one in ids})  # the same process as long as the device is the same
    assert get(see.remote())[2] not in pids


@pytest.mark.usefixtures("cluster")
def test_a_process_never_sees_other_gpus_than_at_first(notes: Notes) -> None:
    """CUDA reads the variable once in a process, and then keeps to it."""

    def look() -> tuple[str, str, int]:
        if not hasattr(builtins, "first_look"):
            builtins.first_look = os.environ[CUDA]  # type: ignore[attr-defined]
        return builtins.first_look, os.environ[CUDA], os.getpid()  # type: ignore[attr-defined]

    kinds = [noded.remote(num_cpus=0, num_gpus=n, max_calls=0)(look) for n in (0, 1, 0.5, 2)]
    seen = [get([kind.remote() for kind in kinds for _ in range(2)]) for _ in range(5)]
    for first, now, _ in (one for batch in seen for one in batch):
        assert first == now


@pytest.mark.usefixtures("cluster")
def test_a_gpu_is_free_when_the_process_that_had_it_has_ended(tmp_path: Path) -> None:
    """Until then its memory is not."""
    ended = tmp_path / "ended"

    @noded.remote(num_cpus=0, num_gpus=2)
    def leaves_slowly() -> int:
        def clean_up() -> None:
            time.sleep(0.3)
            ended.touch()

        atexit.register(clean_up)
        return os.getpid()

    @noded.remote(num_cpus=0, num_gpus=0.1)
    def look(pid: int) -> tuple[bool, bool]:
        return ended.exists(), os.path.exists(f"/proc/{pid}")

    pid = get(leaves_slowly.remote())
    assert get(look.remote(pid)) == (True, False)


@pytest.mark.usefixtures("cluster")
def test_the_users_own_value_wins() -> None:
    environment = {"env_vars": {CUDA: "7"}}
    ids, seen, _ = get(see.options(num_gpus=1, runtime_env=environment).remote())
    assert seen == "7" and len(ids) == 1
    assert get(see.options(runtime_env=environment).remote())[:2] == ([], "7")
    assert get(Seer.options(num_gpus=1, runtime_env=environment).remote().see.remote())[1] == "7"


@pytest.mark.usefixtures("cluster")
def test_a_dead_task_gives_its_gpu_back() -> None:
    @noded.remote(num_cpus=0, num_gpus=2, max_retries=0)
    def die() -> None:
        os._exit(1)

    with pytest.raises(noded.exceptions.WorkerCrashedError):
        get(die.remote())
    assert get(see.options(num_gpus=2).remote())[1] == "0,1"


@pytest.mark.usefixtures("cluster")
def test_bundles_keep_their_gpus() -> None:
    group = placement_group([{"GPU": 1}, {"CPU": 1}, {"GPU": 1, "CPU": 1}])
    get(group.ready())

    def within(index: int, **options: Any) -> list[int]:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        found: list[int] = get(see.options(scheduling_strategy=strategy, **options).remote())[0]
        return found

    try:
        first, second = within(0, num_gpus=1), within(2, num_gpus=1)
        assert sorted(first + second) == [0, 1]
        for _ in range(3):
            assert within(0, num_gpus=1) == first and within(2, num_gpus=0.3) == second
        assert within(1, num_cpus=1) == []
        # Nothing is left outside of it, and inside it both at once see both.
        outside = see.options(num_gpus=0.1).remote()
        strategy = PlacementGroupSchedulingStrategy(group)
        actors = [Seer.options(num_gpus=1, scheduling_strategy=strategy).remote() for _ in range(2)]
        assert sorted(get(actor.see.remote())[0] for actor in actors) == [[0], [1]]
        assert noded.wait([outside], timeout=0.3)[0] == []
        del actors
    finally:
        remove_placement_group(group)
    assert len(get(outside)[0]) == 1


@pytest.mark.usefixtures("cluster")
def test_a_group_waits_for_whole_devices(notes: Notes, gate: Gate) -> None:
    refs = [hold.options(num_gpus=0.6).remote(notes, gate) for _ in range(2)]
    notes.wait(2)
    group = placement_group([{"GPU": 0.4}, {"GPU": 0.4}])
    assert group.wait(TIMEOUT)
    never, later = placement_group([{"GPU": 0.6}] * 3), placement_group([{"GPU": 1}, {"GPU": 0.5}, {"GPU": 0.5}])

    assert not later.wait(0.3)
    with pytest.raises(noded.exceptions.NodedError, match=r"GPU in pieces of one device each: asks 1\.8"):
        get(never.ready())
    gate.open()
    get(refs)
    remove_placement_group(group)
    assert later.wait(TIMEOUT)
    for one in (never, later):
        remove_placement_group(one)
    wait_for(lambda: free() == 2, "the groups' GPUs are not free")
