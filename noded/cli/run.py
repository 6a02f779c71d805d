"""`noded run`: a Python program as `python` would run it, with an environment in which noded can be imported.

The process becomes that Python, so arguments, exit status, signals and tracebacks are the program's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from noded.compat import environment


def run_program(arguments: Sequence[str], *, as_module: bool, as_ray: bool) -> NoReturn:
    env = dict(os.environ)
    env["PYTHONPATH"] = environment.with_noded(env)
    if as_ray:
        env["PYTHONPATH"] = environment.with_ray(env)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *(["-m"] if as_module else []), *arguments], env)
