"""Who may use the HTTP routes: the middleware in front of all of them, also of those that do not exist.

First where the request comes from: Host must be a name of ours, or a page elsewhere could reach us through a
name of its own (DNS rebinding), and a browser's word that a foreign page asks is believed. Only then the
token, as a bearer. Health paths are free for everybody. A refused connection is closed, so that nobody
collects them.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from noded.http.answers import error_answer
from noded.http.gateway import reached_address

FREE_PATHS = frozenset({"/healthz"})
ALWAYS_ALLOWED = ("localhost", "127.0.0.1", "::1")


def guard(token: bytes, allowed_hosts: Iterable[str]) -> Middleware:
    """The middleware; `allowed_hosts` are further names beside those of the loopback."""
    names = frozenset(host_name(name) for name in (*ALWAYS_ALLOWED, *allowed_hosts))

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in FREE_PATHS:
            return await handler(request)
        # Bound to all addresses, the node has the one by which it was reached. An address cannot be rebound.
        refused = _wrong_origin(request.headers, names | {reached_address.get()}) or _no_token(request.headers, token)
        if refused is None:
            return await handler(request)
        refused.force_close()
        return refused

    return check


def host_name(host: str) -> str:
    """The name in a Host header: without port and brackets, in lower case."""
    text = host.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text if text.count(":") > 1 else text.partition(":")[0].rstrip(".")


def _wrong_origin(headers: Mapping[str, str], names: frozenset[str]) -> web.Response | None:
    host = headers.get("Host", "")
    if host_name(host) not in names:
        return error_answer(
            403,
            f"this node does not answer to Host {host!r}: use its address, or start it with --allowed-host",
        )
    origin = headers.get("Origin")
    if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
        return error_answer(403, f"requests from pages of {origin!r} are not allowed")
    if headers.get("Sec-Fetch-Site", "").lower() == "cross-site":
        return error_answer(403, "requests from pages of other sites are not allowed")
    return None


def _no_token(headers: Mapping[str, str], token: bytes) -> web.Response | None:
    scheme, _, given = headers.get("Authorization", "").partition(" ")
    # Bytes, as compare_digest refuses text beyond ASCII; headers may hold any byte.
    sent = given.strip().encode("utf-8", "surrogateescape")
    if scheme.lower() == "bearer" and hmac.compare_digest(sent, token):
        return None
    answer = error_answer(401, "send the cluster's token: `Authorization: Bearer TOKEN`; it is in $NODED_HOME/token")
    answer.headers["WWW-Authenticate"] = 'Bearer realm="noded"'
    return answer
