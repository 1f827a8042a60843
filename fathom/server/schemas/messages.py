"""Messages of a chat request, in OpenAI's shape. `message_dicts` gives what fathom/text/chat_messages.py takes.

Given back by us and accepted from clients that send our answers again: null or empty refusal, audio, annotations,
function_call. A refusal with text is what the assistant said, and is read as its content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fathom.server.limits import MAX_TOOLS
from fathom.server.schemas.common import Strict, refuse

MAX_PARTS = 1024

_PART_REFUSED = {"prompt_cache_breakpoint": "the prefix cache is always on and needs no breakpoints; leave it out"}


class TextPart(Strict):
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        return refuse(values, _PART_REFUSED)


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str


Text = str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class UserMessage(Strict):
    role: Literal["user"]
    content: Text
    name: str | None = None


class CalledFunction(Strict):
    name: str
    arguments: str
    """A JSON object as text."""


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: str | Annotated[list[AssistantPart], Field(min_length=1, max_length=MAX_PARTS)] | None = None
    reasoning_content: str | None = None
    """The thought before the answer; the chat template decides where it still counts."""
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        return refuse(
            values,
            {
                "audio": "this model reads text only; leave audio out",
                "function_call": "this is the old form of tool_calls; send tool_calls",
            },
        )


class ToolMessage(Strict):
    role: Literal["tool"]
    content: Text
    tool_call_id: str
    name: str | None = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def message_dicts(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Plain messages for the chat template: `developer` is `system`, empty fields are gone."""
    result = []
    for message in messages:
        plain = message.model_dump(exclude_none=True)
        if plain["role"] == "developer":
            plain["role"] = "system"
        if plain["role"] == "assistant":
            _assistant(plain)
        result.append(plain)
    return result


def _assistant(plain: dict[str, Any]) -> None:
    plain.pop("annotations", None)
    refusal = plain.pop("refusal", None)
    if plain.get("content") is None and refusal is not None:
        plain["content"] = refusal
    if isinstance(plain.get("content"), list):
        parts = plain["content"]
        plain["content"] = [{"type": "text", "text": part.get("text", part.get("refusal"))} for part in parts]
    if not plain.get("tool_calls"):
        plain.pop("tool_calls", None)
