"""The import table of docs/architecture.md: who may import whom. Any other edge fails.

It reads the source and counts every import, also those inside functions and under TYPE_CHECKING; modules
named only in strings (as the template names the worker) are not imports. A new module needs a row.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LEAVES = {
    "exceptions",
    "error_parts",
    "ids",
    "resources",
    "config",
    "lifecycle",
    "telemetry",
    "version",
    "logs",
    "metrics",
    "stack_dump",
    "stack_text",
}
CLIENT_LEAVES = {"exceptions", "ids", "resources", "config", "metrics.page", "shm", "telemetry", "wire"}

# unit (a package or a module directly in noded/) -> what of noded it may import, besides itself.
# "spawner.protocol" means that module alone. "" is `noded` itself, the public API.
ALLOWED: dict[str, set[str]] = {
    "": {"client", "exceptions", "version"},
    "__main__": {"cli"},
    "cli": {
        "config",
        "foreground",
        "exceptions",
        "wire",
        "spawner.protocol",
        "version",
        "compat.environment",
        "head.storage",
        "stack_dump",
        "startup",
        "history",
        "policy.query",
        "policy.state_records",
        "logs",
    },
    "history": {"node", "policy", "telemetry"},
    # The daemon: what it is made of, what happens to it, who builds it, and who runs it.
    "parts": {"node", "head", "http", "node_metrics", "packages", "view", "shm"} | LEAVES,
    "announce": {"parts", "node", "service"} | LEAVES,
    "ancestry": {"parts"},
    "departures": {"parts", "node", "wire"} | LEAVES,
    "entrance": {"parts", "node", "shm", "wire"} | LEAVES,
    "figures": {"parts", "node", "head"} | LEAVES,
    "housekeeping": {"parts", "membership", "head", "service", "startup"} | LEAVES,
    "membership": {"parts", "node", "head", "policy", "startup", "wire"} | LEAVES,
    "questions": {"parts", "node", "policy", "wire"},
    "takeover": {"parts", "node", "startup", "wire"},
    "wiring": {
        "parts",
        "departures",
        "entrance",
        "figures",
        "membership",
        "questions",
        "node",
        "head",
        "http",
        "packages",
        "view",
        "startup",
        "policy",
        "wire",
    }
    | LEAVES,
    "daemon": {
        "parts",
        "announce",
        "ancestry",
        "entrance",
        "housekeeping",
        "membership",
        "takeover",
        "wiring",
        "node",
        "head",
        "service",
        "startup",
        "wire",
    }
    | LEAVES,
    "foreground": {"config", "daemon", "lifecycle", "logs", "service", "startup"},
    "startup": {"config", "node", "head", "shm", "wire"},
    "view": {"node", "node_metrics", "head", "wire"} | LEAVES,
    "node_metrics": {"node", "head", "wire", "policy"} | LEAVES,
    "packages": {"node"} | LEAVES,
    "service": {"config"},
    # leaves
    "error_parts": set(),
    "metrics": set(),
    "exceptions": {"error_parts"},
    "ids": set(),
    "resources": set(),
    "lifecycle": set(),
    "stack_dump": {"stack_threads"},
    "stack_text": set(),
    "stack_threads": set(),
    "telemetry": {"ids"},
    "logs": set(),
    "version": set(),
    "config": {"exceptions"},
    # below the processes
    "shm": {"exceptions", "ids"},
    "wire": {"exceptions", "ids", "resources"},
    "policy": {"exceptions", "ids", "resources"},
    "runtime_env": {"exceptions"},
    # one per process role
    "spawner": set(),
    "template": {"spawner"},
    "node": {
        "exceptions",
        "ids",
        "resources",
        "config",
        "lifecycle",
        "logs",
        "metrics",
        "stack_dump",
        "stack_text",
        "telemetry",
        "shm",
        "wire",
        "policy",
        "runtime_env",
        "spawner.protocol",
        "version",
    },
    "head": {"exceptions", "metrics.family", "ids", "resources", "config", "lifecycle", "version", "wire", "policy"},
    "http": {"config", "metrics.family", "lifecycle", "exceptions"},
    # It ends the spawner of its private node.
    "client": {"runtime_env", "policy.labels", "policy.deaths", "policy.reasons", "spawner.protocol", "version"}
    | CLIENT_LEAVES,
    "worker": {"client", "runtime_env", "logs.marks", "stack_dump", "stack_text"} | CLIENT_LEAVES,
    # public helpers
    "util": {"client", "exceptions", "policy.query", "policy.state_records", "logs.query"},
    "cluster_utils": {"client", "config", "policy.labels", "wire"},
    "compat": {"", "client", "exceptions", "util"},
}

# What is not ours -> the only part of noded that may import it.
ONLY_IN: dict[str, str] = {
    "aiohttp": "noded.http",
    "redis": "noded.head.storage.redis_link",
    "click": "noded.cli",
    "rich": "noded.cli",
    "prometheus_client": "noded.http.metrics",
    "psutil": "noded.node.machine_figures",
    "pynvml": "noded.node.gpu_probe",  # NVML may hang: only a process of its own may load it
}

# Decisions take time, randomness and state as arguments: that is what makes them testable.
NOT_IN_POLICY = {
    "asyncio",
    "logging",
    "os",
    "selectors",
    "select",
    "socket",
    "subprocess",
    "threading",
    "time",
}

# `import noded` must stay quick, and must not bring an event loop into the user's process.
NOT_BY_IMPORT = ("aiohttp", "uvloop", "asyncio", "click", "rich", "numpy")


@dataclass(frozen=True)
class Import:
    importer: str  # dotted name of the module
    target: str  # dotted name of what it imports
    where: str  # file:line

    def __str__(self) -> str:
        return f"{self.where}: {self.importer} imports {self.target}"


def modules(root: Path) -> dict[str, Path]:
    found = {}
    for path in sorted((root / "noded").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> Iterator[Import]:
    known = modules(root)
    for importer, path in known.items():
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                targets = list(_from_targets(node, package, known))
            else:
                continue
            where = f"{path.relative_to(root)}:{node.lineno}"
            for target in targets:
                # The spawner runs as a script, with its own directory on sys.path.
                sibling = f"{package}.{target}"
                local = package == "noded.spawner" and sibling in known
                yield Import(importer, sibling if local else target, where)


def _from_targets(node: ast.ImportFrom, package: str, known: dict[str, Path]) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
    for alias in node.names:
        # `from noded import wire` names a module; `from noded.wire import Frame` something in one.
        name = f"{base}.{alias.name}"
        yield name if name in known else base


def unit_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def is_within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


def wrong_edges(root: Path) -> list[str]:
    wrong = []
    for edge in imports(root):
        if not is_within(edge.target, "noded"):
            continue
        unit = unit_of(edge.importer)
        if unit not in ALLOWED:
            wrong.append(f"{edge.where}: {edge.importer} has no row in the table")
        elif unit_of(edge.target) != unit and not any(
            is_within(edge.target, f"noded.{allowed}") if allowed else edge.target == "noded"
            for allowed in ALLOWED[unit]
        ):
            wrong.append(str(edge))
    return wrong


def report(wrong: list[str]) -> str:
    return "\n".join(["imports that the architecture does not allow:", *wrong])


def test_modules_import_only_what_the_table_allows() -> None:
    wrong = wrong_edges(ROOT)
    assert not wrong, report(wrong)


def test_every_module_has_a_row() -> None:
    rowless = {module for module in modules(ROOT) if unit_of(module) not in ALLOWED}
    assert not rowless, f"add a row to the table for {sorted(rowless)}"


def test_heavy_libraries_stay_where_they_belong() -> None:
    wrong = [
        str(edge)
        for edge in imports(ROOT)
        for library, home in ONLY_IN.items()
        if is_within(edge.target, library) and not is_within(edge.importer, home)
    ]
    assert not wrong, report(wrong)


def test_spawner_needs_nothing_but_the_standard_library() -> None:
    wrong = [
        str(edge)
        for edge in imports(ROOT)
        if is_within(edge.importer, "noded.spawner")
        and not is_within(edge.target, "noded")
        and edge.target.split(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong, report(wrong)


def test_policy_has_no_clock_and_no_io() -> None:
    wrong = [
        str(edge)
        for edge in imports(ROOT)
        if is_within(edge.importer, "noded.policy") and edge.target.split(".")[0] in NOT_IN_POLICY
    ]
    assert not wrong, report(wrong)


def test_import_noded_is_light() -> None:
    code = f"import sys, noded; noded.init; print([m for m in {NOT_BY_IMPORT!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"`import noded` brings in {done.stdout.strip()}"


def test_the_check_itself(tmp_path: Path) -> None:
    sources = {
        "noded/__init__.py": "from noded.client import init",
        "noded/ids.py": "def late():\n    import noded.exceptions",
        "noded/exceptions.py": "",
        "noded/wire/frame.py": "from .. import ids\nfrom . import text\nfrom ..exceptions import X",
        "noded/wire/text.py": "",
        "noded/head/nodes.py": """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from noded.node import pool
            import noded
            import noded.wire.frame, json
        """,
        "noded/node/pool.py": "from noded.spawner import protocol, sweep\nfrom noded.ids import x",
        "noded/spawner/protocol.py": "import sweep",
        "noded/spawner/sweep.py": "import importlib\nimportlib.import_module('noded.head')",
        "noded/client/__init__.py": "init = 1",
        "noded/odd.py": "import noded.ids",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    assert sorted(wrong_edges(tmp_path)) == [
        "noded/head/nodes.py:4: noded.head.nodes imports noded.node.pool",
        "noded/head/nodes.py:5: noded.head.nodes imports noded",
        "noded/ids.py:2: noded.ids imports noded.exceptions",
        "noded/node/pool.py:1: noded.node.pool imports noded.spawner.sweep",
        "noded/odd.py:1: noded.odd has no row in the table",
    ]
