"""Responses as models: for the OpenAPI document alone, answers are written as plain dictionaries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The request is wrong; `param` names the field"},
    401: {"model": Error, "description": "No valid API key"},
    403: {"model": Error, "description": "Wrong Host header"},
    404: {"model": Error, "description": "No such model"},
    413: {"model": Error, "description": "The body is too large"},
    415: {"model": Error, "description": "The body is not application/json"},
    408: {"model": Error, "description": "The body stopped coming"},
    429: {"model": Error, "description": "The queue is full; see Retry-After"},
    503: {"model": Error, "description": "The server is shutting down"},
}


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class FathomUsage(BaseModel):
    time_to_first_token: float
    tokens_per_second: float
    queue_seconds: float
    context_used: int
    context_limit: int
    drafted: int
    accepted: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    fathom: FathomUsage


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatLogprob]
    refusal: None


class InsideToken(BaseModel):
    id: int
    text: str
    drafted: bool
    experts: list[list[int]]


class Inside(BaseModel):
    tokens: list[InsideToken]


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    fathom: Inside | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    service_tier: str | None = None
    choices: list[ChatChoice]
    usage: Usage
    metadata: dict[str, str] | None = None


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class Sampling(BaseModel):
    """What a request gets that leaves the field out."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int | None


class FathomModel(BaseModel):
    max_model_len: int
    thinking: bool
    format: str
    moe_layers: int
    experts: int
    experts_per_token: int
    mtp_depth: int
    dtype: str
    default: Sampling
    starters: list[str]
    """Things to say to the model, from its card."""


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    fathom: FathomModel


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Tokens(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizedText(BaseModel):
    prompt: str


class Health(BaseModel):
    status: Literal["ok", "draining"]


class Version(BaseModel):
    version: str
