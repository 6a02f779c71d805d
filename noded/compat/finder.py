"""Which module of ours `import ray.<name>` gives, and the import hook that gives it.

Each name leads to one module object, whatever it is imported as, so that classes are the same and pickle by
names that exist everywhere. A name that is not in the table is a ModuleNotFoundError that says why. The classes
do without the bases in importlib.abc, whose import takes longer than all the rest.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from noded.client.api import job_env
from noded.compat import environment
from noded.compat.absent import ABSENT, why_absent

OURS = "noded.compat.ray"

MODULES = {
    "ray": OURS,
    **{
        f"ray.{name}": f"{OURS}.{name}"
        for name in (
            "_raylet",
            "actor",
            "client_builder",
            "cross_language",
            "exceptions",
            "job_config",
            "remote_function",
            "runtime_context",
            "types",
            "util",
        )
    },
    "ray.cloudpickle": "cloudpickle",
    "ray.cloudpickle.cloudpickle": "cloudpickle.cloudpickle",
    "ray.cluster_utils": "noded.cluster_utils",
    "ray.runtime_env": "noded.runtime_env",
    **{
        f"ray.util.{name}": f"noded.util.{name}"
        for name in (
            "accelerators",
            "actor_pool",
            "annotations",
            "check_serialize",
            "debug",
            "helpers",
            "joblib",
            "metrics",
            "multiprocessing",
            "placement_group",
            "queue",
            "scheduling_strategies",
            "serialization",
            "state",
            "state.common",
            "state.exception",
        )
    },
}


class RayFinder:
    """Answers for `ray` and everything below it, first of all finders, whether Ray is installed or not."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith(OURS) and fullname.removeprefix("noded.compat.") in ABSENT:
            fullname = fullname.removeprefix("noded.compat.")  # how Python looks for tune in `from ray import tune`
        if fullname != "ray" and not fullname.startswith("ray."):
            return None
        home = MODULES.get(fullname)
        if home is not None:
            return ModuleSpec(fullname, _Alias(home), is_package=True)  # type: ignore[arg-type]
        if _is_only_a_question():
            return None
        raise ModuleNotFoundError(why_absent(fullname), name=fullname)


class _Alias:
    """Puts the module that is meant in the place of the one that is being imported."""

    def __init__(self, home: str):
        self._home = home

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self._home)


def _is_only_a_question() -> bool:
    """Whether importlib.util.find_spec asks: for a module that is not there it must answer None."""
    util = sys.modules.get("importlib.util")
    asking = sys._getframe(2).f_back  # find_spec above us, then the import machinery, then who wants to know
    return util is not None and asking is not None and asking.f_code is util.find_spec.__code__


def child(parent: str, name: str) -> Any:
    """What `__getattr__` of the module `parent` gives: a module below it that was not imported yet."""
    fullname = f"{parent}.{name}"
    if fullname in MODULES:
        return importlib.import_module(fullname)
    raise AttributeError(why_absent(fullname))


def keep_functions(parent: str, ours: ModuleType, names: dict[str, Any]) -> None:
    """For the modules below `parent` that share their name with a function in it, as `ray.util.placement_group`
    does: imported later, the module would take the function's place in `names`.
    """
    for fullname, home in MODULES.items():
        above, _, name = fullname.rpartition(".")
        if above == parent and name in ours.__all__ and home.startswith(ours.__name__):
            sys.modules[fullname] = importlib.import_module(home)
            names[name] = getattr(ours, name)


def install(ray: ModuleType) -> None:
    """From now on, in this process and what it starts, `import ray` means this module."""
    found = sys.modules.get("ray")
    file = getattr(found, "__file__", None) or ""
    if found is not None and os.path.join("", "noded", "compat", "") not in file:
        raise ImportError(
            f"Ray itself ({file or found}) is imported in this process already: import noded.compat.ray before "
            "everything that imports ray, or use noded run --as-ray"
        )
    if not any(isinstance(finder, RayFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, RayFinder())
    sys.modules["ray"] = ray
    if environment.PATH not in sys.path:
        sys.path.insert(min(1, len(sys.path)), environment.PATH)  # behind the script's own directory
    os.environ["PYTHONPATH"] = job_env["PYTHONPATH"] = environment.with_ray(os.environ)
