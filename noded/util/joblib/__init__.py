"""joblib on a cluster: after ``register_noded()``, ``joblib.parallel_config("noded")`` makes ``joblib.Parallel``, and
with it scikit-learn, run its calls as tasks. ``register_ray()`` does so under the name "ray".
"""

from __future__ import annotations

__all__ = ["register_noded", "register_ray"]


def register_noded() -> None:
    """Make the backend known to joblib as "noded". Raises ImportError when joblib is not installed."""
    _register("noded")


def register_ray() -> None:
    """The same backend under the name "ray", for programs that ask for it."""
    _register("ray")


def _register(name: str) -> None:
    try:
        from joblib.parallel import register_parallel_backend
    except ImportError as missing:
        raise ImportError(
            "noded's joblib backend needs joblib, which is not installed: pip install joblib"
        ) from missing

    from noded.util.joblib.backend import NodedBackend

    register_parallel_backend(name, NodedBackend)
