"""Bodies as strict JSON. `JsonRoute` is the route class of every route with a body.

Python's parser is lenient (NaN, half surrogates) and recursive; a body is checked before and after it. Only
`application/json` is taken: a web page of another origin cannot send that without asking first (CORS preflight).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from fathom.server.errors import ApiError
from fathom.server.limits import MAX_FIELDS, MAX_JSON_DEPTH

# A string (to the end of the body if it does not close) or a bracket. Possessive, so that no body makes it go back.
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|([\[{])|([\]}])', re.DOTALL)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class JsonRequest(Request):
    """A request whose body is parsed by `parse_json`."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


class JsonRoute(APIRoute):
    """A route that takes application/json and nothing else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if self.body_field is not None:
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind != "application/json":
                    message = f"the body is {kind[:80] or 'of no declared type'}; send Content-Type: application/json"
                    raise ApiError(415, message, code="unsupported_media_type")
                request = JsonRequest(request.scope, request.receive)
                if not await request.body():
                    raise ApiError(400, "the body is empty; send a JSON object", code="invalid_json")
            return await handler(request)

        return handle


def parse_json(body: bytes) -> Any:
    """UTF-8, no NaN, every character whole, not nested without end."""
    if body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH:
        _check_depth(body)
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 text (byte {error.start})", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ApiError(400, f"the body has {len(value)} fields, the limit is {MAX_FIELDS}", code="invalid_body")
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            message = "the body holds half of a surrogate pair, which is no character; send valid Unicode"
            raise ApiError(400, message, code="invalid_json") from None
    return value


def _check_depth(body: bytes) -> None:
    depth = 0
    for match in _BRACKETS.finditer(body):
        depth += (match[1] is not None) - (match[2] is not None)
        if depth > MAX_JSON_DEPTH:
            message = f"the body nests objects and lists more than {MAX_JSON_DEPTH} deep; send something flatter"
            raise ApiError(400, message, code="too_deep")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
