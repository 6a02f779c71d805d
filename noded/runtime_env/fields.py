"""The fields of a runtime environment: which there are, what they may hold, and how two environments become one.

Nothing here packs or uploads; paths are only looked at, so that a slip is told where it was made. Values that have
been resolved already (``pkg://`` URIs, a pickled setup hook) pass, because a task's environment is merged with the
resolved one of its parent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

PACKAGE_URI = re.compile(r"pkg://([0-9a-f]{32})\.zip")
PICKLED = "pickled"
"""The only key of a resolved setup hook that was a callable: its pickle in base64."""
DEFAULT_CONFIG: dict[str, Any] = {"setup_timeout_seconds": 600, "eager_install": True, "log_files": []}

_NOT_YET = {
    "pip": "installing packages",
    "uv": "installing packages",
    "conda": "conda environments",
    "container": "containers",
    "image_uri": "containers",
    "py_executable": "another interpreter",
    "java_jars": "Java",
    "nsight": "profilers",
    "_nsight": "profilers",
    "rocprof_sys": "profilers",
    "_rocprof_sys": "profilers",
}
_REMOTE = ("http", "https", "s3", "gs", "azure", "abfss", "gcs", "local")
_ARCHIVES = {"working_dir": (".zip",), "py_modules": (".zip", ".whl", ".py")}


def validate(env: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is given in `env`, checked, as a new dict. Fields that are None or hold nothing are left out.

    Raises TypeError (ill-typed), ValueError (unknown field, no such path) or NotImplementedError; all name the field.
    """
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise TypeError(f"runtime_env must be a dict or a RuntimeEnv, not {_kind(env)}")
    checked = {key: check_field(key, value) for key, value in env.items()}
    return {key: value for key, value in checked.items() if value is not None and value != {} and value != []}


def check_field(key: str, value: Any) -> Any:
    """The value as it is kept; None when nothing is asked for."""
    if not isinstance(key, str):
        raise TypeError(f"the fields of runtime_env are strings, not {key!r}")
    check = _CHECKS.get(key)
    if check is not None:
        return None if value is None else check(value)
    if key not in _NOT_YET:
        raise ValueError(f"runtime_env has no field {key!r}{_hint(key)}")
    if value:
        raise NotImplementedError(
            f"runtime_env[{key!r}] is not supported by this version of noded yet ({_NOT_YET[key]}): prepare the "
            "environment that noded runs in, and give code with 'working_dir' or 'py_modules'"
        )
    return None


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """What a child gets: its own fields in place of its parent's, and the environment variables of both."""
    merged = {**parent, **child}
    variables = {**parent.get("env_vars", {}), **child.get("env_vars", {})}
    if variables:
        merged["env_vars"] = variables
    return merged


def check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of ``config``, with their defaults."""
    if not isinstance(config, Mapping):
        raise TypeError(f"runtime_env['config'] must be a dict or a RuntimeEnvConfig, not {_kind(config)}")
    for key in config:
        if key not in DEFAULT_CONFIG:
            raise ValueError(f"runtime_env['config'] has no setting {key!r}: known are {', '.join(DEFAULT_CONFIG)}")
    checked = {**DEFAULT_CONFIG, **{key: value for key, value in config.items() if value is not None}}
    seconds = checked["setup_timeout_seconds"]
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise TypeError(f"setup_timeout_seconds must be an int, not {_kind(seconds)}")
    if seconds <= 0 and seconds != -1:
        raise ValueError(f"setup_timeout_seconds must be more than zero, or -1 for no limit, not {seconds}")
    if not isinstance(checked["eager_install"], bool):
        raise TypeError(f"eager_install must be True or False, not {_kind(checked['eager_install'])}")
    checked["log_files"] = _strings("['config']['log_files']", checked["log_files"])
    return checked


def module_path(module: ModuleType) -> str:
    """The package's directory, or the file of a module that is one file."""
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    if len(places) > 1:
        raise ValueError(
            f"runtime_env['py_modules']: {module.__name__} is spread over {', '.join(places)}: name the directories"
        )
    if places[0] is None or (not places[0].endswith(".py") and not os.path.isdir(places[0])):
        raise ValueError(
            f"runtime_env['py_modules']: the module {module.__name__} has no source on disk: give the directory or "
            "archive that it comes from, or leave it out where workers have it anyway"
        )
    return str(places[0])


