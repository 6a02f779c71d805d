"""Why a module of Ray is not there, in words for the person whose program asked for it and for docs/ray-api.md."""

from __future__ import annotations

_LIBRARY = "is a library on top of Ray Core"
_INTERNAL = "is internal to Ray"
_REMOVED = "is no more in Ray either"

ABSENT = {
    "ray.air": _LIBRARY,
    "ray.dag": "compiled graphs: not part of noded",
    "ray.data": _LIBRARY,
    "ray.llm": _LIBRARY,
    "ray.rllib": _LIBRARY,
    "ray.serve": _LIBRARY,
    "ray.train": _LIBRARY,
    "ray.tune": _LIBRARY,
    "ray.workflow": _REMOVED,
    "ray.autoscaler": "noded has no autoscaler yet",
    "ray.core": _INTERNAL,
    "ray.dashboard": "noded has no dashboard yet",
    "ray.experimental": "experiments of Ray, most of them about tensors on GPUs",
    "ray.internal": _INTERNAL,
    "ray.job_submission": "noded has no jobs API yet",
    "ray.scripts": "the command line of Ray; noded's is `noded`",
    "ray.setup-dev": _INTERNAL,
    "ray.util.actor_group": "is deprecated in Ray: use ray.util.ActorPool",
    "ray.util.check_open_ports": _INTERNAL,
    "ray.util.client": "the protocol of Ray Client: noded has drivers on the cluster's machines only, so far",
    "ray.util.client_connect": "the protocol of Ray Client: noded has drivers on the cluster's machines only, so far",
    "ray.util.collective": "communication among actors by NCCL and Gloo: use torch.distributed in the actors",
    "ray.util.common": _INTERNAL,
    "ray.util.dask": "is an adapter for Dask",
    "ray.util.debugpy": "needs Ray's debugger",
    "ray.util.horovod": _REMOVED,
    "ray.util.iter": "is deprecated in Ray",
    "ray.util.iter_metrics": "is deprecated in Ray",
    "ray.util.lightgbm": _REMOVED,
    "ray.util.rpdb": "needs Ray's debugger",
    "ray.util.serialization_addons": _INTERNAL,
    "ray.util.sgd": _REMOVED,
    "ray.util.spark": "is an adapter for Spark",
    "ray.util.timer": _INTERNAL,
    "ray.util.tpu": "noded knows no TPUs",
    "ray.util.tracing": "noded has no OpenTelemetry hooks",
    "ray.util.xgboost": _REMOVED,
    "ray.widgets": _INTERNAL,
}
"""Module -> why it is not there, nor anything below it."""


def reason(fullname: str) -> str:
    """For a dotted name below `ray`; empty when nothing is known."""
    name = fullname
    while name:
        if name in ABSENT:
            return ABSENT[name]
        name = name.rpartition(".")[0]
    return _INTERNAL if fullname.startswith("ray._") else ""


def why_absent(fullname: str) -> str:
    known = reason(fullname)
    said = f" ({known})" if known else ""
    return (
        f"{fullname} is not there{said}: `import ray` means noded here, which has what docs/ray-api.md lists. A "
        "program that needs it needs Ray: run it without noded.compat.ray and without noded run --as-ray"
    )
