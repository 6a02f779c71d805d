"""Questions about logs that concern more than one node: the head asks the nodes that have the files.

The files themselves, and what is answered about them, are the nodes' business (``node/logs.py``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from noded import ids
from noded.head.nodes import NodeRecord, NodeTable

NODE_SECONDS = 4.0
_LAST_WORDS_SECONDS = 1.0


class HeadLogs:
    """Each question takes its arguments and the number of the node that asks. Raises ValueError with its words."""

    def __init__(self, nodes: NodeTable):
        self._nodes = nodes

    async def ask(self, args: dict[str, Any], number: int) -> Any:
        """List files or read one, see ``node/logs.py``; ``node``: its name, id, number or address."""
        if args.get("do") != "list":
            return await self._of(self._wanted(args)[0], "logs", args)
        wanted = self._wanted(args)
        answers = await asyncio.gather(*(self._of(record, "logs", args) for record in wanted), return_exceptions=True)
        nodes: list[dict[str, Any]] = []
        for record, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, ValueError):
                about = {"number": record.number, "name": record.name, "id": record.id, "ip": record.ip}
                nodes.append({**about, "files": [], "files_left": 0, "problem": str(answer)})
            elif isinstance(answer, BaseException):
                raise answer
            else:
                nodes.extend(answer["nodes"])
        return {"nodes": nodes}

    async def last_words(self, args: dict[str, Any], number: int) -> Any:
        """What workers of a job have written on other nodes is to go to its driver; the nodes from which it is on its
        way.
        """
        others = [r for r in self._nodes.records.values() if r.api is not None and r.number != number]
        asked = [self._of(record, "last_words", args, _LAST_WORDS_SECONDS) for record in others]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException) and answer]

    async def level(self, args: dict[str, Any], number: int) -> Any:
        """Of the daemon of a node, or of all."""
        wanted = self._wanted(args)
        return [await self._of(record, "log_level", args) for record in wanted]

    def _wanted(self, args: dict[str, Any]) -> list[NodeRecord]:
        """The node that is named, or has this worker; else all that live."""
        word, worker = str(args.get("node") or ""), str(args.get("worker") or "")
        if word:
            record = self._nodes.find(word)
            if record is None:
                raise ValueError(f"there is no node {word!r} in this cluster (any more): see `noded status`")
            return [record]
        if worker:
            record = self._nodes.records.get(ids.node_of_worker(worker))
            if record is None:
                raise ValueError(f"there is no worker {worker}: no node of this cluster has given out this id")
            return [record]
        return [record for record in self._nodes.records.values() if record.id and record.state != "DEAD"]

    async def _of(self, record: NodeRecord, what: str, args: dict[str, Any], seconds: float = NODE_SECONDS) -> Any:
        if record.state == "DEAD":
            raise ValueError(f"node {record.name} is dead ({record.reason}): its logs are on its disk, if it has one")
        if record.api is None:
            raise ValueError(f"node {record.name} is away: {record.reason}")
        try:
            return await asyncio.wait_for(record.api.ask(what, args), seconds)
        except TimeoutError:
            raise ValueError(f"node {record.name} has not answered within {seconds:g} s") from None
