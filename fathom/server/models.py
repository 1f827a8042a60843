"""The small routes: /v1/models, /tokenize, /detokenize, /health, /metrics, /version."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from fathom import __version__
from fathom.runtime import UserError
from fathom.server.errors import ApiError
from fathom.server.json_body import JsonRoute
from fathom.server.prepare import check_length, check_names
from fathom.server.schemas.completion import DetokenizeRequest, TokenizeRequest
from fathom.server.schemas.messages import message_dicts
from fathom.server.schemas.responses import ERRORS, DetokenizedText, Health, Model, ModelList, Tokens, Version
from fathom.server.served import Served, served_of

router = APIRouter(route_class=JsonRoute)
_READ_ERRORS: dict[int | str, dict[str, Any]] = {code: ERRORS[code] for code in (401, 403, 503)}
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
Shared = Annotated[Served, Depends(served_of)]


@router.get("/v1/models", summary="The model of this server", responses={200: {"model": ModelList}, **_READ_ERRORS})
async def models(served: Shared) -> Response:
    """One entry; `fathom` says what a client may want to know of it."""
    return JSONResponse({"object": "list", "data": [served.model_card()]})


@router.get(
    "/v1/models/{model:path}",
    summary="One model",
    responses={200: {"model": Model}, 404: ERRORS[404], **_READ_ERRORS},
)
async def model(model: str, served: Shared) -> Response:
    """By its id."""
    served.check_model(model)
    return JSONResponse(served.model_card())


@router.post("/tokenize", summary="Count tokens", responses={200: {"model": Tokens}, **ERRORS})
async def tokenize(body: TokenizeRequest, served: Shared) -> Response:
    """Of a prompt or of messages, exactly as the two completions routes would see them."""
    served.check_model(body.model)
    ids = await run_in_threadpool(_token_ids, served, body)
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": served.llm.max_model_len})


@router.post("/detokenize", summary="Text of tokens", responses={200: {"model": DetokenizedText}, **ERRORS})
async def detokenize(body: DetokenizeRequest, served: Shared) -> Response:
    """Special tokens (begin, end) have no text."""
    served.check_model(body.model)
    rows = served.llm.model.config.vocab_size
    outside = next((i for i in body.tokens if i >= rows), None)
    if outside is not None:
        raise ApiError(400, f"tokens holds {outside}; the vocabulary ends at {rows - 1}", param="tokens")
    known = [i for i in body.tokens if i < served.llm.tokenizer.vocab_size]
    return JSONResponse({"prompt": await run_in_threadpool(served.llm.tokenizer.decode, known)})


@router.get(
    "/health",
    summary="Alive?",
    responses={200: {"model": Health}, 503: {"model": Health, "description": "Shutting down"}, 403: ERRORS[403]},
)
async def health(served: Shared) -> Response:
    """ok, or 503 and draining once the server is told to end. Needs no key."""
    if served.state.draining:
        return JSONResponse({"status": "draining"}, 503)
    return JSONResponse({"status": "ok"})


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, 401: ERRORS[401], 403: ERRORS[403]},
)
async def metrics(served: Shared) -> Response:
    """See metrics.py for what they mean."""
    return Response(served.metrics.text(), headers={"content-type": PROMETHEUS})


@router.get("/version", summary="Version of the server", responses={200: {"model": Version}, **_READ_ERRORS})
async def version() -> Response:
    """Of Fathom."""
    return JSONResponse({"version": __version__})


def _token_ids(served: Served, body: TokenizeRequest) -> list[int]:
    llm = served.llm
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give prompt or messages, one of them", param="prompt")
    if body.prompt is not None:
        for name, without in (("tools", None), ("thinking", False), ("add_generation_prompt", True)):
            if getattr(body, name) != without:
                raise ApiError(400, f"{name} goes with messages, not with a prompt", param=name)
        check_length(llm, body.prompt, "prompt")
        return llm.tokenizer.encode(body.prompt, add_bos=body.add_special_tokens)
    if not body.add_special_tokens:
        raise ApiError(400, "add_special_tokens goes with a prompt, not with messages", param="add_special_tokens")
    if llm.template is None:
        raise ApiError(400, "this model has no chat template; give a prompt", param="messages")
    messages = message_dicts(body.messages or ())
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    check_names(served.facts, messages)
    check_length(llm, repr(messages) + repr(tools), "messages")
    if body.thinking and not served.facts.knows_thinking:
        raise ApiError(400, "this model's chat template knows no thinking; leave it out", param="thinking")
    try:
        return llm.template.encode(
            llm.tokenizer, messages, tools=tools or None, thinking=body.thinking,
            add_generation_prompt=body.add_generation_prompt,
        )  # fmt: skip
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None
