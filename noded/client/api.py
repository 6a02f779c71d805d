"""The functions of the public API, as ``noded.<name>``. Names, arguments, defaults and meaning are those of
Ray Core 2.x.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from noded import exceptions as ex
from noded.client import sites
from noded.client.actor_handle import ActorHandle
from noded.client.context import RuntimeContext, gpu_ids
from noded.client.generators import ObjectRefGenerator
from noded.client.options import check_sizes
from noded.client.output import Printer
from noded.client.refs import REMOTE, ObjectRef
from noded.client.runtime import Runtime, current, runtime, set_auto_init, set_current
from noded.wire import messages as m

if TYPE_CHECKING:
    from noded.client.local_cluster import LocalCluster

_lock = threading.RLock()
_local: LocalCluster | None = None
_printer: Printer | None = None
_GRACE = 60.0

job_env: dict[str, str] = {}
"""What the environment of this program's workers is to have besides; `noded.compat` says in it what `ray` means."""


class ClientContext(Mapping[str, Any]):
    """What ``init`` returns: address and ids of the cluster; as a context manager it shuts down at the end."""

    def __init__(self, info: dict[str, Any]):
        self.address_info = info
        self.dashboard_url: str = info["webui_url"]
        self.python_version = sys.version.split()[0]

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Any:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __enter__(self) -> ClientContext:
        return self

    def __exit__(self, *exc: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        shutdown()

    def __repr__(self) -> str:
        return f"ClientContext({self.address_info})"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    object_store_memory: int | None = None,
    object_spilling_directory: str | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: int | None = None,
    job_config: Any = None,
    configure_logging: bool = True,
    logging_level: int | None = None,
    logging_format: str | None = None,
    logging_config: Any = None,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    enable_resource_isolation: bool = False,
    system_reserved_cpu: float | None = None,
    system_reserved_memory: int | None = None,
    **kwargs: Any,
) -> ClientContext:
    """Connect this program to a cluster, or start a private one that ends with it.

    ``address``: ``"local"`` forces a private one; ``"auto"`` a running one of this user; ``host:port`` or the
    name of a cluster that one; None takes ``NODED_ADDRESS``, else a running cluster of this user, else a
    private one. ``num_cpus``, ``num_gpus``, ``resources``, ``object_store_memory`` (bytes) are for a private
    one, and so are ``_memory`` (bytes), ``object_spilling_directory`` (where objects go that find no room in the store;
    several with commas) and the node's ``labels``. Raises ConnectionError when the asked-for
    cluster is not there, RuntimeError when called twice (see ``ignore_reinit_error``).
    """
    # What only init needs is imported by it: workers and short scripts start without.
    from noded.client import discovery
    from noded.client.local_cluster import LocalCluster

    global _local, _printer
    with _lock:
        if current() is not None:
            if ignore_reinit_error:
                return _context()
            raise RuntimeError(
                "noded.init() was called already: call noded.shutdown() first, or pass ignore_reinit_error=True"
            )
        memory = kwargs.pop("_memory", None)
        unknown = [key for key in kwargs if not key.startswith("_")]
        if unknown:
            raise TypeError(f"noded.init() got unknown arguments: {', '.join(sorted(unknown))}")
        if local_mode:
            raise NotImplementedError(
                "noded.init(local_mode=True) is not supported: call the plain functions, or start a private cluster "
                "with num_cpus=1, which takes a fraction of a second"
            )
        if runtime_env is not None:
            from noded.runtime_env import validate

            runtime_env = validate(runtime_env)
        if namespace is not None and not isinstance(namespace, str):
            raise TypeError(f"namespace must be a string or None, not {namespace!r}")
        if namespace == "":
            raise ValueError("namespace must not be empty: leave it out for one of your own")
        if address is not None and not isinstance(address, str):
            raise TypeError(f"address must be a string or None, not {address!r}")
        wanted = address if address is not None else os.environ.get("NODED_ADDRESS") or None
        node = None if wanted == "local" else discovery.find(wanted, os.environ)
        sizes = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "object_store_memory": object_store_memory,
            "memory": memory,
        }
        check_sizes(sizes)
        if labels is not None:
            from noded.policy.labels import check_own

            check_own(labels)
        sizes["labels"] = labels
        if object_spilling_directory is not None:
            if not isinstance(object_spilling_directory, str):
                raise TypeError(
                    f"object_spilling_directory must be a string or None, not {object_spilling_directory!r}"
                )
            # "none" is a word, and no directory.
            paths = object_spilling_directory.split(",") if object_spilling_directory != "none" else []
            sizes["object_spilling_directory"] = ",".join(map(os.path.abspath, paths)) or "none"
        remote = None
        if node is None:
            _local = LocalCluster(sizes)
            _local.start()
            run_dir = _local.run_dir
        else:
            given = [key for key, value in sizes.items() if value is not None]
            where = node if isinstance(node, str) else f"{node.host}:{node.port}"
            if given:
                raise ValueError(
                    f"{', '.join(given)} cannot be given when connecting to a running cluster "
                    f"({where}); start it with `noded start` and these flags"
                )
            if isinstance(node, str):
                remote, run_dir = discovery.remote(node, os.environ), ""
            else:
                run_dir = str(node.dir)
        config = m.JobConfig(
            sys_path=_driver_path(),
            cwd=os.getcwd(),
            env={**({sites.VARIABLE: "1"} if sites.wanted(os.environ) else {}), **job_env},
            namespace=namespace or f"anonymous-{os.urandom(8).hex()}",
            log_to_driver=log_to_driver is not False,
            entrypoint=" ".join(sys.argv[:2])[:200],
        )
        _printer = Printer()
        rt = Runtime(
            "driver",
            run_dir,
            prefix=b"",
            job_config=config,
            grace=_GRACE,
            on_message=_printer.on_message,
            remote=remote,
        )
        try:
            rt.start(10.0)
        except BaseException as problem:
            rt.give_up()
            if _local is not None:
                _local.stop(2.0)
                _local = None
            if isinstance(problem, ex.LocalDaemonDiedError):
                raise ConnectionError(str(problem)) from problem
            raise
        _printer.home = rt.node_ip
        _printer.flag = "" if rt.cluster == "default" else f" --cluster {rt.cluster}"
        sites.record(rt, os.environ)
        set_current(rt)
        rt.interrupts.install()
        if runtime_env:
            try:
                rt.environments.now = rt.environments.resolve(runtime_env)
            except BaseException:
                shutdown()
                raise
        return _context()


