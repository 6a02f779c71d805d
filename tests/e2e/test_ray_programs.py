"""Programs that were written for Ray, in tests/programs, run unmodified. They run on Ray, too: `python FILE` there.

Each says in its docstring what it prints.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.cluster import REPOSITORY, noded_command

pytestmark = pytest.mark.slow

PROGRAMS = sorted((REPOSITORY / "tests/programs").glob("*.py"))
THIRD_PARTY = sorted((REPOSITORY / "tests/programs/third_party").glob("*.py"))
PACKAGES = ["flwr>=1.20,<1.42", "scikit-learn>=1.5"]
_UNREACHABLE = re.compile(r"No matching distribution|Failed to establish|Name or service not known|ConnectionError")


def run(program: Path, command: list[str], directory: Path, timeout: float) -> None:
    done = subprocess.run(
        [*command, "run", "--as-ray", str(program)],
        cwd=directory,
        env={**os.environ, "FLWR_HOME": str(directory), "FLWR_TELEMETRY_ENABLED": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    story = f"it ended with {done.returncode} and printed\n{done.stdout}\nto stderr it wrote\n{done.stderr}"
    assert done.returncode == 0, story
    assert done.stdout == prints(program), story


def prints(program: Path) -> str:
    said = ast.get_docstring(ast.parse(program.read_text()))
    assert said is not None
    return said.partition("Prints:\n")[2] + "\n"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_program(program: Path, tmp_path: Path) -> None:
    run(program, noded_command(), tmp_path, 60)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """`noded` of an environment with this checkout, installed as users install it, and packages that use Ray."""
    directory = tmp_path_factory.mktemp("third-party")
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True, timeout=120)
    pip = [f"{directory}/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run([*pip, str(REPOSITORY), *PACKAGES], capture_output=True, text=True, timeout=500)
    if done.returncode and _UNREACHABLE.search(done.stderr):
        pytest.skip(f"no packages can be had here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    yield [f"{directory}/bin/noded"]
    shutil.rmtree(directory)  # it is big


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", THIRD_PARTY, ids=lambda path: path.stem)
def test_third_party(program: Path, installed: list[str], tmp_path: Path) -> None:
    run(program, installed, tmp_path, 90)
