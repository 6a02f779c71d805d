"""Why a name of Ray is not there, in words for the person whose program asked for it."""

from __future__ import annotations

LIBRARIES = {
    "air": "Ray AIR",
    "dag": "Ray's compiled graphs",
    "data": "Ray Data",
    "llm": "Ray LLM",
    "rllib": "RLlib",
    "serve": "Ray Serve",
    "train": "Ray Train",
    "tune": "Ray Tune",
    "workflow": "Ray Workflows",
}


def why_absent(fullname: str) -> str:
    """For a dotted name below `ray`."""
    part = fullname.split(".")[1]
    what = f"is part of {LIBRARIES[part]}, a library on top of Ray Core" if part in LIBRARIES else "is not there"
    return (
        f"{fullname} {what}: `import ray` means noded here, which has what docs/ray-api.md lists. A program that "
        "needs it needs Ray: run it without noded.compat.ray and without noded run --as-ray"
    )
