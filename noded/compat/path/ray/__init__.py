"""What `import ray` finds in a process that has inherited this directory: it becomes noded's `ray`."""

import sys

try:
    import noded.compat.ray  # noqa: F401, it takes this module's place in sys.modules
except ModuleNotFoundError as problem:
    if problem.name is None or problem.name.partition(".")[0] != "noded":
        raise
    raise ImportError(
        f"PYTHONPATH says that `import ray` means noded, but this Python ({sys.executable}) has no noded: install it "
        f"there, or run this program without {__file__.rpartition('/ray/')[0]} on PYTHONPATH"
    ) from None