def _driver_path() -> list[str]:
    """The driver's import path; the empty entry means its working directory."""
    return [os.path.abspath(p) if p else os.getcwd() for p in sys.path]


def _context() -> ClientContext:
    rt = runtime()
    return ClientContext(
        {
            "address": rt.address,
            "gcs_address": rt.address,
            "node_id": rt.node_id,
            "node_ip_address": rt.node_ip,
            "session_dir": rt.run_dir,
            "webui_url": rt.web_address,
            "cluster": rt.cluster,
            "job_id": rt.job,
        }
    )


def shutdown(wait_for_processes: bool = False, _exiting_interpreter: bool = False) -> None:
    """Leave the cluster; a private one ends, and its processes have ended when this returns, asked for or not. Harmless
    when not connected.
    """
    global _local, _printer
    with _lock:
        rt = current()
        if rt is None or rt.kind == "worker":
            return
        local, _local = _local, None
        with rt.interrupts:
            if local is not None:
                local.expect_end()
            left = "" if local is not None else _left_behind(rt)
            if not rt.lost_reason:
                rt.detach()
            if _printer is not None:
                _printer.finish(left)
                _printer = None
            if not rt.lost_reason:
                if local is not None:
                    with rt.lock:
                        rt.control.send(m.Ask(0, "stop"), b"{}")
                        rt.control.flush()
            set_current(None)
            rt.stop()
            if local is not None:
                local.stop()


def _left_behind(rt: Runtime) -> str:
    """Where to read what this program's workers write from now on; empty when they have nothing to do."""
    if rt.job_config is None or not rt.job_config.log_to_driver or rt.lost_reason:
        return ""
    with rt.lock:
        count = len(rt.tasks.open_tasks())
    if not count:
        return ""
    which = "1 task" if count == 1 else f"{count} tasks"
    flag = "" if rt.cluster == "default" else f" --cluster {rt.cluster}"
    return f"{which} had not ended when this program left; what they wrote after that: noded logs --job {rt.job}{flag}"


def is_initialized() -> bool:
    return current() is not None


def _auto_init() -> Runtime:
    init()
    found = current()
    assert found is not None
    return found


set_auto_init(_auto_init)


@atexit.register
def _at_exit() -> None:
    if current() is not None and current().pid == os.getpid():  # type: ignore[union-attr]
        shutdown()


# ---------------------------------------------------------------- objects


def _check_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if timeout < 0:
        raise ValueError(f"timeout must not be negative, got {timeout!r}")
    return timeout


