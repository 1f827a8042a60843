"""Answers of /v1/messages as models, for the OpenAPI document alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorObject(BaseModel):
    type: str
    message: str


class MessagesError(BaseModel):
    type: Literal["error"]
    error: ErrorObject


MESSAGES_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": MessagesError, "description": "invalid_request_error: the message names the field"},
    401: {"model": MessagesError, "description": "authentication_error"},
    403: {"model": MessagesError, "description": "permission_error: wrong Host header"},
    404: {"model": MessagesError, "description": "not_found_error: no such model"},
    408: {"model": MessagesError, "description": "invalid_request_error: the body stopped coming"},
    413: {"model": MessagesError, "description": "request_too_large"},
    415: {"model": MessagesError, "description": "invalid_request_error: the body is not application/json"},
    429: {"model": MessagesError, "description": "rate_limit_error: the queue is full; see Retry-After"},
    503: {"model": MessagesError, "description": "overloaded_error: the server is shutting down"},
}


class ContentBlock(BaseModel):
    """`text` with text, `thinking` with thinking and signature, or `tool_use` with id, name and input."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    citations: None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class OutputTokensDetails(BaseModel):
    thinking_tokens: int


class MessageUsage(BaseModel):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    service_tier: Literal["standard"]


class Message(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: MessageUsage


class TokensCount(BaseModel):
    input_tokens: int
