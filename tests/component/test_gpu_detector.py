"""GPU detection against a stand-in for NVML: what is found, and an NVML that hangs, crashes, lies or is not there.

The helper process is the real one. Tests without the stand-in's library give an empty root, so that they say the same
on a machine with GPUs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import uvloop
from harness.nvml import StandIn
from harness.wait import wait_for

from noded.node import gpu_detector
from noded.node.gpu_detector import Gpus, detect, detect_async

# Hanging is told by the clock; all else gets the time that a busy machine needs to start Python.
PATIENT = 30
UUID = "GPU-{:08d}-0000-4000-8000-000000000000".format


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return StandIn.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def libuv() -> None:
    """libuv opens a pipe for signals at the first child process, and keeps it until this process ends."""

    async def first_child() -> None:
        await (await asyncio.create_subprocess_exec("true")).wait()

    uvloop.run(first_child())


def environment(*added: dict[str, str]) -> dict[str, str]:
    """This process's, without what its own machine says about GPUs."""
    base = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    for part in added:
        base.update(part)
    return base


def found(nvml: StandIn, visible: str | None = None, **options: object) -> Gpus:
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return detect(environment(nvml.env(**options), more), PATIENT)  # type: ignore[arg-type]


def ids(gpus: Gpus) -> list[str]:
    assert [gpu.index for gpu in gpus.devices] == list(range(len(gpus.devices)))
    return [gpu.visible_id for gpu in gpus.devices]


def test_devices_with_name_uuid_and_memory(nvml: StandIn) -> None:
    gpus = found(nvml, count=3, names=["NVIDIA L4", "Tesla T4"], memory=24 << 30)
    assert gpus.state == "found" and gpus.reason == ""
    assert ids(gpus) == ["0", "1", "2"]
    assert [gpu.name for gpu in gpus.devices] == ["NVIDIA L4", "Tesla T4", "Tesla T4"]
    assert [gpu.uuid for gpu in gpus.devices] == [UUID(0), UUID(1), UUID(2)]
    assert {gpu.memory for gpu in gpus.devices} == {24 << 30}


def test_a_driver_without_devices(nvml: StandIn) -> None:
    assert found(nvml, count=0) == Gpus("none", reason="NVML has no GPU")


def test_the_loop_of_the_daemon_detects_too(nvml: StandIn, libuv: None) -> None:
    gpus = uvloop.run(detect_async(environment(nvml.env(count=4)), PATIENT))
    assert gpus.state == "found" and len(gpus.devices) == 4


def test_nvml_that_hangs_is_unknown_after_the_time_given(nvml: StandIn) -> None:
    begun = time.monotonic()
    gpus = detect(environment(nvml.env(mood="hang")))
    assert gpus == Gpus("unknown", reason="NVML did not answer within 2 s")
    assert 1.9 < time.monotonic() - begun < 10


def test_the_loop_turns_while_nvml_hangs(nvml: StandIn, libuv: None) -> None:
    async def turns_meanwhile() -> int:
        question = asyncio.create_task(detect_async(environment(nvml.env(mood="hang")), seconds=1.0))
        turns = 0
        while not question.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert (await question).state == "unknown"
        return turns

    assert uvloop.run(turns_meanwhile()) > 10


def test_whoever_stops_asking_leaves_no_helper(nvml: StandIn, tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    async def ask_and_leave() -> int:
        question = asyncio.create_task(detect_async(environment(nvml.env(mood="hang", calls=calls)), PATIENT))
        while not (calls.exists() and calls.read_text().endswith("\n")):
            assert not question.done(), "the helper ended by itself"
            await asyncio.sleep(0.01)
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await question
        return int(calls.read_text())

    helper = asyncio.run(ask_and_leave())
    wait_for(lambda: not os.path.exists(f"/proc/{helper}"), f"the helper {helper} still runs")


def test_a_helper_without_a_daemon_ends_by_itself(nvml: StandIn) -> None:
    async def run_alone() -> int:
        helper = await asyncio.create_subprocess_exec(
            *gpu_detector.helper_command(1.0), env=environment(nvml.env(mood="hang"))
        )
        return await asyncio.wait_for(helper.wait(), PATIENT)

    assert asyncio.run(run_alone()) == -signal.SIGALRM


@pytest.mark.parametrize(("mood", "name"), [("crash", "SIGSEGV"), ("abort", "SIGABRT")])
def test_nvml_that_crashes_is_unknown(nvml: StandIn, mood: str, name: str) -> None:
    assert found(nvml, mood=mood) == Gpus("unknown", reason=f"the NVML helper died of {name}")


def test_nvml_that_ends_the_process_is_unknown(nvml: StandIn) -> None:
    gpus = found(nvml, mood="exit")
    assert gpus.state == "unknown" and "the NVML helper ended with 3" in gpus.reason


def test_what_nvml_prints_is_not_the_answer(nvml: StandIn) -> None:
    assert ids(found(nvml, mood="chatter")) == ["0", "1"]


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("print('hello')", "found"),
        ("import os; print('hello', flush=True); os._exit(0)", "unknown"),
        ("import os; print('[1, 2]', flush=True); os._exit(0)", "unknown"),
        ("import os; print('{}', flush=True); os._exit(0)", "unknown"),
        ("import os; os._exit(0)", "unknown"),
    ],
)
def test_nonsense_is_unknown(nvml: StandIn, tmp_path: Path, text: str, means: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(text)
    gpus = detect(environment(nvml.env(), {"PYTHONPATH": str(tmp_path)}), PATIENT)
    assert gpus.state == means
    if means == "unknown":
        assert gpus.devices == () and "makes no sense" in gpus.reason


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [(9, "none", "Driver Not Loaded"), (18, "unknown", "version mismatch"), (999, "unknown", "Unknown Error")],
)
def test_what_nvml_refuses_with(nvml: StandIn, error: int, state: str, says: str) -> None:
    gpus = found(nvml, error=error)
    assert (gpus.state, gpus.devices) == (state, ()) and says in gpus.reason