def get(object_refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a ref, or the list of values of a list of refs; waits up to ``timeout`` seconds.

    Raises the task's own exception (as a TaskError that is also of its type), or GetTimeoutError,
    WorkerCrashedError, ObjectLostError and their kin.
    """
    rt = current() or runtime()
    if type(object_refs) is ObjectRef:
        state = object_refs._state
        if (state == 1 or state == 2) and timeout is None:
            return rt.objects.load(object_refs)
        return rt.get([object_refs], _check_timeout(timeout))[0]
    if isinstance(object_refs, ObjectRefGenerator):
        return object_refs
    if not isinstance(object_refs, (list, tuple)):
        raise ValueError(
            f"noded.get() takes an ObjectRef or a list of them, not {type(object_refs).__name__}: {object_refs!r:.200}"
        )
    for ref in object_refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"noded.get() takes ObjectRefs, but the list holds a {type(ref).__name__}: {ref!r:.200}")
    return rt.get(list(object_refs), _check_timeout(timeout))


def put(value: Any, *, _owner: Any = None) -> ObjectRef[Any]:
    """Store a value once, to pass its ref to many tasks. Big values are shared without copies, read-only."""
    rt = current() or runtime()
    if _owner is not None:
        raise NotImplementedError("noded.put(_owner=...) is not supported: objects outlive their makers anyway")
    with rt.interrupts:
        return rt.objects.put(value)


def wait(
    object_refs: list[ObjectRef[Any]], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    """(ready, not ready): waits until ``num_returns`` of the refs are ready, or ``timeout`` seconds. ``fetch_local``:
    values on other nodes begin to come here.
    """
    rt = current() or runtime()
    if type(object_refs) is not list:
        raise TypeError(f"noded.wait() takes a list of ObjectRefs, not {type(object_refs).__name__}")
    kinds = set(map(type, object_refs)) - {ObjectRef, ObjectRefGenerator}
    if kinds:
        raise TypeError(f"noded.wait() takes ObjectRefs, but the list holds a {kinds.pop().__name__}")
    if not object_refs:
        return [], []
    if len(set(object_refs)) != len(object_refs):
        raise ValueError("noded.wait() takes each ObjectRef once, but the list holds one twice")
    if isinstance(num_returns, bool) or not isinstance(num_returns, int) or not 0 < num_returns <= len(object_refs):
        raise ValueError(f"num_returns must be from 1 to {len(object_refs)}, the number of refs, not {num_returns!r}")
    with rt.interrupts:
        return rt.objects.wait(object_refs, num_returns, _check_timeout(timeout), pull=fetch_local)


# ---------------------------------------------------------------- ending things


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor at once; its pending calls fail with ActorDiedError."""
    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"noded.kill() takes an actor handle, not {type(actor).__name__}; use noded.cancel() for tasks"
        )
    rt = runtime()
    with rt.interrupts, rt.lock:
        rt.actors.kill_locked(actor.binary(), no_restart)


def cancel(object_ref: ObjectRef[Any] | ObjectRefGenerator, *, force: bool = False, recursive: bool = True) -> None:
    """Cancel a task: a queued one never runs, a running one gets KeyboardInterrupt, or its worker is ended
    (``force``). Then get() raises TaskCancelledError.

    ``recursive``: also the tasks it submitted. A finished task is left alone. Of actor calls, queued ones and async
    ones are cancelled; a running plain method gets KeyboardInterrupt, unless it has looked at
    ``get_runtime_context().is_canceled()`` or its actor has several threads: then that is how it learns. Any process
    that has the ref can cancel.
    """
    ref = object_ref.completed() if isinstance(object_ref, ObjectRefGenerator) else object_ref
    if type(ref) is not ObjectRef:
        raise TypeError(f"noded.cancel() takes an ObjectRef, not {type(ref).__name__}")
    rt = runtime()
    with rt.interrupts, rt.lock:
        task = ref._task
        if task is not None:
            if task.method and force:
                raise ValueError("force=True is not for actor calls: use noded.kill() to end the actor")
            rt.tasks.cancel_locked(task, force, recursive)
        elif ref._state == REMOTE:
            rt.cancels.cancel(ref, force, recursive)


# ---------------------------------------------------------------- questions


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, one dict each."""
    found: list[dict[str, Any]] = runtime().ask("nodes")
    return found


def cluster_resources() -> dict[str, float]:
    """All resources of all live nodes. Memory in bytes."""
    found: dict[str, float] = runtime().ask("resources")["total"]
    return found


def available_resources() -> dict[str, float]:
    """What is not in use now. Memory in bytes."""
    found: dict[str, float] = runtime().ask("resources")["available"]
    return found


def get_runtime_context() -> RuntimeContext:
    return RuntimeContext(runtime())


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """The last tasks (about a thousand of each worker) as a Chrome trace, for chrome://tracing or Perfetto: a list of
    events, or None after writing them to ``filename`` as JSON.
    """
    events: list[dict[str, Any]] = runtime().ask("timeline")
    if filename is None:
        return events
    with open(filename, "w") as file:
        json.dump(events, file)
    return None


def get_gpu_ids() -> list[int] | list[str]:
    """The GPUs of the task or actor that calls this: numbers as in ``CUDA_VISIBLE_DEVICES``, or UUIDs."""
    found = gpu_ids()
    return [int(one) for one in found] if all(one.isdigit() for one in found) else list(found)
