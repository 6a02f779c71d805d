"""The documentation is true: its programs run and print what it says, and what it names exists.

The Python blocks of a page are one program. A `print` at its top level says behind it what it prints.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from harness.cluster import REPOSITORY

from noded.cli.app import command
from noded.config import OPTIONS

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OF_WORKERS = re.compile(r"\(.* ?pid=\d+\) ")


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(page.read_text()) if kind == language]


def said(program: str) -> list[str]:
    """The comments behind the prints of the driver, in order."""
    lines = program.splitlines()
    found = []
    for node in _of_the_driver(ast.parse(program)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            line = lines[(node.end_lineno or 0) - 1][node.end_col_offset or 0 :]
            assert "  # " in line, f"say behind it what this prints: {lines[node.lineno - 1]}"
            found.append((node.lineno, line.partition("  # ")[2]))
    return [text for _, text in sorted(found)]


def _of_the_driver(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            yield child
            yield from _of_the_driver(child)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_programs_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    program = "\n".join(blocks(page, "python"))
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if not _OF_WORKERS.match(line)]
    assert printed == said(program)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in re.findall(r"`((?:noded|tests|docs|bench|scripts|systemd|examples)/[\w/.-]+)`", text):
        assert (REPOSITORY / path).exists(), f"{page.name} names {path}"
    for module in re.findall(r"`((?:node|head|wire|shm|client|worker|spawner|template|cli|config|http)/\w+\.py)", text):
        assert (REPOSITORY / "noded" / module).exists(), f"{page.name} names {module}"


def _flags(of: click.Command) -> Iterator[str]:
    """Of a command and all its subcommands."""
    for parameter in of.params:
        yield from parameter.opts
    if isinstance(of, click.Group):
        for each in of.commands.values():
            yield from _flags(each)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_settings_of_a_page_exist(page: Path) -> None:
    flags = {"--help", *_flags(command)}
    others = {
        "NODED_" + name
        for name in (
            "ADDRESS CHAOS_SEED CHAOS_STORAGE CONFIG DEDUP_LOGS GPUS_WITHOUT_ASKING HOME MARK "
            "RECORD_REF_CREATION_SITES REDIS_PASSWORD REDIS_SENTINEL_PASSWORD RUN_DIR TOKEN TOKEN_FILE"
        ).split()
    }
    for line in "\n".join(blocks(page, "sh")).splitlines():
        if line.startswith("noded "):
            unknown = set(re.findall(r" (--[a-z-]+)", line.partition("#")[0])) - flags
            assert not unknown, f"{line}: {unknown}"
    variables = set(re.findall(r"\bNODED_[A-Z_]+[A-Z]\b", page.read_text()))
    unknown = variables - {option.variable for option in OPTIONS} - others
    assert not unknown, f"{page.name} names {unknown}"
