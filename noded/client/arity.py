"""How many positional arguments a callable takes: a fast check, and Python's own error when it fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class Arity:
    """``bound``: the first parameter is the instance, which the caller does not give."""

    __slots__ = ("fewest", "most", "signature")

    def __init__(self, function: Callable[..., Any], *, bound: bool = False):
        self.signature: inspect.Signature | None
        try:
            self.signature = inspect.signature(function)
        except (TypeError, ValueError):  # some builtins have none
            self.signature = None
            self.fewest, self.most = 0, -1
            return
        parameters = list(self.signature.parameters.values())
        if bound and parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            parameters = parameters[1:]
            self.signature = self.signature.replace(parameters=parameters)
        self.fewest, self.most = 0, 0
        for p in parameters:
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                self.most += 1 if self.most >= 0 else 0
                self.fewest += p.default is p.empty
            elif p.kind is p.VAR_POSITIONAL:
                self.most = -1
            elif p.kind is p.KEYWORD_ONLY and p.default is p.empty:
                self.fewest = max(self.fewest, 1 << 30)  # always the slow check

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count = len(args)
        if kwargs or count < self.fewest or (count > self.most and self.most >= 0):
            if self.signature is not None:
                self.signature.bind(*args, **kwargs)

    def parameters(self) -> list[tuple[str, int, bool]] | None:
        """(name, kind, has a default) of each, as they travel."""
        if self.signature is None:
            return None
        return [(p.name, int(p.kind), p.default is not p.empty) for p in self.signature.parameters.values()]
