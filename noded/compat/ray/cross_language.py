"""Ray's names for functions and actors in Java and C++. noded runs Python only, and says so when one is called."""

from __future__ import annotations

import enum
from typing import NoReturn


class Language(enum.Enum):
    PYTHON = 0
    JAVA = 1
    CPP = 2


def java_function(class_name: str, function_name: str) -> NoReturn:
    _refuse("Java", f"{class_name}.{function_name}")


def java_actor_class(class_name: str) -> NoReturn:
    _refuse("Java", class_name)


def cpp_function(function_name: str) -> NoReturn:
    _refuse("C++", function_name)


def _refuse(language: str, name: str) -> NoReturn:
    raise NotImplementedError(f"noded runs tasks and actors in Python only: {name} in {language} needs Ray itself")
