"""`ray.util`: the names of `noded.util`, and the modules below it, as they are asked for."""

import noded.util as _util
from noded.compat import finder as _finder

__path__: list[str] = []  # `import ray.util.queue` wants to know that there is something below
__all__ = [*_util.__all__]

_finder.keep_functions("ray.util", _util, globals())


def __getattr__(name: str) -> object:
    return getattr(_util, name) if name in _util.__all__ else _finder.child("ray.util", name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
