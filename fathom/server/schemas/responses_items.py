"""Items of a /v1/responses input, as clients write them and as our answers give them.

message                 role, content; `type` may be left out
reasoning               a thought, in `content`
function_call           what the model called
function_call_output    what came of it
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fathom.server.schemas.common import Strict, refuse
from fathom.server.schemas.messages import MAX_PARTS

Status = Literal["in_progress", "completed", "incomplete"]
Phase = Literal["commentary", "final_answer"]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class InputText(Strict):
    type: Literal["input_text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        return refuse(values, {"prompt_cache_breakpoint": "the prefix cache needs no breakpoints; leave it out"})


class OutputText(Strict):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None
    """Of the answer that this was; the model does not read them."""


class Refusal(Strict):
    type: Literal["refusal"]
    refusal: str


InputTexts = str | Annotated[list[InputText], Field(min_length=1, max_length=MAX_PARTS)]
AssistantPart = Annotated[OutputText | Refusal | InputText, Field(discriminator="type")]


class InputMessage(Strict):
    type: Literal["message"] | None = None
    role: Literal["user", "system", "developer"]
    content: InputTexts
    status: Status | None = None
    phase: Phase | None = None


class AssistantItem(Strict):
    type: Literal["message"] | None = None
    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(min_length=1, max_length=MAX_PARTS)]
    id: str | None = None
    status: Status | None = None
    phase: Phase | None = None


class DirectCaller(Strict):
    type: Literal["direct"]


class FunctionCall(Strict):
    type: Literal["function_call"]
    call_id: CallId
    name: str
    arguments: str
    """A JSON object as text."""
    id: str | None = None
    status: Status | None = None
    caller: DirectCaller | None = None
    namespace: None = None
    async_: Literal[False] | None = Field(default=None, alias="async")


class FunctionCallOutput(Strict):
    type: Literal["function_call_output"]
    call_id: CallId
    output: InputTexts
    name: str | None = None
    id: str | None = None
    status: Status | None = None
    caller: DirectCaller | None = None
    namespace: None = None


class ReasoningText(Strict):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Strict):
    type: Literal["reasoning"]
    content: Annotated[list[ReasoningText], Field(max_length=MAX_PARTS)] | None = None
    summary: Annotated[list[Any], Field(max_length=0)] | None = None
    encrypted_content: None = None
    id: str | None = None
    status: Status | None = None


def _kind(item: Any) -> str | None:
    """What an item is; `type` may be missing only where there is a role."""
    given = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    role = item.get("role") if isinstance(item, dict) else getattr(item, "role", None)
    if given in (None, "message") and role is not None:
        return "assistant" if role == "assistant" else "message"
    return given if isinstance(given, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[AssistantItem, Tag("assistant")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="an item is a message, reasoning, function_call or function_call_output",
    ),
]
