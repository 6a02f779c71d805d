"""Entry of the spawner process: `python -I -S .../spawner/__main__.py ARGS` or `python -m noded.spawner`.

Run as a script, `noded` is not importable, and importing it in the ordinary way would load the client
library into a process that should stay small. So an empty stand-in for the package `noded` is registered
that only knows its directory; the modules of the spawner then load below it. Everything else is in `core`;
options are in `options`.
"""

import os
import sys


def _stand_in_for_the_package() -> None:
    package = type(sys)("noded")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["noded"] = package


def main() -> int:
    if "noded" not in sys.modules:
        _stand_in_for_the_package()
    from noded.spawner.core import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    # Nothing in here needs the interpreter's shutdown, and skipping it makes a full stop a little faster.
    os._exit(main())
