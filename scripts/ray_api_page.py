"""The second half of `ray_api.py`: compares its dump of Ray with noded, and writes docs/ray-api.md."""

from __future__ import annotations

import builtins
import contextlib
import fnmatch
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import ray_api_reasons as reasons
from ray_api import ROOT, Api, describe, parameters

# ---------------------------------------------------------------- comparing


@dataclass
class Verdict:
    """On one name of a module."""

    name: str
    state: str  # there, differs, missing
    remarks: list[str] = field(default_factory=list)
    alias: str = ""  # what noded calls it, where that is another name


class Comparison:
    """Collects verdicts, and what nobody has given a reason for."""

    def __init__(self) -> None:
        self.unexplained: list[str] = []
        self.used: set[str] = set()

    def module(self, name: str, theirs: Api) -> list[Verdict]:
        try:
            ours = importlib.import_module(name)
        except ImportError:
            return [Verdict(public, "missing", [reason(name) or self.why_missing(name)]) for public in theirs]
        return [self.name(f"{name}.{public}", ours, public, what) for public, what in theirs.items()]

    def name(self, full: str, module: ModuleType, public: str, theirs: Api) -> Verdict:
        try:
            value = getattr(module, public)
        except (AttributeError, ImportError):
            return Verdict(public, "missing", [self.why_missing(full)])
        remarks = list(self.differences(full, theirs, describe(value), value))
        said = self.first(reasons.DIFFERS, full)
        remarks += [said] if said else []
        own = getattr(value, "__name__", public)
        alias = f"{value.__module__}.{own}" if inspect.isclass(value) and own != public else ""
        return Verdict(public, "differs" if remarks else "there", remarks, alias)

    def differences(self, full: str, theirs: Api, ours: Api, value: Any) -> Iterator[str]:
        if theirs["kind"] != ours["kind"]:
            yield f"a {ours['kind']}, in Ray a {theirs['kind']}"
            return
        yield from self.parameters(full, theirs.get("params"), ours.get("params"))
        if missing := [base for base in theirs.get("bases", ()) if base not in _caught_as(value)]:
            yield f"not a {', '.join(missing)}"
        absent = []
        for member, what in theirs.get("members", {}).items():
            if self.first(reasons.NOT_COMPARED, f"{full}.{member}"):
                continue
            if not hasattr(value, member):
                absent.append((self.why_missing(f"{full}.{member}"), member))
            elif what["kind"] == "method":
                of_ours = parameters(getattr(value, member))
                for remark in self.parameters(f"{full}.{member}", what["params"], of_ours):
                    yield f"`{member}`: {remark}"
        for why in sorted({why for why, _ in absent}):
            yield f"no {', '.join(f'`{member}`' for w, member in absent if w == why)}: {why}"

    def parameters(self, full: str, theirs: Any, ours: Any) -> Iterator[str]:
        if theirs is None or ours is None or self.first(reasons.NOT_COMPARED, full + "()"):
            return
        any_name = any(kind == "VAR_KEYWORD" for _, kind, _ in ours)
        any_number = any(kind == "VAR_POSITIONAL" for _, kind, _ in ours)
        known = {name: (kind, default) for name, kind, default in ours}
        order = [name for name, kind, _ in ours if kind.startswith("POSITIONAL")]
        for at, (name, kind, default) in enumerate(theirs):
            if name.startswith("_") or kind.startswith("VAR"):
                continue
            if name not in known:
                by_place = kind == "POSITIONAL_OR_KEYWORD" and not default and (any_number or at < len(order))
                if not by_place and not any_name:
                    yield f"no parameter `{name}`: {self.why_missing(f'{full}({name})')}"
                continue
            if kind == "POSITIONAL_OR_KEYWORD" and known[name][0] == "KEYWORD_ONLY":
                yield f"`{name}` by name only"
            if default != known[name][1] and "…" not in (default, known[name][1]):
                yield f"`{name}` is {known[name][1] or 'required'} by default, in Ray {default or 'required'}"

    def why_missing(self, full: str) -> str:
        why = self.first(reasons.MISSING, full)
        if not why:
            self.unexplained.append(full)
        return why

    def first(self, patterns: dict[str, str], full: str) -> str:
        for pattern, said in patterns.items():
            if fnmatch.fnmatchcase(full, pattern):
                self.used.add(pattern)
                return said
        return ""


def reason(module: str) -> str:
    """Why a module is not there, from noded itself, which says the same to a program that imports it."""
    from noded.compat.absent import reason

    return reason(module)


def _caught_as(cls: type) -> set[str]:
    """The names, in Ray, of what an exception class derives from."""
    errors = vars(importlib.import_module("ray.exceptions"))
    return {name for name, value in {**vars(builtins), **errors}.items() if value in cls.__mro__}


# ---------------------------------------------------------------- the page

INTRO = """# Ray's API and noded's

Written by `scripts/ray_api.py`, which compares the public names and signatures of Ray {version} with what `import ray`
gives [under noded](import-ray.md); a test fails when this page is not what it writes. All names are those of `noded`
too, but what is marked °: that is there for programs written for Ray, under `import ray` only. A class that noded
calls otherwise has noded's name behind it.
"""


