"""What a process is told from outside, and where its files are. Nobody else reads the environment.

`settings` has the one frozen `Config` and how it is filled, `values` reads a single value, `machine` finds
out what has no fixed default, `places` has the directories and the cluster's token, `nodes` has node.json, by
which programs of one user find a node, `redis_url` where a Redis is. Only the standard library, so that a client can
afford it.
"""

from __future__ import annotations

from noded.config.errors import ConfigError
from noded.config.nodes import NodeInfo, find_nodes, node_in, process_state
from noded.config.places import (
    home,
    load_or_create_token,
    make_dir,
    node_tag,
    read_token,
    remove_node_dir,
    run_base,
    without_secrets,
)
from noded.config.redis_url import PASSWORD, SENTINEL_PASSWORD, RedisUrl, read_password
from noded.config.settings import (
    DEFAULT_PORT,
    OPTIONS,
    Config,
    Option,
    chosen_cluster,
    cluster_dir,
    log_dir,
    make_node_dir,
    node_dir,
    node_home,
    start_log,
    storage_namespace,
)

__all__ = [
    "Config",
    "ConfigError",
    "Option",
    "OPTIONS",
    "DEFAULT_PORT",
    "chosen_cluster",
    "home",
    "run_base",
    "node_dir",
    "node_tag",
    "cluster_dir",
    "node_home",
    "log_dir",
    "start_log",
    "make_dir",
    "make_node_dir",
    "remove_node_dir",
    "storage_namespace",
    "RedisUrl",
    "read_password",
    "PASSWORD",
    "SENTINEL_PASSWORD",
    "read_token",
    "without_secrets",
    "load_or_create_token",
    "NodeInfo",
    "find_nodes",
    "node_in",
    "process_state",
]
