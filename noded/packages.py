"""Packages of runtime environments as they come to a node: from a client, from another node, or from the head.

They are kept, and taken out of use, by ``node/runtime_envs.py``; what is in one, ``runtime_env/packages.py`` knows.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

from noded.node.control import Refusal
from noded.node.runtime_envs import RuntimeEnvError, RuntimeEnvs
from noded.node.session import Client


class Packages:
    """``pass_on(uri, data)``: what a client of this node has brought is the head's as well."""

    def __init__(self, environments: RuntimeEnvs, pass_on: Callable[[str, bytes], None]):
        self._environments = environments
        self._pass_on = pass_on
        self._storing: dict[str, asyncio.Task[None]] = {}
        """On their way to the disk, and those that did not get there, until who brought them has asked."""

    def on_package(self, uri: str, data: bytes) -> None:
        """From a client."""
        self.keep(uri, data)
        self._pass_on(uri, data)

    def keep(self, uri: str, data: bytes) -> None:
        if uri not in self._storing:
            task = asyncio.get_running_loop().create_task(self._environments.store(uri, data), name=f"store {uri}")
            self._storing[uri] = task
            task.add_done_callback(lambda task: self._stored(uri, task))

    def _stored(self, uri: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._storing.pop(uri, None)

    async def ask_await(self, client: Client | None, args: dict[str, Any]) -> Any:
        """The answer comes when the package is on the disk."""
        uri = str(args["uri"])
        task = self._storing.get(uri)
        if task is not None:
            try:
                await asyncio.shield(task)
            except RuntimeEnvError as error:
                raise Refusal(str(error)) from None
            finally:
                self._storing.pop(uri, None)
        elif not self._environments.has(uri):
            raise Refusal(f"the package {uri} did not arrive; submit again")
        return True

    async def tell(self, args: dict[str, Any]) -> Any:
        """One that is stored here, as base64. Raises ValueError."""
        try:
            return base64.b64encode(await self._environments.read(str(args["uri"]))).decode()
        except LookupError:
            raise ValueError(f"the package {args['uri']} is not here") from None
