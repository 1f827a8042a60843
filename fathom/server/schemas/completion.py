"""The requests of POST /v1/completions, /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from fathom.server.limits import MAX_MESSAGES, MAX_PROMPTS, MAX_TOOLS, MAX_TOP_LOGPROBS
from fathom.server.schemas.chat import Tool
from fathom.server.schemas.common import SamplingFields, Strict, refuse
from fathom.server.schemas.messages import ChatMessage

TokenId = Annotated[int, Field(ge=0, le=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
ManyTokenIds = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]


class CompletionRequest(SamplingFields):
    """A text to be continued: one text, several, token ids, or several lists of token ids."""

    prompt: str | Texts | TokenIds | ManyTokenIds
    """Of a text control tokens are recognised, and the begin token is put in front; ids are used as they are."""
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = 16
    """Longest answer; null: as far as the context goes; 0 only with echo."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    """The prompt comes back before the answer, with logprobs of its own if they are asked for."""
    suffix: str | None = None
    """What follows the gap that the answer fills (tokenizers with FIM tokens)."""
    best_of: Annotated[int, Field(ge=1)] | None = None
    """Only as many as n: this server gives back every sample it draws."""

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("best_of") == (values.get("n") or 1):
            values = {**values, "best_of": None}
        why = "this server gives back every sample it draws; ask for n and choose"
        return refuse(values, {"best_of": why})


class TokenizeRequest(Strict):
    """A text or a conversation to be counted."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    """For a prompt: the begin token in front, as /v1/completions has it."""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    thinking: bool = False
    add_generation_prompt: bool = True


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[TokenId]
