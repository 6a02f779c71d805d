"""Why a name of Ray Core is not in noded, or why it is not quite the same: what docs/ray-api.md says.

Keys are patterns as in a shell: "ray.get", "ray.ObjectRef.from_*", "ray.init(cgroup_path)" for a parameter,
"options.task.max_calls" for an option, "ray.actor.*()" for all parameters of a call. The first that fits counts.
"""

_LIBRARY = "a library on top of Ray Core, which noded does not have"
_GRAPHS = "of compiled graphs, which noded does not have"
_INTERNAL = "internal to Ray"

MISSING: dict[str, str] = {
    "ray.autoscaler": "there is no autoscaler yet",
    "ray.data": _LIBRARY,
    "ray.internal": _INTERNAL,
    "ray.widgets": _INTERNAL,
    "ray.workflow": "removed from Ray too",
    "ray.*.bind": _GRAPHS,
    "ray.*ID.of": "ids are made by noded alone",
    "ray.*ID.job_id": "an id does not say its job",
    "ray.TaskID.for_*": "ids are made by noded alone",
    "ray.TaskID.actor_id": "an id does not say its actor",
    "ray.*Object??*.from_*": "a ref is what put and tasks return, or pickled in another value",
    "ray.*Object??*.nil": "a ref always refers to something",
    "ray.*Object??*.size": "of ids; a ref's has 16 bytes",
    "ray.*Object??*.job_id": "an id does not say its job",
    "ray.*Object??*.call_site": "not recorded",
    "ray.*Object??*.owner_address": "objects have no owner: they outlive the process that made them",
    "ray.*Object??*.tensor_transport": "tensors travel through shared memory",
    "ray.ObjectRefGenerator.*": "it is an iterator; to stop the task, drop it or cancel it",
    "ray.exceptions.RayChannel*": _GRAPHS,
    "ray.exceptions.RayCgraph*": _GRAPHS,
    "ray.exceptions.RayDirectTransportError": "of transports of GPU tensors, which noded does not have",
    "ray.exceptions.*.from_task_error": "internal to Ray: the task's own error is `__cause__`",
    "ray.exceptions.*.preempted": "preemption is not known to noded",
    "ray.exceptions.*.actor_init_failed": "`__cause__` is the constructor's error then",
    "ray.exceptions.*.BASE_ERROR_MSG": _INTERNAL,
    "ray.exceptions.*.REASON_MESSAGES": _INTERNAL,
    "ray.exceptions.RayTaskError.make_dual_exception_instance": "`as_dual` is it",
    "ray.runtime_env.RuntimeEnv.*": "of kinds of environments that are not supported yet",
    "ray.cluster_utils.AutoscalingCluster": "there is no autoscaler yet",
    "ray.job_config.JobConfig.*": _INTERNAL,
    "ray.util.iter": "deprecated in Ray",
    "ray.util.pdb": "needs Ray's debugger",
    "ray.util.ray_debugpy": "needs Ray's debugger",
    "ray.util.accelerators.tpu": "noded knows no TPUs",
    "ray.util.debug.Suspect": "a helper of Ray's own tests",
    "ray.util.placement_group.validate_placement_group": "placement_group() checks its arguments itself",
    "ray.util.serialization.StandaloneSerializationContext": _INTERNAL,
    "ray.util.annotations.*": _INTERNAL,
    "ray.util.state.StateApiClient.get_*": "of the HTTP server that Ray asks; noded's nodes are asked themselves",
    "ray.util.state.common.*.humanify": "the command line formats values, records have them as they are",
    "ray.util.state.common.*": "internal to Ray's server and command line: summaries are plain dicts",
    "options.task.object_store_memory": "results take what they need; Ray refuses it too, at the call",
}

DIFFERS: dict[str, str] = {
    "ray.put": "`_owner` is refused: objects have no owner, they outlive the process that made them",
    "ray.actor.ActorHandle": "an actor lives as long as there is a handle anywhere, also when its maker has ended",
    "ray.init": "`ray://` addresses are refused, a driver runs on a machine of the cluster; there is no dashboard yet",
    "ray.exceptions.OwnerDiedError": "only for values that were not there yet when their submitter died",
    "ray.exceptions.RayTaskError": "is also an instance of the user's class, as in Ray; pickles whatever its arguments",
}

NOT_COMPARED: dict[str, str] = {
    "ray.*.redis_shard_hash": _INTERNAL,
    "ray.exceptions.*.from_bytes": "how Ray sends errors",
    "ray.exceptions.*.to_bytes": "how Ray sends errors",
    "ray.exceptions.*.from_ray_exception": "how Ray sends errors",
    "ray.exceptions.*()": "errors are made by the library; noded's say more, so they take more",
    "ray.actor.Actor*()": "made by the library",
    "ray.remote_function.RemoteFunction()": "made by the library",
    "ray.runtime_context.RuntimeContext()": "made by the library",
    "ray.ObjectRefGenerator()": "made by the library",
    "ray.DynamicObjectRefGenerator()": "made by the library",
    "ray.client_builder.ClientContext()": "made by the library",
    "ray.Language.value": "of its members, in Python",
    "ray.runtime_env.*.build_proto_runtime_env_config": _INTERNAL,
    "ray.runtime_env.*.from_proto": _INTERNAL,
}
