"""What the requests share. Nothing is converted, nothing unknown is let through, null means left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fathom.server.limits import (
    MAX_LOGIT_BIAS,
    MAX_METADATA,
    MAX_N,
    MAX_PRIORITY,
    MAX_SCHEMA_CHARS,
    MAX_STOP_CHARS,
    MAX_STOPS,
)

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_SCHEMA_CHARS)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=MAX_METADATA)
]


class Strict(BaseModel):
    """No conversions ("1" is not 1), no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def refuse(values: Any, refused: Mapping[str, str]) -> Any:
    """Fields of OpenAI's that this server cannot honour: one with a value is an error that says so; null is nothing."""
    if not isinstance(values, dict):
        return values
    for name, why in refused.items():
        if values.get(name) is not None:
            raise PydanticCustomError("refused", "{why}", {"param": name, "why": why})
    return {name: value for name, value in values.items() if name not in refused}


class StreamOptions(Strict):
    include_usage: bool | None = None
    """One more chunk at the end, with empty choices and the usage."""
    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers who measure chunks is not offered."""


class SamplingFields(Strict):
    """Sampling as OpenAI names it, then our own (`top_k` to `priority`). See `fathom.SamplingParams`."""

    model: str
    """The id that /v1/models lists."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 is greedy. Left out: what the checkpoint recommends (generation_config.json), else 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Left out: what the checkpoint recommends, else 1. So it is with top_k, min_p and repetition_penalty."""
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    """With it an answer is the same every time, whatever else the server does."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIAS)] | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """A name for the person who asks; it has no effect on the answer and is not stored."""

    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    ignore_eos: bool | None = None
    """Go on after the model's end token."""
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    """Smaller runs first; 0 if left out."""
    regex: GrammarText | None = None
    """The answer matches this pattern."""
    lark: GrammarText | None = None
    """The answer fits this Lark grammar."""

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "refused", "{why}", {"param": "stream_options", "why": "only a request with stream: true has these"}
            )
        return self

    @field_validator("stop")
    @classmethod
    def _list(cls, value: str | list[str] | None) -> list[str] | None:
        return [value] if isinstance(value, str) else value
