"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}.

    400  the request is wrong; `param` names the field        401  no valid key           403  wrong Host header
    404  no such route or model                               405, 408, 413, 415          the HTTP around the request
    429  the queue is full (Retry-After)                      500  a defect of ours       503  the server is ending

Messages are for the person who wrote the request: what was given, what the limit is, what to do.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from fathom.engine.service import EngineBusy
from fathom.runtime import UserError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 404: "not_found_error"}


class ApiError(HTTPException):
    """An answer other than 200. `param`: the field of the request; `code`: a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.message, self.param, self.code = message, param, code

    def response(self, scope: Scope) -> JSONResponse:
        """The answer, in the shape of the API that was asked (`app.state.error_shapes`: route -> shape)."""
        shape: Shape = scope["app"].state.error_shapes.get(scope["path"], openai_shape)
        return JSONResponse(shape(self), self.status_code, self.headers)


Shape = Callable[[ApiError], dict[str, Any]]


def openai_shape(error: ApiError) -> dict[str, Any]:
    """The body of an error as OpenAI writes it."""
    kind = TYPES.get(error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def api_error(error: Exception, fields: Collection[str] = ()) -> ApiError:
    """Any exception as an ApiError; what the request did not cause is a 500 that says nothing about our inside.
    `fields`: those that the request may have, for hints about unknown ones."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(400, str(error), param=_param_of(str(error)))
    if isinstance(error, EngineBusy):
        return busy(error)
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors(), error.body, fields)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    return ApiError(500, "the server failed while answering; its log says why", code="internal_error")


def busy(error: EngineBusy) -> ApiError:
    """429 for a full queue, 503 for an engine that takes nothing any more."""
    wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if getattr(error, "draining", False):
        return ApiError(503, "the server is shutting down; ask another one", code="draining", headers=wait)
    message = f"{error}; try again in {wait['Retry-After']} s" if str(error) else "too many requests are waiting"
    return ApiError(429, message, code="queue_full", headers=wait)


def install(app: FastAPI, shapes: Mapping[str, Shape]) -> None:
    """Every error of the app as a response. `shapes`: for routes of APIs that write errors in their own way."""
    app.state.error_shapes = shapes

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return api_error(error, _fields_of(request)).response(request.scope)

    for kind in (HTTPException, RequestValidationError, UserError, EngineBusy):
        app.add_exception_handler(kind, handle)


def _fields_of(request: Request) -> Collection[str]:
    """The fields that the body of this route may have."""
    body = getattr(request.scope.get("route"), "body_field", None)
    model = None if body is None else body.field_info.annotation
    return getattr(model, "model_fields", ())


MOST_READ, MOST_NAMED = 32, 5  # of a request's mistakes: a body can hold a million
# The fields that a UserError of the engine can be about, as its messages begin.
_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "seed", "n", "logprobs", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logit_bias", "tools", "regex", "lark",
)  # fmt: skip


def _param_of(message: str) -> str | None:
    """The field that a UserError names first, if it is one of the request."""
    words = message.replace(":", " ").split()
    if words[:1] == ["message"] or words[:2] == ["the", "messages"] or words[:1] == ["messages"]:
        return "messages"
    if words[:1] == ["tool"]:
        return "tools"
    return next((field for field in _FIELDS if words[:1] == [field]), None)


def _invalid(errors: Sequence[Any], body: Any, fields: Collection[str]) -> ApiError:
    """The most telling of pydantic's complaints: unknown fields first, then the one that is deepest in the request."""
    if errors and errors[0]["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {errors[0]['ctx']['error']}", code="invalid_json")
    found = [(_path(error, body), error) for error in errors[:MOST_READ]]
    wrong_kind = {_parent(path) for path, error in found if error["type"] == "literal_error" and path.endswith(".type")}
    found = [(path, e) for path, e in found if path.endswith(".type") or _parent(path) not in wrong_kind]
    unknown = [path for path, error in found if error["type"] == "extra_forbidden"]
    if unknown:
        return ApiError(
            400, _unknown(unknown, fields, len(errors) <= MOST_READ), param=unknown[0], code="unknown_field"
        )
    param = max((path for path, _ in found), key=lambda path: path.count(".") + path.count("["), default="")
    said = list(dict.fromkeys(_words(error) for path, error in found if path == param))
    if not param:
        return ApiError(400, f"the body must be a JSON object ({'; or '.join(said)})", code="invalid_body")
    return ApiError(400, f"{param}: {'; or '.join(said)}", param=param, code="invalid_value")


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _unknown(names: list[str], fields: Collection[str], all_read: bool) -> str:
    more = len(names) - MOST_NAMED
    names = [name if len(name) <= 60 else f"{name[:60]}..." for name in names[:MOST_NAMED]]
    hints = [difflib.get_close_matches(name, list(fields), n=1, cutoff=0.8) for name in names]
    listed = [f"{name} (did you mean {hint[0]}?)" if hint else name for name, hint in zip(names, hints, strict=True)]
    plural = "s" if len(names) > 1 else ""
    rest = "" if more <= 0 else f" and {more} more" if all_read else " and more"
    return f"unknown field{plural}: {', '.join(listed)}{rest}; leave out what this server does not know"


def _path(error: Any, body: Any) -> str:
    """`messages[0].content` of a complaint's location, without the names that pydantic gives to alternatives."""
    path, value = "", body
    location = [part for part in error["loc"] if part != "body"]
    if error["type"] == "refused":
        location.append(error["ctx"]["param"])
    for i, part in enumerate(location):
        last = i == len(location) - 1
        if isinstance(value, dict) and part == value.get("type") and isinstance(value.get(part), str) and not last:
            continue  # the name of an alternative that is also a field of it: {"type": "text", "text": ...}
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or (last and error["type"] == "missing")):
            path, value = (f"{path}.{part}" if path else str(part)), value.get(part)
    return path


def _words(error: Any) -> str:
    if error["type"] == "union_tag_invalid":
        return f"{error['ctx']['tag']!r} is not supported; use one of {error['ctx']['expected_tags']}"
    if error["type"] == "missing":
        return "this field is required"
    return str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "it must be")
