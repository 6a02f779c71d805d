"""The daemon's own log: to stderr and to a file of bounded size, as text or JSON, with a level for each component.

A component is a logger, ``noded.head`` or ``noded.logs``; what is set at run time lasts as long as the daemon does.
"""

from __future__ import annotations

import logging
import os
from logging.handlers import RotatingFileHandler

LEVELS = ("debug", "info", "warning", "error")
DEFAULT = "default"
"""As the level of a component: that of the daemon's settings."""
ALL = "all"
_FILE_BYTES = 10_000_000
_FILES_BEFORE = 2


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        import orjson

        entry = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


class BoundedFile(RotatingFileHandler):
    """The last _FILE_BYTES, and as much before them twice; the files are for their owner alone. A disk that is full or
    gone costs the file's lines, nothing else.
    """

    def __init__(self, path: str):
        super().__init__(path, maxBytes=_FILE_BYTES, backupCount=_FILES_BEFORE, encoding="utf-8", delay=True)

    def _open(self):  # type: ignore[no-untyped-def]
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return open(fd, "a", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        """Said on stderr already, by the other handler."""


def setup_logging(path: str, level: str, form: str, *, stderr: bool) -> None:
    """``path``: the file. Again for another daemon in this process: then what was set up before goes."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [BoundedFile(path)]
    if stderr:
        handlers.append(logging.StreamHandler())
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else text)
        root.addHandler(handler)
    root.setLevel(level.upper())


def leave_stderr() -> None:
    """From now on only the file, which is bounded: stderr is a file too, and is only for who waits for the start."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


def component_levels() -> dict[str, str]:
    """Of each component, by name, and ``all`` for those that have none of their own."""
    found = {ALL: logging.getLevelName(logging.getLogger().level).lower()}
    for name in sorted(_components()):
        level = logging.getLogger(name).level
        found[name] = logging.getLevelName(level).lower() if level else DEFAULT
    return found


def set_level(component: str, level: str) -> None:
    """``component``: its name with or without ``noded.``, empty or ``all`` for those without a level of their own.
    Raises ValueError.
    """
    level = level.lower()
    everything = component in ("", ALL)
    if level not in LEVELS and (level != DEFAULT or everything):
        raise ValueError(f"{level!r} is no level: give {', '.join(LEVELS)}" + ("" if everything else f" or {DEFAULT}"))
    if everything:
        logging.getLogger().setLevel(level.upper())
        return
    name = component if component.startswith("noded.") else f"noded.{component}"
    if name not in _components():
        known = ", ".join(sorted(each.removeprefix("noded.") for each in _components()))
        raise ValueError(f"there is no component {component!r}: there are {known}")
    logging.getLogger(name).setLevel(logging.NOTSET if level == DEFAULT else level.upper())


def _components() -> list[str]:
    known = logging.root.manager.loggerDict.items()
    return [name for name, it in known if name.startswith("noded.") and isinstance(it, logging.Logger)]