def test_one_lost_gpu_does_not_hide_the_others(nvml: StandIn) -> None:
    gpus = found(nvml, count=3, lost=1)
    assert gpus.state == "found" and "GPU 1 is left out" in gpus.reason
    # After a lost one numbers are not to be trusted: names are.
    assert ids(gpus) == [UUID(0), UUID(2)]


def test_only_lost_gpus_are_unknown(nvml: StandIn) -> None:
    gpus = found(nvml, count=1, lost=0)
    assert gpus.state == "unknown" and "GPU 0 is left out" in gpus.reason


def test_without_library_and_devices_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_detector, "helper_command", lambda seconds: ["/not/there"])
    bare = {"PATH": os.environ["PATH"]}
    assert detect(bare, root=tmp_path) == Gpus("none", reason="there is no libnvidia-ml.so.1, and no /dev/nvidia*")
    # Any sign of NVIDIA's driver has it started.
    for sign, contents in [
        ("dev/nvidiactl", ""),
        ("dev/dxg", ""),
        ("usr/lib64/libnvidia-ml.so.1", ""),
        ("etc/ld.so.cache", "glibc-ld.so.cache1.1\0libz.so.1\0libnvidia-ml.so.1\0"),
    ]:
        path = tmp_path / sign
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents)
        gpus = detect(bare, root=tmp_path)
        assert gpus.state == "unknown" and "the NVML helper cannot be started" in gpus.reason
        path.unlink()


def test_a_library_that_does_not_load_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("this is no library")
    gpus = detect(environment({"LD_LIBRARY_PATH": str(tmp_path)}), PATIENT)
    assert gpus.state == "unknown" and "libnvidia-ml.so.1" in gpus.reason


def test_devices_without_a_library_are_none(tmp_path: Path) -> None:
    from ctypes import CDLL

    try:
        CDLL("libnvidia-ml.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has NVML")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    gpus = detect(environment({"LD_LIBRARY_PATH": ""}), PATIENT, root=tmp_path)
    assert gpus.state == "none" and "libnvidia-ml.so.1" in gpus.reason


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("2,3", ["2", "3"]),
        ("3, 0", ["3", "0"]),
        ("1,1,2", ["1", "2"]),
        ("1,-1,2", ["1"]),
        ("0,9,1", ["0"]),
        (UUID(3), [UUID(3)]),
        ("GPU-00000002,0", ["GPU-00000002", "0"]),
        (f"1,{UUID(1)}", ["1"]),
        ("MIG-1f2e,MIG-GPU-77/1/0", ["MIG-1f2e", "MIG-GPU-77/1/0"]),
    ],
)
def test_the_users_devices_win(nvml: StandIn, visible: str, expected: list[str]) -> None:
    gpus = found(nvml, visible, count=4)
    assert gpus.state == "found" and ids(gpus) == expected
    assert {gpu.name for gpu in gpus.devices} == {"NVIDIA H100 80GB HBM3"}


def test_ids_belong_to_their_devices(nvml: StandIn) -> None:
    gpus = found(nvml, f"2,{UUID(0)},MIG-5", count=3, names=["NVIDIA L4", "Tesla T4", "Tesla V100-SXM2-16GB"])
    assert [gpu.name for gpu in gpus.devices] == ["Tesla V100-SXM2-16GB", "NVIDIA L4", ""]
    assert [gpu.uuid for gpu in gpus.devices] == [UUID(2), UUID(0), "MIG-5"]
    assert [gpu.memory for gpu in gpus.devices] == [80 << 30, 80 << 30, 0]


def test_a_device_that_is_not_there_is_named(nvml: StandIn) -> None:
    assert found(nvml, "7") == Gpus("none", reason="CUDA_VISIBLE_DEVICES names device 7, which NVML does not have")


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_who_hides_all_has_none_and_nvml_is_not_asked(nvml: StandIn, tmp_path: Path, visible: str) -> None:
    calls = tmp_path / "calls"
    gpus = found(nvml, visible, calls=calls)
    assert gpus == Gpus("none", reason=f"CUDA_VISIBLE_DEVICES={visible!r} hides all")
    assert not calls.exists()
