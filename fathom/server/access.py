"""The outermost layer: a request's id, its line in the log, its outcome in the metrics, and what to do with a defect.

    POST /v1/chat/completions 200 1843 ms 57+128 tokens 3f0c...

Neither prompts, nor answers, nor keys, nor query strings are ever in the log.
"""

from __future__ import annotations

import logging
import re
import sys
import uuid
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fathom.server.errors import api_error
from fathom.server.metrics import ServerMetrics

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_log = logging.getLogger("fathom.server")


@dataclass
class RequestRecord:
    """What the layers below tell the log; in `scope["state"]["record"]`."""

    id: str
    prompt_tokens: int | None = None
    generated_tokens: int = 0
    outcome: str | None = None
    """Set when the status does not say it: "cancelled", or "error" in the middle of a stream."""


class AccessLog:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, quiet: bool) -> None:
        self.app, self.metrics, self.quiet = app, metrics, quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        record = RequestRecord(given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex)
        scope.setdefault("state", {})["record"] = record
        start, status = perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.id
                headers.setdefault("x-content-type-options", "nosniff")
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:
            _log.exception("request %s failed", record.id)
            record.outcome = "error"
            if not status:
                await api_error(error).response(scope)(scope, receive, sending)
        finally:
            outcome = record.outcome or ("cancelled" if not status else _outcome(status))
            route = getattr(scope.get("route"), "path", "other")  # a pattern, so that labels stay few
            self.metrics.requests.labels(route=route, outcome=outcome).inc()
            if not self.quiet:
                self.write(scope, status, outcome, perf_counter() - start, record)

    def write(self, scope: Scope, status: int, outcome: str, seconds: float, record: RequestRecord) -> None:
        """One line on standard error."""
        words = [scope["method"][:16], quote(scope["path"][:200]), str(status or "-"), f"{seconds * 1000:.0f} ms"]
        if record.prompt_tokens is not None:
            words.append(f"{record.prompt_tokens}+{record.generated_tokens} tokens")
        if record.outcome is not None:
            words.append(outcome)
        print(*words, record.id, file=sys.stderr, flush=True)


def _outcome(status: int) -> str:
    if status < 400:
        return "ok"
    if status == 429 or status == 503:
        return "busy"
    return "client_error" if status < 500 else "error"
