"""``list_…`` and ``get_…``: what there is of a kind, and one thing by its id.

``filters`` are (column, operator, value), all of which must hold: ``=`` and ``!=``, which compare text without regard
to its case, and ``<``, ``<=``, ``>``, ``>=`` for numbers. They apply before ``limit`` (rows). ``timeout``: seconds.
``detail``: with all columns. What is returned is a list that also has ``cursor``, with which the same call goes on
behind its last row. When a node does not answer RayStateApiException is raised, unless ``raise_on_missing_output`` is
False: then the list's ``problems`` say what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

from noded.policy.query import IDS, MOST_ROWS, query_of
from noded.policy.state_records import (
    RECORDS,
    ActorState,
    ClusterEventState,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    RuntimeEnvState,
    StateSchema,
    TaskState,
    WorkerState,
)
from noded.util.identify import id_of
from noded.util.state.asking import ask, refuse_gaps
from noded.util.state.exception import RayStateApiException, WrongQuestion

T = TypeVar("T", bound=StateSchema)
Filters = Iterable[tuple[str, str, Any]] | None


class StateList(list[T]):
    """``cursor``: where the next page begins, empty when there is none; ``total``: how many there are, ``matched``: how
    many of these the filters let through (None: not known); ``problems``: what is missing, and why; ``notes``: what
    else there is to say.
    """

    cursor: str = ""
    total: int = 0
    matched: int | None = 0
    problems: list[str]
    notes: list[str]


def list_kind(
    kind: str,
    address: str | None,
    filters: Filters,
    limit: int,
    timeout: float,
    detail: bool,
    raise_on_missing_output: bool,
    cursor: str,
) -> StateList[Any]:
    """``kind``: of ``RECORDS``. Raises RayStateApiException."""
    if type(limit) is not int or limit < 0:
        raise WrongQuestion(f"limit is a number of rows, not {limit!r}")
    record, found, first = RECORDS[kind], StateList[Any](), True
    given = list(filters) if isinstance(filters, Iterable) else filters
    try:
        wanted = query_of({"kind": kind, "filters": given, "detail": detail, "cursor": cursor}).arguments()
    except ValueError as wrong:
        raise WrongQuestion(str(wrong)) from None
    while True:
        page = {**wanted, "limit": min(MOST_ROWS, limit - len(found)), "cursor": cursor}
        answer = ask("state", page, address, timeout)
        if raise_on_missing_output:
            refuse_gaps(answer["problems"])
        found += [record(**row) for row in answer["rows"]]
        found.cursor = cursor = answer["cursor"]
        found.problems, found.notes = answer["problems"], answer["notes"]
        found.total = answer["total"]
        if first:  # a page says how many are behind it as well, but not how many were before
            found.matched, first = answer["matched"], False
        if not cursor or len(found) >= limit:
            return found


def get_kind(kind: str, id_: Any, address: str | None, timeout: float) -> list[Any]:
    """All rows of this id, with details. Raises RayStateApiException."""
    text = id_ if isinstance(id_, str) else id_of(id_)
    found = list_kind(kind, address, [(IDS[kind], "=", text)], MOST_ROWS, timeout, True, False, "")
    if not found and found.problems:
        raise RayStateApiException(f"nothing is known of {text}, but {'; '.join(found.problems)}")
    return found


def _one(kind: str, id_: Any, address: str | None, timeout: float) -> Any:
    found = get_kind(kind, id_, address, timeout)
    return found[0] if found else None


def list_actors(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[ActorState]:
    """Raises RayStateApiException."""
    return list_kind("actors", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def list_placement_groups(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[PlacementGroupState]:
    """Raises RayStateApiException."""
    return list_kind("placement_groups", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def list_nodes(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[NodeState]:
    """Raises RayStateApiException."""
    return list_kind("nodes", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def list_jobs(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[JobState]:
    """Raises RayStateApiException."""
    return list_kind("jobs", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def list_workers(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[WorkerState]:
    """Raises RayStateApiException."""
    return list_kind("workers", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def list_tasks(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[TaskState]:
    """Raises RayStateApiException."""
    return list_kind("tasks", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def list_objects(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[ObjectState]:
    """One row for each process or node that needs an object. Raises RayStateApiException."""
    return list_kind("objects", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def list_runtime_envs(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[RuntimeEnvState]:
    """Raises RayStateApiException."""
    return list_kind("runtime_envs", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def list_cluster_events(
    address: str | None = None,
    filters: Filters = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
    *,
    cursor: str = "",
) -> StateList[ClusterEventState]:
    """What has happened, the newest first. Raises RayStateApiException."""
    return list_kind("cluster_events", address, filters, limit, timeout, detail, raise_on_missing_output, cursor)


def get_actor(id: Any, address: str | None = None, timeout: float = 30, _explain: bool = False) -> ActorState | None:
    """None: there is none of this id. Raises RayStateApiException."""
    return cast("ActorState | None", _one("actors", id, address, timeout))


def get_placement_group(
    id: Any, address: str | None = None, timeout: float = 30, _explain: bool = False
) -> PlacementGroupState | None:
    """None: there is none of this id. Raises RayStateApiException."""
    return cast("PlacementGroupState | None", _one("placement_groups", id, address, timeout))


def get_node(id: Any, address: str | None = None, timeout: float = 30, _explain: bool = False) -> NodeState | None:
    """None: there is none of this id. Raises RayStateApiException."""
    return cast("NodeState | None", _one("nodes", id, address, timeout))


def get_job(id: Any, address: str | None = None, timeout: float = 30, _explain: bool = False) -> JobState | None:
    """None: there is none of this id. Raises RayStateApiException."""
    return cast("JobState | None", _one("jobs", id, address, timeout))


def get_worker(id: Any, address: str | None = None, timeout: float = 30, _explain: bool = False) -> WorkerState | None:
    """None: there is none of this id. Raises RayStateApiException."""
    return cast("WorkerState | None", _one("workers", id, address, timeout))


def get_task(
    id: Any, address: str | None = None, timeout: float = 30, _explain: bool = False
) -> TaskState | list[TaskState] | None:
    """Of a task's id, or of a ref that it returns. Raises RayStateApiException."""
    text = id.task_id().hex() if hasattr(id, "task_id") else id
    return cast("TaskState | None", _one("tasks", text, address, timeout))


def get_objects(id: Any, address: str | None = None, timeout: float = 30, _explain: bool = False) -> list[ObjectState]:
    """A row for each process or node that needs the object. Raises RayStateApiException."""
    return get_kind("objects", id, address, timeout)