def page(api: Api) -> tuple[str, list[str]]:
    """The text, and what in it has no reason."""
    importlib.import_module("noded.compat.ray")
    comparison = Comparison()
    parts = [INTRO.format(version=api["version"])]
    verdicts = {module: comparison.module(module, names) for module, names in api["modules"].items()}
    parts.append(summary(verdicts))
    for module, found in verdicts.items():
        if any(verdict.state != "missing" for verdict in found):
            parts.append(section(module, found))
    parts.append(options(api, comparison))
    parts.append(absent_modules(api, verdicts, comparison))
    parts += ["## Not compared", "", "| | why |", "|---|---|"]
    parts += [f"| `{pattern}` | {why} |" for pattern, why in reasons.NOT_COMPARED.items()]
    parts += improvements()
    patterns = {*reasons.MISSING, *reasons.DIFFERS, *reasons.NOT_COMPARED}
    stale = [f"{pattern}: a reason for nothing, take it out" for pattern in sorted(patterns - comparison.used)]
    return "\n".join(parts) + "\n", [f"{name}: no reason given" for name in comparison.unexplained] + stale


def improvements() -> list[str]:
    """What cases of the suite that runs on both, tests/compat, assert of noded only."""
    sources = [path.read_text() for path in sorted((ROOT / "tests" / "compat").glob("test_*.py"))]
    marks = [mark for source in sources for mark in re.findall(r"@pytest\.mark\.improves\(\s*\"([^\"]+)\"", source)]
    return ["", "## Better than in Ray, as tests say", "", *(f"- {text}" for text in dict.fromkeys(marks))]


def summary(verdicts: dict[str, list[Verdict]]) -> str:
    lines = ["| module | names in Ray | there | differ | missing |", "|---|--:|--:|--:|--:|"]
    total = [0, 0, 0, 0]
    for module, found in verdicts.items():
        counts = [len(found), *(sum(v.state == state for v in found) for state in ("there", "differs", "missing"))]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(f"| `{module}` | {' | '.join(map(str, counts))} |")
    return "\n".join([*lines, f"| all | {' | '.join(map(str, total))} |", ""])


def section(module: str, found: list[Verdict]) -> str:
    lines = [f"## {module}", ""]
    there = [f"`{v.name}`{mark(module, v)}" for v in found if v.state == "there"]
    if there:
        lines += [f"There: {', '.join(there)}.", ""]
    for state, title in (("differs", "differs"), ("missing", "missing")):
        rows = [v for v in found if v.state == state]
        if rows:
            lines += [f"| {title} | |", "|---|---|"]
            lines += [f"| `{v.name}`{mark(module, v)} | {'; '.join(v.remarks)} |" for v in rows]
            lines.append("")
    return "\n".join(lines)


def mark(module: str, verdict: Verdict) -> str:
    if verdict.state == "missing":
        return ""
    if verdict.alias:
        return f" (`{verdict.alias}`)"
    with contextlib.suppress(ImportError):
        if hasattr(importlib.import_module("noded" + module.removeprefix("ray")), verdict.name):
            return ""
    return "" if hasattr(importlib.import_module("noded"), verdict.name) else "°"


SAMPLES: dict[str, Any] = {
    "accelerator_type": "T4",
    "concurrency_groups": {"io": 2},
    "get_if_exists": True,
    "label_selector": {"zone": "a"},
    "fallback_strategy": [{"label_selector": {"zone": "b"}}],
    "lifetime": "detached",
    "name": "a name",
    "namespace": "a namespace",
    "object_store_memory": 1 << 20,
    "placement_group": "default",
    "resources": {"disk": 1},
    "retry_exceptions": True,
    "runtime_env": {"env_vars": {"A": "1"}},
    "scheduling_strategy": "SPREAD",
    "allow_out_of_order_execution": True,
    "enable_tensor_transport": False,
    "enable_task_events": False,
    "placement_group_capture_child_tasks": True,
}
"""A value for each option that does not take the number 1."""


def options(api: Api, comparison: Comparison) -> str:
    """What `.options()` and `remote()` take: found out by trying."""
    import noded

    lines = ["## Options of tasks and actors", ""]
    for article, kind, target in (("a", "task", lambda: None), ("an", "actor", type("Actor", (), {}))):
        there, rows = [], []
        for name in api[f"{kind}_options"]:
            if name.startswith("_"):
                continue
            full = f"options.{kind}.{name}"
            try:
                noded.remote(**{name: SAMPLES.get(name, 1)})(target)
            except (NotImplementedError, ValueError):
                rows.append(f"| `{name}` | missing: {comparison.why_missing(full)} |")
                continue
            said = comparison.first(reasons.DIFFERS, full)
            (rows if said else there).append(f"| `{name}` | {said} |" if said else f"`{name}`")
        lines += [f"Of {article} {kind} there: {', '.join(there)}.", ""]
        if rows:
            lines += [f"| of {article} {kind} | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def absent_modules(api: Api, verdicts: dict[str, list[Verdict]], comparison: Comparison) -> str:
    from noded.compat.finder import MODULES

    nothing = [name for name, found in verdicts.items() if all(v.state == "missing" for v in found)]
    lines = ["## Modules that are not there", "", "| module | why |", "|---|---|"]
    for name in sorted([*nothing, *(name for name in api["other_modules"] if name not in MODULES)]):
        lines.append(f"| `{name}` | {reason(name) or comparison.why_missing(name)} |")
    return "\n".join([*lines, ""])
