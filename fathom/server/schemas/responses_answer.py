"""Answers of /v1/responses as models, for the OpenAPI document alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from fathom.server.schemas.responses import ChatLogprob, FathomUsage


class OutputPart(BaseModel):
    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[ChatLogprob] | None = None


class OutputItem(BaseModel):
    """`message` and `reasoning` with content, `function_call` with call_id, name and arguments."""

    type: Literal["message", "reasoning", "function_call"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] | None = None
    content: list[OutputPart] | None = None
    summary: list[Any] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    fathom: FathomUsage


class ResponseAnswer(BaseModel):
    """The fields of the request come back too, as they were understood."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    store: Literal[False]
    model: str
    output: list[OutputItem]
    incomplete_details: dict[str, str] | None
    error: None
    usage: ResponseUsage
    metadata: dict[str, str]
