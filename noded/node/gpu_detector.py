"""The node's GPUs, found by NVML in a helper process (`gpu_probe.py`), never in this one.

NVML that hangs, crashes or talks nonsense costs the helper: the GPUs are then "unknown", with the reason. Where
there is no libnvidia-ml.so.1 and no device file, the helper is not even started. CUDA_VISIBLE_DEVICES in the given
environment restricts what is found (`gpu_ids.py`). Nothing is remembered here; ask again to find out again.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import signal
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from noded.node.gpu_ids import VARIABLE, visible_ids

_PROBE = Path(__file__).with_name("gpu_probe.py")
_LIBRARY = "libnvidia-ml.so.1"
_KILL_SECONDS = 0.5
"""How long a killed helper is waited for. One that is stuck in the driver ends when the driver lets it."""
_MAKERS = {"NVIDIA", "Tesla", "GeForce", "Quadro", "GRID"}


class Gpu(msgspec.Struct, frozen=True):
    """``index``: its place among those the node may use, 0 to n-1. ``visible_id``: its name in CUDA_VISIBLE_DEVICES.
    ``memory``: bytes. Name and memory are "" and 0 where they are not known, as of a part of a GPU (MIG).
    """

    index: int
    visible_id: str
    uuid: str
    name: str
    memory: int


class Gpus(msgspec.Struct, frozen=True):
    """``reason``: why none were found, why it is not known, or what was left out; "" when there is nothing to say."""

    state: Literal["found", "none", "unknown"]
    devices: tuple[Gpu, ...] = ()
    reason: str = ""


class Load(msgspec.Struct):
    """A GPU as it is now: ``memory`` and ``used`` in bytes, ``utilization`` in percent, ``temperature`` in degrees
    Celsius; None where NVML does not tell. ``index`` is NVML's, which knows nothing of CUDA_VISIBLE_DEVICES.
    """

    index: int
    uuid: str
    name: str
    memory: int
    used: int | None
    utilization: int | None
    temperature: int | None


class _Answer(msgspec.Struct):
    """What the helper prints. All fields are required, so that other JSON is not taken for it."""

    devices: list[Load]
    failed: Literal["", "library", "driver", "other"]
    reason: str


def detect(environ: Mapping[str, str], seconds: float = 2.0, root: Path = Path("/")) -> Gpus:
    """`detect_async` for callers without an event loop."""
    return asyncio.run(detect_async(environ, seconds, root))


async def detect_async(environ: Mapping[str, str], seconds: float = 2.0, root: Path = Path("/")) -> Gpus:
    """The GPUs that CUDA programs started with `environ` could use; "unknown" when NVML has not told in so many
    seconds. `root` is where /dev and the libraries are looked for, for tests.
    """
    allowed = visible_ids(environ)
    if allowed == []:
        return Gpus("none", reason=f"{VARIABLE}={environ[VARIABLE]!r} hides all")
    library = await asyncio.to_thread(_find_library, environ, root)
    if not library and not _device_files(root):
        return Gpus("none", reason=f"there is no {_LIBRARY}, and no /dev/nvidia*")
    try:
        answer = await _ask(environ, seconds)
    except _Unknown as unknown:
        return Gpus("unknown", reason=str(unknown))
    if answer.failed:
        there_is_no_driver = answer.failed == "driver" or (answer.failed == "library" and not library)
        return Gpus("none" if there_is_no_driver else "unknown", reason=answer.reason)
    if answer.reason and not answer.devices:
        return Gpus("unknown", reason=answer.reason)
    return restrict(_devices(answer), allowed, answer.reason)


def loads(environ: Mapping[str, str], seconds: float) -> list[Load]:
    """What the GPUs that programs started with `environ` could use do now; blocks for at most so many seconds. Raises
    RuntimeError when NVML does not tell.
    """
    try:
        answer = asyncio.run(_ask(environ, seconds))
    except _Unknown as unknown:
        raise RuntimeError(str(unknown)) from unknown
    if answer.failed or (answer.reason and not answer.devices):
        raise RuntimeError(answer.reason)
    allowed = restrict(_devices(answer), visible_ids(environ)).devices
    uuids = {gpu.uuid for gpu in allowed}
    return [load for load in answer.devices if load.uuid in uuids]


def restrict(devices: Sequence[Gpu], allowed: Sequence[str] | None, reason: str = "") -> Gpus:
    """The devices that the environment allows, in its order and under its names."""
    if allowed is None:
        return Gpus("found" if devices else "none", tuple(devices), reason or ("" if devices else "NVML has no GPU"))
    chosen: dict[str, Gpu] = {}
    for id_ in allowed:
        gpu = _named(devices, id_, place=len(chosen))
        if gpu is None:  # CUDA ignores it and all after it
            reason = "; ".join(filter(None, [reason, f"{VARIABLE} names device {id_}, which NVML does not have"]))
            break
        chosen.setdefault(gpu.uuid, gpu)
    return Gpus("found" if chosen else "none", tuple(chosen.values()), reason)


def accelerator_type(name: str) -> str:
    """What comes after `accelerator_type:` in the resource for a GPU of this name: the model without its maker, up to
    the number (`NVIDIA A100-SXM4-40GB` is `A100`, `NVIDIA GeForce RTX 4090` is `GeForce-RTX-4090`).
    """
    words = name.split()
    if len(words) > 1 and words[0] in _MAKERS:
        del words[0]
    for place, word in enumerate(words):
        if any(character.isdecimal() for character in word):
            return "-".join([*words[:place], word.partition("-")[0]])
    return "-".join(words)


def _devices(answer: _Answer) -> list[Gpu]:
    # CUDA does not count GPUs that fail, so after one of them a number would mean another device than here.
    numbered = not answer.reason
    return [
        Gpu(place, str(device.index) if numbered else device.uuid, device.uuid, device.name, device.memory)
        for place, device in enumerate(answer.devices)
    ]


def _named(devices: Sequence[Gpu], id_: str, place: int) -> Gpu | None:
    if id_.isdecimal():
        found = [devices[int(id_)]] if int(id_) < len(devices) else []
        if not found:
            return None
    else:
        found = [gpu for gpu in devices if gpu.uuid.startswith(id_)]
    if len(found) == 1:
        return Gpu(place, id_, found[0].uuid, found[0].name, found[0].memory)
    # A part of a GPU, or one that NVML tells by another name: the user's word is taken for it. Where all are
    # of one kind, it is of that kind.
    names = {gpu.name for gpu in devices}
    return Gpu(place, id_, id_, names.pop() if len(names) == 1 else "", 0)


def helper_command(seconds: float) -> list[str]:
    """The helper that ends after so many seconds in any case."""
    # By its path, and without its directory on sys.path, where our modules would pass for others'.
    return [sys.executable, "-P", str(_PROBE), f"{seconds:g}"]


class _Unknown(Exception):
    """NVML did not tell; the text says why."""


async def _ask(environ: Mapping[str, str], seconds: float) -> _Answer:
    try:
        helper = await asyncio.create_subprocess_exec(
            *helper_command(seconds + _KILL_SECONDS),
            env=dict(environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise _Unknown(f"the NVML helper cannot be started: {error}") from error
    talk = asyncio.create_task(helper.communicate(), name="gpu probe")
    try:
        await asyncio.wait({talk}, timeout=seconds)
        in_time = talk.done()
    finally:
        if not talk.done():
            with contextlib.suppress(ProcessLookupError):
                helper.kill()
            await asyncio.wait({talk}, timeout=_KILL_SECONDS)
            talk.cancel()
    if not in_time:
        raise _Unknown(f"NVML did not answer within {seconds:g} s")
    return _read(helper.returncode, *talk.result())


def _read(code: int | None, output: bytes, errors: bytes) -> _Answer:
    lines = errors.decode(errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    if code is not None and code < 0:
        raise _Unknown(f"the NVML helper died of {_signal_name(-code)}")
    if code:
        raise _Unknown(f"the NVML helper ended with {code}{said}")
    try:
        # The last line: what the user's site-packages run at every start of Python may have printed before it.
        return msgspec.json.decode(output.strip().rpartition(b"\n")[2], type=_Answer)
    except msgspec.DecodeError as error:
        raise _Unknown(f"the NVML helper's answer {output[:100]!r} makes no sense ({error}){said}") from error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _find_library(environ: Mapping[str, str], root: Path) -> bool:
    """Whether the dynamic linker would find NVML, without loading it. When in doubt, the helper finds out."""
    if "nvidia-ml" in environ.get("LD_PRELOAD", ""):
        return True
    if any(os.path.exists(os.path.join(place, _LIBRARY)) for place in _library_directories(environ, root)):
        return True
    try:
        return f"{_LIBRARY}\0".encode() in (root / "etc/ld.so.cache").read_bytes()
    except OSError:
        return False


def _library_directories(environ: Mapping[str, str], root: Path) -> Iterator[str]:
    yield from filter(None, environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":"))
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for top in ("lib", "usr/lib", "usr/local/lib"):
        yield from (f"{root}/{top}", f"{root}/{top}64", f"{root}/{top}/{multiarch}")
    yield f"{root}/{sys.base_prefix}/lib"  # where a Python from conda looks, beside itself


def _device_files(root: Path) -> bool:
    """Those of NVIDIA's driver, or of WSL's."""
    return bool(glob.glob(f"{glob.escape(str(root))}/dev/nvidia*")) or os.path.exists(f"{root}/dev/dxg")
