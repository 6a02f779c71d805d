"""Compares the public API of Ray Core with what `import ray` gives under noded, name by name.

    python scripts/ray_api.py dump    in an environment with Ray: writes tests/data/ray-<version>-api.json
    python scripts/ray_api.py page    in noded's: writes docs/ray-api.md; --check only compares it

The dump holds facts only: names, kinds, parameters, simple defaults, base classes. What differs or is missing
needs a reason in `ray_api_reasons.py`; without one `page` fails, and so does the test that runs it. Here: walking
through modules, and the command line; comparing and writing is in `ray_api_page.py`.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import inspect
import json
import pkgutil
import sys
import typing
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
PAGE = ROOT / "docs" / "ray-api.md"

CORE = """
    ray ray.actor ray.remote_function ray.runtime_context ray.runtime_env ray.types ray.exceptions ray.cluster_utils
    ray.job_submission ray.job_config ray.client_builder ray.cross_language ray.util
    ray.util.accelerators ray.util.actor_pool ray.util.check_serialize ray.util.debug ray.util.helpers
    ray.util.joblib ray.util.metrics ray.util.multiprocessing ray.util.placement_group ray.util.queue
    ray.util.scheduling_strategies ray.util.serialization ray.util.state ray.util.state.common
    ray.util.state.exception ray.util.annotations ray.experimental ray.experimental.queue
    ray.experimental.tqdm_ray ray.experimental.internal_kv ray.experimental.dynamic_resources
""".split()
PLAIN = (type(None), bool, int, float, str)
Api = dict[str, Any]


# ---------------------------------------------------------------- walking


def walk(names: Iterable[str]) -> dict[str, Api]:
    """The public names of each module that can be imported."""
    found: dict[str, Api] = {}
    for name in names:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        found[name] = {public: describe(value) for public, value in sorted(public_names(name, module))}
    return found


def public_names(name: str, module: ModuleType) -> Iterator[tuple[str, Any]]:
    listed = getattr(module, "__all__", None)
    for public in sorted(set(listed)) if listed else sorted(vars(module)):
        if public.startswith("_") and public != "__version__":
            continue
        try:
            value = getattr(module, public)
        except AttributeError:  # Ray lists a few names that it does not have
            continue
        except (ImportError, RuntimeError):  # a library of its own: not installed, or no more
            value = module
        # Where there is no list, what a module defines itself is its own; the rest it has imported.
        if listed or (getattr(value, "__module__", None) == name and not isinstance(value, typing.TypeVar)):
            yield public, value


def describe(value: Any) -> Api:
    if isinstance(value, ModuleType):
        return {"kind": "module"}
    if inspect.isclass(value):
        described = {"kind": "class", "params": parameters(value), "members": members(value)}
        return described | {"bases": bases(value)} if issubclass(value, BaseException) else described
    if callable(value):
        return {"kind": "function", "params": parameters(value)}
    return {"kind": "value", "value": value} if isinstance(value, PLAIN) else {"kind": "value"}


def parameters(function: Any) -> list[list[Any]] | None:
    """[name, kind, default] each; None where Python cannot tell, as for code in C."""
    if inspect.isclass(function) and issubclass(function, enum.Enum):
        return None
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    return [[p.name, p.kind.name, default(p)] for p in signature.parameters.values() if p.name not in ("self", "cls")]


def default(parameter: inspect.Parameter) -> str:
    """As text: empty without one, "…" for one that is no plain value."""
    value = parameter.default
    if value is parameter.empty:
        return ""
    return repr(value) if isinstance(value, PLAIN) or value in ([], {}, ()) else "…"


def members(cls: type) -> Api:
    """Public attributes that the class or a base of its library defines."""
    found: Api = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] not in ("ray", "noded"):
            continue
        for name, value in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            is_method = inspect.isroutine(value) or callable(value)
            found[name] = {"kind": "method", "params": parameters(value)} if is_method else {"kind": "attribute"}
    return dict(sorted(found.items()))


def bases(cls: type) -> list[str]:
    """The exceptions it can be caught as."""
    ignored = ("object", "BaseException", "Exception", cls.__name__)
    return sorted(base.__name__ for base in cls.__mro__ if base.__name__ not in ignored)


# ---------------------------------------------------------------- Ray's side


def dump() -> None:
    """Only facts, and each name on a line of its own."""
    import ray
    import ray.util
    from ray._common import ray_option_utils as options

    warnings.simplefilter("ignore")
    below = [
        *(f"ray.{found.name}" for found in pkgutil.iter_modules(ray.__path__)),
        *(f"ray.util.{found.name}" for found in pkgutil.iter_modules(ray.util.__path__)),
    ]
    lines = [f'{{"version": "{ray.__version__}",']
    lines.append(
        f'"other_modules": {json.dumps(sorted(n for n in below if n not in CORE and "._" not in n and "-" not in n))},'
    )
    for kind, table in (("task_options", options.task_options), ("actor_options", options.actor_options)):
        defaults = {name: repr(option.default_value) for name, option in sorted(table.items())}
        lines.append(f'"{kind}": {json.dumps(defaults)},')
    lines.append('"modules": {')
    for module, names in walk(CORE).items():
        lines.append(f'"{module}": {{')
        lines += [f'"{name}": {json.dumps(what, sort_keys=True)},' for name, what in names.items()]
        lines[-1] = lines[-1].removesuffix(",")
        lines.append("},")
    lines[-1] = "}"
    path = DATA / f"ray-{ray.__version__}-api.json"
    path.write_text("\n".join([*lines, "}}"]) + "\n")
    json.loads(path.read_text())
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["dump", "page"])
    parser.add_argument("--check", action="store_true", help="fail when the page is not up to date; write nothing")
    given = parser.parse_args()
    if given.what == "dump":
        return dump()
    from ray_api_page import page

    latest = max(DATA.glob("ray-*-api.json"))
    text, unexplained = page(json.loads(latest.read_text()))
    wrong = list(unexplained)
    if not given.check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        wrong.append(f"{PAGE.relative_to(ROOT)} is not what the code says: run python scripts/ray_api.py page")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