def _env_vars(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"runtime_env['env_vars'] must be a dict of strings, not {_kind(value)}")
    for name, text in value.items():
        if not isinstance(name, str):
            raise TypeError(f"runtime_env['env_vars']: the name {name!r} must be a string, not {_kind(name)}")
        if not isinstance(text, str):
            raise TypeError(f"runtime_env['env_vars']: the value of {name} must be a string, not {_kind(text)}")
        if not name or "=" in name or "\0" in name + text:
            raise ValueError(f"runtime_env['env_vars']: {name!r} cannot be set to {text!r} in any process")
        if name == "NODED_MARK":
            raise ValueError("runtime_env['env_vars']: noded finds a worker's processes by NODED_MARK: leave it out")
        try:
            (name + text).encode()
        except UnicodeEncodeError:
            raise ValueError(f"runtime_env['env_vars']: {name!r} or its value is not Unicode text") from None
    return dict(value)


def _working_dir(value: Any) -> str | None:
    if not isinstance(value, str):
        raise TypeError(f"runtime_env['working_dir'] must be a string, not {_kind(value)}")
    if value:
        _check_source("working_dir", value)
    return value or None


def _py_modules(value: Any) -> list[str | ModuleType]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"runtime_env['py_modules'] must be a list of paths, URIs or modules, not {_kind(value)}")
    for each in value:
        if isinstance(each, ModuleType):
            module_path(each)
        elif isinstance(each, str):
            _check_source("py_modules", each)
        else:
            raise TypeError(f"runtime_env['py_modules'] holds {each!r}: give strings or modules")
    return list(value)


def _check_source(field: str, source: str) -> None:
    scheme, separator, rest = source.partition("://")
    if not separator:
        if not os.path.isdir(source):
            _check_archive(field, source)
    elif scheme == "file":
        _check_archive(field, rest)
    elif scheme in _REMOTE:
        raise NotImplementedError(
            f"runtime_env[{field!r}]: {source} cannot be fetched by this version of noded yet: download it, and give a "
            "local directory or archive"
        )
    elif PACKAGE_URI.fullmatch(source) is None:
        raise ValueError(f"runtime_env[{field!r}]: {source} is no URI that noded knows: give a path, or file://…")


def _check_archive(field: str, path: str) -> None:
    endings = _ARCHIVES[field]
    if not os.path.exists(path):
        raise ValueError(f"runtime_env[{field!r}]: there is no {path or repr(path)} (seen from {os.getcwd()})")
    if not os.path.isfile(path) or not path.endswith(endings):
        raise ValueError(f"runtime_env[{field!r}]: {path} must be a directory or a file {', '.join(endings)}")


def _setup_hook(value: Any) -> Any:
    if isinstance(value, str):
        if not all(part.isidentifier() for part in value.split(".")) or "." not in value:
            raise ValueError(f"runtime_env['worker_process_setup_hook'] must be 'module.function', not {value!r}")
        return value
    resolved = isinstance(value, Mapping) and list(value) == [PICKLED] and isinstance(value[PICKLED], str)
    if not callable(value) and not resolved:
        raise TypeError(
            f"runtime_env['worker_process_setup_hook'] must be a function or 'module.function', not {_kind(value)}"
        )
    return value


def _strings(where: str, value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"runtime_env{where} must be a list of strings, not {value!r}")
    return list(value)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def _hint(key: str) -> str:
    import difflib  # only for what is wrong already

    guess = difflib.get_close_matches(key, _CHECKS, n=1)
    return f"; did you mean {guess[0]!r}?" if guess else f": known are {', '.join(_CHECKS)}"


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "env_vars": _env_vars,
    "working_dir": _working_dir,
    "py_modules": _py_modules,
    "excludes": lambda value: _strings("['excludes']", value),
    "worker_process_setup_hook": _setup_hook,
    "config": check_config,
}
KNOWN = (*_CHECKS, *_NOT_YET)
