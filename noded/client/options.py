"""The options of tasks and actors: Ray's names and defaults, checked one by one, each refusal naming the
option.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from noded.resources import ResourceSet

_O = TypeVar("_O", bound="_Options")

_LATER = {
    "runtime_env",
    "retry_exceptions",
    "max_calls",
    "scheduling_strategy",
    "accelerator_type",
    "concurrency_groups",
    "max_pending_calls",
    "label_selector",
    "enable_task_events",
    "placement_group",
}


def _number(name: str, value: Any, *, whole: bool = False, least: float = 0) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (whole and not isinstance(value, int)):
        raise TypeError(f"the option {name} must be a {'whole ' if whole else ''}number, not {value!r}")
    if not math.isfinite(value) or value < least:
        raise ValueError(f"the option {name} must be at least {least:g}, not {value!r}")
    return value


def check_sizes(sizes: dict[str, Any]) -> None:
    """What init() is given for a private cluster. Raises TypeError or ValueError naming the argument."""
    for name, value in sizes.items():
        if value is None:
            continue
        if name == "resources":
            ResourceSet.from_floats(dict(_custom(value)))
        else:
            _number(name, value, least=1 << 20 if name == "object_store_memory" else 0)


class _Options(msgspec.Struct, frozen=True):
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: float | None = None
    object_store_memory: float | None = None
    custom: tuple[tuple[str, float], ...] = ()
    name: str | None = None

    def changed(self: _O, options: dict[str, Any]) -> _O:
        """A copy with these options set. Raises TypeError or ValueError naming the option."""
        clean: dict[str, Any] = {}
        for key, value in options.items():
            if key in ("num_cpus", "num_gpus", "memory", "object_store_memory"):
                clean[key] = None if value is None else _number(key, value)
            elif key == "resources":
                clean["custom"] = _custom(value)
            elif key == "name":
                if value is not None and not isinstance(value, str):
                    raise TypeError(f"the option name must be a string, not {value!r}")
                if value == "":
                    raise ValueError("the option name must not be empty")
                clean[key] = value
            elif key in self._own():
                clean[key] = self._check(key, value)
            elif key in _LATER:
                if value is not None and not (key == "scheduling_strategy" and value in ("DEFAULT", "SPREAD")):
                    raise NotImplementedError(f"the option {key} is not supported by this version of noded yet")
            else:
                known = sorted({"num_cpus", "num_gpus", "memory", "resources", "name", *self._own()})
                raise ValueError(f"unknown option {key!r}; known are {', '.join(known)}")
        made = msgspec.structs.replace(self, **clean)
        made.resources()  # refuses what cannot be, here and now
        return made

    def _own(self) -> tuple[str, ...]:
        return ()

    def _check(self, key: str, value: Any) -> Any:
        raise NotImplementedError

    def _resources(self, cpus: float) -> dict[str, int]:
        wanted: dict[str, float] = {"CPU": cpus, **dict(self.custom)}
        if self.num_gpus:
            wanted["GPU"] = self.num_gpus
        if self.memory:
            wanted["memory"] = float(math.ceil(self.memory))
        return ResourceSet.from_floats(wanted).to_dict()

    def resources(self) -> dict[str, int]:
        return self._resources(1 if self.num_cpus is None else self.num_cpus)


def _custom(value: Any) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise TypeError(f"the option resources must be a dict of name to number, not {value!r}")
    for key, amount in value.items():
        if key in ("CPU", "GPU", "memory"):
            option = {"CPU": "num_cpus", "GPU": "num_gpus"}.get(key, key)
            raise ValueError(f"the option resources must not contain {key}: use {option}")
        _number(f"resources[{key!r}]", amount)
    return tuple(sorted(value.items()))


class TaskOptions(_Options, frozen=True):
    num_returns: int = 1
    max_retries: int = 3

    def _own(self) -> tuple[str, ...]:
        return "num_returns", "max_retries"

    def _check(self, key: str, value: Any) -> Any:
        if key == "num_returns":
            if value is None:
                return 1
            if value in ("dynamic", "streaming"):
                raise NotImplementedError(f"num_returns={value!r} is not supported by this version of noded yet")
            return _number(key, value, whole=True)
        return 3 if value is None else _number(key, value, whole=True, least=-1)

    def omp_threads(self) -> int:
        """What OMP_NUM_THREADS is set to in the worker, as Ray does: the whole CPUs asked for, at least one."""
        return max(1, int(self.num_cpus or 1))


class ActorOptions(_Options, frozen=True):
    namespace: str | None = None
    lifetime: str | None = None
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 1
    get_if_exists: bool = False

    def _own(self) -> tuple[str, ...]:
        return "namespace", "lifetime", "max_restarts", "max_task_retries", "max_concurrency", "get_if_exists"

    def _check(self, key: str, value: Any) -> Any:
        if key in ("max_restarts", "max_task_retries"):
            return 0 if value is None else _number(key, value, whole=True, least=-1)
        if key == "max_concurrency":
            if value not in (None, 1):
                _number(key, value, whole=True, least=1)
                raise NotImplementedError("max_concurrency above 1 is not supported by this version of noded yet")
            return 1
        if key == "get_if_exists":
            if not isinstance(value, bool):
                raise TypeError(f"the option get_if_exists must be True or False, not {value!r}")
            return value
        if key == "lifetime" and value not in (None, "detached", "non_detached"):
            raise ValueError(f"the option lifetime must be 'detached', 'non_detached' or None, not {value!r}")
        if value is not None and not isinstance(value, str):
            raise TypeError(f"the option {key} must be a string, not {value!r}")
        if key == "namespace" and value == "":
            raise ValueError("the option namespace must not be empty")
        return value

    def resources(self) -> dict[str, int]:
        """What it occupies while it lives: no CPU unless asked for."""
        return self._resources(self.num_cpus or 0)

    def placement(self) -> dict[str, int]:
        """What must be free to start it: one CPU if nothing was said."""
        if self.num_cpus is None and not self.num_gpus and not self.custom and not self.memory:
            return self._resources(1)
        return self.resources()
