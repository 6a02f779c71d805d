"""Asking a running daemon something: `request_status`, `request_stop`. The only place that knows how.

It is done over HTTP on the node's port, with the cluster's token. Not here: finding nodes (`noded.config`),
and what to do when the daemon does not answer (`stop`, `status`).
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from typing import Any

from noded.config import NodeInfo, home, process_state, read_token

SECONDS = 5.0
_ALL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class ControlError(Exception):
    """The daemon did not do what was asked; the text says why."""


def request_status(node: NodeInfo, env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    return _request(node, env, "GET", "/api/v0/status")


def request_stop(node: NodeInfo, env: Mapping[str, str] = os.environ) -> None:
    """Returns when the daemon has begun to stop."""
    _request(node, env, "POST", "/api/v0/stop")


def _request(node: NodeInfo, env: Mapping[str, str], method: str, path: str) -> dict[str, Any]:
    name = f"node {node.node} of cluster {node.cluster} (pid {node.pid})"
    state = process_state(node.pid)
    if state is not None and state[0] in "Tt":
        raise ControlError(f"{name} is stopped by a signal: `kill -CONT {node.pid}` lets it go on")
    token = read_token(home(env), env)
    if token is None:
        raise ControlError(f"{home(env) / 'token'} does not exist: set NODED_HOME as {name} has it, or NODED_TOKEN")
    bare = node.host.strip("[]")
    connection = http.client.HTTPConnection(_ALL_ADDRESSES.get(bare, bare), node.port, timeout=SECONDS)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token.decode()}"})
        response = connection.getresponse()
        status, body = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise ControlError(f"{name} does not answer on {node.host} port {node.port}: {reason}") from None
    finally:
        connection.close()
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ControlError(f"{name} answered {method} {path} with status {status} and no JSON object")
    if status >= 400:
        raise ControlError(f"{name} refused {method} {path}: {content.get('error', status)}")
    return content
