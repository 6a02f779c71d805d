"""JSON answers, and errors as JSON: {"error": text}."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

log = logging.getLogger(__name__)


def answer(content: Any, status: int = 200) -> web.Response:
    # Names of resources may be anything, and a set or a path in a status is no reason to fail.
    body = orjson.dumps(content, default=str, option=orjson.OPT_NON_STR_KEYS)
    response = web.Response(body=body, status=status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def error_answer(status: int, text: str) -> web.Response:
    return answer({"error": text}, status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A wrong path or method, and our own failures."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = error_answer(error.status, f"{error.reason}: {request.method} {request.path}")
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return error_answer(500, f"{request.method} {request.path} failed; the node's log has the reason")
