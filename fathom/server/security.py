"""Who may come in: checks that need no body, made before one is read.

    Host        a server on a loopback address answers only to localhost, 127.0.0.1, [::1] and the name it was given.
                Else a web page could point a name of its own at 127.0.0.1 (DNS rebinding) and talk to the server.
    draining    503 for everything but /health and /metrics
    key         `Authorization: Bearer KEY` or `x-api-key: KEY`; compared in constant time, never logged
    body        its declared length; bodies without one are counted while they are read (`limited`)

Open without a key: /health, and the static files of the chat page and of /docs, which hold nothing that is not in the
public repository; both send the key with their own API calls. A web page of another origin cannot use a browser
against the server: requests must be JSON (so that they need a preflight) and CORS is off unless it is asked for.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fathom.server.errors import ApiError
from fathom.server.limits import BODY_SECONDS, MAX_BODY_BYTES, WHOLE_BODY_SECONDS
from fathom.server.settings import LOOPBACK, Settings


@dataclass
class ServerState:
    """What changes while a server runs."""

    draining: bool = False
    open_paths: set[str] = field(default_factory=lambda: {"/health"})
    """Answered without a key (GET and HEAD)."""


class Gate:
    """ASGI middleware with the checks above."""

    def __init__(self, app: ASGIApp, settings: Settings, state: ServerState) -> None:
        self.app, self.settings, self.state = app, settings, state
        self.hosts = {*LOOPBACK, settings.host} if settings.loopback else set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        error = self.refusal(scope)
        if error is not None:
            await error.response(scope)(scope, receive, send)
            return
        await self.app(scope, limited(receive), send)

    def refusal(self, scope: Scope) -> ApiError | None:
        """The answer to a request that may not come in."""
        headers, path = Headers(scope=scope), scope["path"]
        if self.hosts and host_name(headers.get("host", "")) not in self.hosts:
            return ApiError(
                403,
                "the Host header names another machine; this server is bound to a loopback address and answers to "
                "localhost and 127.0.0.1 only (start it with --host to serve others)",
                code="wrong_host",
            )
        if self.state.draining and path not in ("/health", "/metrics"):
            message = "the server is shutting down; ask another one"
            return ApiError(503, message, code="draining", headers={"Retry-After": "5"})
        is_open = path in self.state.open_paths and scope["method"] in ("GET", "HEAD")
        if not is_open and not has_key(headers, self.settings.api_keys):
            return ApiError(
                401,
                "a valid API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return _too_large(length)
        return None


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def has_key(headers: Headers, keys: Collection[str]) -> bool:
    """Whether the request carries one of the keys, or none are asked for. Every key is compared, whichever fits."""
    if not keys:
        return True
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = [bearer.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
    found = False
    for value in given:
        for key in keys:
            found |= hmac.compare_digest(value.encode(), key.encode())
    return found


def limited(receive: Receive) -> Receive:
    """`receive` that counts the body and gives up on one that is too long or that stops coming."""
    read, complete = 0, False
    end = asyncio.get_running_loop().time() + WHOLE_BODY_SECONDS

    async def inner() -> Message:
        nonlocal read, complete
        if complete:  # only a disconnect can come now, and that may take as long as it likes
            return await receive()
        left = min(BODY_SECONDS, end - asyncio.get_running_loop().time())
        try:
            message = await asyncio.wait_for(receive(), left)
        except TimeoutError:
            complete = True
            limits = f"{BODY_SECONDS:.0f} s of a pause, {WHOLE_BODY_SECONDS:.0f} s in all"
            raise ApiError(408, f"the body did not come in time: {limits}", code="timeout") from None
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > MAX_BODY_BYTES:
                complete = True
                raise _too_large(f"more than {MAX_BODY_BYTES}")
        return message

    return inner


def _too_large(length: str) -> ApiError:
    return ApiError(
        413,
        f"the body has {length[:40]} bytes, the limit is {MAX_BODY_BYTES}; send less",
        code="body_too_large",
        headers={"Connection": "close"},
    )
