"""The options of tasks and actors: Ray's names and defaults, checked one by one, each refusal naming the
option.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import msgspec

from noded.client import codec, where
from noded.resources import UNIT, ResourceSet
from noded.wire import messages as m

_O = TypeVar("_O", bound="_Options")

_PLACEMENT = (
    "placement_group",
    "placement_group_bundle_index",
    "placement_group_capture_child_tasks",
)
"""The older way to say PlacementGroupSchedulingStrategy."""
_IGNORED = ("_labels", "_metadata", "enable_tensor_transport", "_num_objects_per_yield")
"""Of Ray's own machinery, without a meaning here."""


def _number(name: str, value: Any, *, whole: bool = False, least: float = 0) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (whole and not isinstance(value, int)):
        raise TypeError(f"the option {name} must be a {'whole ' if whole else ''}number, not {value!r}")
    if not math.isfinite(value) or value < least:
        raise ValueError(f"the option {name} must be at least {least:g}, not {value!r}")
    return value


def _amount(name: str, value: Any) -> Any:
    """Of a resource: what is less than one unit would be none at all."""
    if 0 < _number(name, value) * UNIT < 1:
        raise ValueError(f"the option {name} is {value!r}, but the smallest amount of a resource is {1 / UNIT:g}")
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
    runtime_env: Any = None
    scheduling_strategy: Any = None
    label_selector: Any = None
    fallback_strategy: Any = None
    accelerator_type: str | None = None

    def changed(self: _O, options: dict[str, Any]) -> _O:
        """A copy with these options set. Raises TypeError or ValueError naming the option."""
        clean: dict[str, Any] = {}
        groups = {key: value for key, value in options.items() if key in _PLACEMENT}
        for key, value in options.items():
            if key in ("num_cpus", "num_gpus", "memory", "object_store_memory"):
                clean[key] = None if value is None else _amount(key, value)
            elif key == "resources":
                clean["custom"] = _custom(value)
            elif key in ("name", "accelerator_type"):
                clean[key] = _text(key, value)
            elif key == "runtime_env":
                clean[key] = _environment(value)
            elif key in ("scheduling_strategy", "label_selector", "fallback_strategy"):
                where.check(**{key: value})
                clean[key] = value
            elif key in self._own():
                clean[self._field(key)] = self._check(key, value)
            elif key == "enable_task_events":  # there is nothing to switch off: the ring of events costs nothing
                if not isinstance(value, bool):
                    raise TypeError(f"the option enable_task_events must be True or False, not {value!r}")
            elif key not in _IGNORED and key not in _PLACEMENT:
                known = sorted({"num_cpus", "num_gpus", "memory", "resources", "name", *_MORE, *self._own()})
                raise ValueError(f"unknown option {key!r}; known are {', '.join(known)}")
        if groups:
            clean["scheduling_strategy"] = where.of_older_options(options.get("scheduling_strategy"), **groups)
        made = msgspec.structs.replace(self, **clean)
        made.resources()  # refuses what cannot be, here and now
        return made

    def _own(self) -> tuple[str, ...]:
        return ()

    def _field(self, key: str) -> str:
        return key

    def _check(self, key: str, value: Any) -> Any:
        raise NotImplementedError

    def _resources(self, cpus: float) -> dict[str, int]:
        wanted: dict[str, float] = {"CPU": cpus, **dict(self.custom)}
        if self.num_gpus:
            wanted["GPU"] = self.num_gpus
        if self.memory:
            wanted["memory"] = float(math.ceil(self.memory))
        if self.accelerator_type:
            wanted[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return ResourceSet.from_floats(wanted).to_dict()

    def resources(self) -> dict[str, int]:
        return self._resources(1 if self.num_cpus is None else self.num_cpus)

    def placement(self) -> dict[str, int]:
        """What must be free to start it."""
        return self.resources()

    def place(self, current: m.Place) -> m.Place:
        """Where it may run, submitted from code that runs at ``current``."""
        place = where.place_of(self.scheduling_strategy, current, self.label_selector, self.fallback_strategy)
        if place.group:
            where.check_fit(place, self.scheduling_strategy, self.placement())
        return place


_MORE = ("runtime_env", "scheduling_strategy", "label_selector", "fallback_strategy", "accelerator_type")


def _text(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"the option {key} must be a string, not {value!r}")
    if value == "":
        raise ValueError(f"the option {key} must not be empty")
    return value


def _environment(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    from noded.runtime_env import validate

    return validate(value)


def retry_of(value: Any) -> bytes:
    """``retry_exceptions`` as it travels: nothing, ``*``, or the pickled classes."""
    if value is None or value is False:
        return b""
    if value is True:
        return b"*"
    expected = "the option retry_exceptions must be True, False or a list of exception classes"
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{expected}, not {value!r}")
    if not all(isinstance(e, type) and issubclass(e, BaseException) for e in value):
        raise ValueError(f"{expected}, not {value!r}")
    return codec.pack(tuple(value), "the option retry_exceptions").as_bytes()[1:] if value else b""


def returns_of(value: Any) -> int:
    """``num_returns`` as it travels."""
    if value == "streaming" and isinstance(value, str):
        return m.STREAMING
    if value == "dynamic" and isinstance(value, str):
        return m.DYNAMIC
    if isinstance(value, str):
        raise ValueError(f"the option num_returns must be a whole number, 'dynamic' or 'streaming', not {value!r}")
    found: int = _number("num_returns", value, whole=True)
    return found


def window_of(value: Any) -> int:
    """``_generator_backpressure_num_objects`` as it travels."""
    if value is None or value == -1:
        return 0
    found: int = _number("_generator_backpressure_num_objects", value, whole=True, least=1)
    return found


def _custom(value: Any) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise TypeError(f"the option resources must be a dict of name to number, not {value!r}")
    for key, amount in value.items():
        if key in ("CPU", "GPU", "memory"):
            option = {"CPU": "num_cpus", "GPU": "num_gpus"}.get(key, key)
            raise ValueError(f"the option resources must not contain {key}: use {option}")
        _amount(f"resources[{key!r}]", amount)
    return tuple(sorted(value.items()))


class TaskOptions(_Options, frozen=True):
    num_returns: int | None = None
    """None: 1, or STREAMING for a generator function."""
    max_retries: int = 3
    retry: bytes = b""
    max_calls: int | None = None
    window: int = 0

    def _own(self) -> tuple[str, ...]:
        return "num_returns", "max_retries", "retry_exceptions", "max_calls", "_generator_backpressure_num_objects"

    def _field(self, key: str) -> str:
        return {"retry_exceptions": "retry", "_generator_backpressure_num_objects": "window"}.get(key, key)

    def _check(self, key: str, value: Any) -> Any:
        if key == "num_returns":
            return None if value is None else returns_of(value)
        if key == "retry_exceptions":
            return retry_of(value)
        if key == "_generator_backpressure_num_objects":
            return window_of(value)
        if key == "max_calls":
            return None if value is None else _number(key, value, whole=True)
        return 3 if value is None else _number(key, value, whole=True, least=-1)

    def changed(self: _O, options: dict[str, Any]) -> _O:
        if options.get("object_store_memory") is not None:
            raise ValueError("the option object_store_memory is not for tasks: their results take what they need")
        return super().changed(options)

    def calls(self) -> int:
        """After how many calls its worker ends. One that asks for GPUs must not keep their memory for the next."""
        return self.max_calls if self.max_calls is not None else 1 if self.num_gpus else 0

    def omp_threads(self) -> int:
        """What OMP_NUM_THREADS is set to in the worker, as Ray does: the whole CPUs asked for, at least one."""
        return max(1, int(self.num_cpus or 1))


class ActorOptions(_Options, frozen=True):
    namespace: str | None = None
    lifetime: str | None = None
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int | None = None
    max_pending_calls: int = -1
    concurrency_groups: tuple[tuple[str, int], ...] = ()
    get_if_exists: bool = False
    window: int = 0
    allow_out_of_order_execution: bool | None = None

    def _own(self) -> tuple[str, ...]:
        return (
            "namespace",
            "lifetime",
            "max_restarts",
            "max_task_retries",
            "max_concurrency",
            "max_pending_calls",
            "concurrency_groups",
            "get_if_exists",
            "allow_out_of_order_execution",
            "_actor_generator_backpressure_num_objects",
        )

    def _field(self, key: str) -> str:
        return {"_actor_generator_backpressure_num_objects": "window"}.get(key, key)

    def _check(self, key: str, value: Any) -> Any:
        if key in ("max_restarts", "max_task_retries"):
            return 0 if value is None else _number(key, value, whole=True, least=-1)
        if key == "max_concurrency":
            return None if value is None else _number(key, value, whole=True, least=1)
        if key == "max_pending_calls":
            if value in (None, 0):
                raise ValueError("the option max_pending_calls must be -1 (no limit) or at least 1")
            return _number(key, value, whole=True, least=-1)
        if key == "concurrency_groups":
            return _groups(value)
        if key == "_actor_generator_backpressure_num_objects":
            return window_of(value)
        if key in ("get_if_exists", "allow_out_of_order_execution"):
            if not isinstance(value, bool) and (value is not None or key == "get_if_exists"):
                raise TypeError(f"the option {key} must be True or False, not {value!r}")
            return value
        if key == "lifetime" and value not in (None, "detached", "non_detached"):
            raise ValueError(f"the option lifetime must be 'detached', 'non_detached' or None, not {value!r}")
        return _text(key, value)

    def resources(self) -> dict[str, int]:
        """What it occupies while it lives: no CPU unless asked for."""
        return self._resources(self.num_cpus or 0)

    def placement(self) -> dict[str, int]:
        """What must be free to start it: one CPU if nothing was said."""
        if self.num_cpus is None and not self.num_gpus and not self.custom and not self.memory:
            return self._resources(1)
        return self.resources()


def _groups(value: Any) -> tuple[tuple[str, int], ...]:
    if value is None:
        return ()
    if isinstance(value, list):  # Ray takes both forms
        value = {entry["name"]: entry["max_concurrency"] for entry in value}
    if not isinstance(value, dict) or not all(isinstance(name, str) and name for name in value):
        raise TypeError(f"the option concurrency_groups must be a dict of name to number, not {value!r}")
    return tuple(
        (name, _number(f"concurrency_groups[{name!r}]", limit, whole=True, least=1)) for name, limit in value.items()
    )
