"""`RuntimeEnv` and `RuntimeEnvConfig`: dicts that check what is put into them, with Ray's names for looking inside."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

from noded.runtime_env.fields import DEFAULT_CONFIG, KNOWN, check_config, check_field, validate


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is made.

    ``setup_timeout_seconds``: an int over zero, or -1 for no limit. ``eager_install`` and ``log_files`` are taken for
    Ray's sake: nothing here takes long enough to be started early, or has a log of its own.
    """

    known_fields: ClassVar[frozenset[str]] = frozenset(DEFAULT_CONFIG)

    def __init__(
        self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: list[str] | None = None
    ) -> None:
        given = {"setup_timeout_seconds": setup_timeout_seconds, "eager_install": eager_install, "log_files": log_files}
        super().__init__(check_config(given))

    @classmethod
    def default_config(cls) -> RuntimeEnvConfig:
        return cls()

    @classmethod
    def parse_and_validate_runtime_env_config(cls, config: Mapping[str, Any]) -> RuntimeEnvConfig:
        return cls(**check_config(config))

    def to_dict(self) -> dict[str, Any]:
        return dict(self)


class RuntimeEnv(dict[str, Any]):
    """A checked runtime environment; wherever one is asked for, a plain dict with the same fields does as well.

    ``env_vars``: dict of strings; ``${NAME}`` in a value stands for what the worker has. ``working_dir``: a directory
    or .zip file, in which the worker starts. ``py_modules``: directories, .py, .whl or .zip files, or modules.
    ``excludes``: gitignore patterns of files to leave out. ``worker_process_setup_hook``: a function without
    arguments, or ``"module.function"``, run before the worker's first task. ``config``: a `RuntimeEnvConfig` or dict.
    Raises TypeError, ValueError or NotImplementedError, which name the field.
    """

    known_fields: ClassVar[frozenset[str]] = frozenset(KNOWN)

    def __init__(
        self,
        *,
        py_modules: list[str | ModuleType] | None = None,
        py_executable: str | None = None,
        working_dir: str | None = None,
        pip: list[str] | dict[str, Any] | str | None = None,
        conda: dict[str, Any] | str | None = None,
        container: dict[str, str] | None = None,
        env_vars: dict[str, str] | None = None,
        worker_process_setup_hook: Callable[[], object] | str | None = None,
        nsight: dict[str, str] | str | None = None,
        rocprof_sys: dict[str, Any] | str | None = None,
        config: Mapping[str, Any] | None = None,
        _validate: bool = True,
        image_uri: str | None = None,
        uv: list[str] | dict[str, Any] | str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {
            "py_modules": py_modules,
            "py_executable": py_executable,
            "working_dir": working_dir,
            "pip": pip,
            "conda": conda,
            "container": container,
            "env_vars": env_vars,
            "worker_process_setup_hook": worker_process_setup_hook,
            "nsight": nsight,
            "rocprof_sys": rocprof_sys,
            "config": config,
            "image_uri": image_uri,
            "uv": uv,
            **kwargs,
        }
        if _validate:
            given = validate(given)
            if "config" in given:
                given["config"] = RuntimeEnvConfig(**given["config"])
        super().__init__({key: value for key, value in given.items() if value is not None})

    def __setitem__(self, key: str, value: Any) -> None:
        checked = check_field(key, value)
        super().__setitem__(key, RuntimeEnvConfig(**checked) if key == "config" and checked else checked)

    def __reduce__(self) -> tuple[Any, ...]:
        # Unchecked: its paths may mean nothing where it is loaded.
        return _restore, (dict(self),)

    def set(self, name: str, value: Any) -> None:
        self[name] = value

    def to_dict(self) -> dict[str, Any]:
        return {key: dict(value) if key == "config" else value for key, value in self.items()}

    def serialize(self) -> str:
        return json.dumps(self, sort_keys=True)

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> RuntimeEnv:
        return cls(**json.loads(serialized_runtime_env))

    # ------------------------------------------------------------ what is in it

    def env_vars(self) -> dict[str, str]:
        return dict(self.get("env_vars") or {})

    def has_working_dir(self) -> bool:
        return bool(self.get("working_dir"))

    def working_dir(self) -> str | None:
        return self.get("working_dir")

    def working_dir_uri(self) -> str | None:
        return self.get("working_dir")

    def py_modules(self) -> list[str | ModuleType]:
        return list(self.get("py_modules") or [])

    def py_modules_uris(self) -> list[str | ModuleType]:
        return self.py_modules()

    # ------------------------------------------------------------ what noded has not: never there

    def has_conda(self) -> bool:
        return False

    def has_pip(self) -> bool:
        return False

    def has_uv(self) -> bool:
        return False

    def has_py_container(self) -> bool:
        return False


def _restore(fields: dict[str, Any]) -> RuntimeEnv:
    return RuntimeEnv(**fields, _validate=False)
