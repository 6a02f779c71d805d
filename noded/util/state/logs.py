"""The logs of a cluster: ``list_logs`` and ``get_log``, with Ray's names and arguments."""

from __future__ import annotations

import codecs
import fnmatch
import re
from collections.abc import Generator
from typing import Any

from noded.logs.query import ANY, Ask, Wanted, files_of, list_files, read
from noded.util.state.asking import ask
from noded.util.state.exception import WrongQuestion

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def list_logs(
    address: str | None = None,
    node_id: str | None = None,
    node_ip: str | None = None,
    glob_filter: str | None = None,
    timeout: int = 30,
) -> dict[str, list[str]]:
    """The names of the log files of one node: ``worker_out``, ``worker_err`` and ``daemon`` to lists. Without
    ``node_id`` and ``node_ip`` those of the whole cluster. ``timeout``: seconds. Raises RayStateApiException, which is
    a ValueError too for a node that is not there.
    """
    asking = _asking(address, timeout)
    found: dict[str, list[str]] = {"worker_out": [], "worker_err": [], "daemon": []}
    for file in files_of(list_files(asking, Wanted(node=_node(node_id, node_ip, address, timeout), name=ANY))):
        kind = ("worker_err" if file["name"].endswith(".err") else "worker_out") if file["worker"] else "daemon"
        if glob_filter is None or fnmatch.fnmatch(file["name"], glob_filter):
            found[kind].append(file["name"])
    return found


def get_log(
    address: str | None = None,
    node_id: str | None = None,
    node_ip: str | None = None,
    filename: str | None = None,
    actor_id: str | None = None,
    task_id: str | None = None,
    pid: int | None = None,
    follow: bool = False,
    tail: int = -1,
    timeout: int = 30,
    suffix: str = "out",
    encoding: str | None = "utf-8",
    errors: str | None = "strict",
    submission_id: str | None = None,
    attempt_number: int = 0,
    _interval: float | None = None,
    filter_ansi_code: bool = False,
) -> Generator[str, None, None]:
    """Line by line, with their ends, what an actor, a task, a worker (``pid``, with its node) or a file has. ``tail``:
    only the last lines, so many of each file. ``encoding``: None gives bytes. ``timeout``: seconds, of each question
    that this asks. Raises ValueError where nothing is wanted, or there is nothing, and RayStateApiException where the
    cluster does not answer.
    """
    asking = _asking(address, timeout)
    if suffix not in ("out", "err"):
        raise ValueError(f"suffix must be 'out' or 'err', not {suffix!r}")
    if submission_id is not None:
        raise NotImplementedError("get_log(submission_id=...) is not supported: give a task, an actor or a file")
    given = [name for name in (filename, actor_id, task_id, pid) if name is not None]
    if len(given) != 1:
        raise ValueError("give one of filename, actor_id, task_id and pid")
    node = _node(node_id, node_ip, address, timeout)
    if (filename or pid is not None) and not node:
        raise ValueError("filename and pid are those of a node: give node_id or node_ip too")
    wanted = Wanted(
        node=node,
        name=filename or (ANY if pid is not None else ""),
        task=task_id or "",
        actor=actor_id or "",
        is_error=suffix == "err",
        tail=tail if tail >= 0 else None,
        follow=follow,
    )
    files = files_of(list_files(asking, wanted))
    if pid is not None:
        files = [file for file in files if file["pid"] == pid and file["name"].endswith(f".{suffix}")]
    if not files and not follow:
        raise ValueError(f"there is no log of {given[0]}: it has written nothing to std{suffix}, or it is not kept")
    return _lines(asking, wanted, files, encoding, errors or "strict", filter_ansi_code)


def _lines(
    asking: Ask, wanted: Wanted, files: list[dict[str, Any]], encoding: str | None, errors: str, plain: bool
) -> Generator[Any, None, None]:
    rest = b""
    for part in read(asking, wanted, files):
        *whole, rest = (rest + part.data).split(b"\n")
        for line in whole:
            yield _text(line + b"\n", encoding, errors, plain)
    if rest:
        yield _text(rest, encoding, errors, plain)


def _text(line: bytes, encoding: str | None, errors: str, plain: bool) -> Any:
    if encoding is None:
        return line
    text = codecs.decode(line, encoding, errors)
    return _ANSI.sub("", text) if plain else text


def _asking(address: str | None, timeout: float) -> Ask:
    return lambda arguments: ask("logs", arguments, address, timeout)


def _node(node_id: str | None, node_ip: str | None, address: str | None, timeout: float) -> str:
    if node_ip is None:
        return node_id or ""
    for node in ask("nodes", {}, address, timeout):
        if node["Alive"] and node["NodeManagerAddress"] == node_ip:
            return str(node["NodeID"])
    raise WrongQuestion(f"there is no node with the address {node_ip} in this cluster (any more)")
