"""The request of POST /v1/chat/completions: all of OpenAI's fields, honoured or refused, and ours.

No effect by their definition (they name, store nothing, or tune a cache that is always on): user, safety_identifier,
metadata (given back), store: false, prompt_cache_key, prompt_cache_retention: in_memory, service_tier: auto or
default, verbosity: medium, modalities: ["text"].
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fathom.server.limits import MAX_MESSAGES, MAX_TOOLS, MAX_TOP_LOGPROBS
from fathom.server.schemas.common import Metadata, SamplingFields, Strict, refuse
from fathom.server.schemas.messages import ChatMessage

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]

REFUSED = {
    "audio": "this model writes text only; leave audio out",
    "function_call": "this is the old form of tool_choice; send tools and tool_choice",
    "functions": "this is the old form of tools; send tools and tool_choice",
    "moderation": "this server has no moderation model; leave moderation out",
    "prediction": "a predicted output has no use here (drafts come from the model's own MTP module); leave it out",
    "prompt_cache_options": "the prefix cache is always on and has no options; leave them out",
    "web_search_options": "this server searches nothing; leave web_search_options out",
}


class FunctionDefinition(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of the arguments."""
    strict: bool | None = None
    """The arguments of every call fit `parameters`."""


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionRef(Strict):
    name: FunctionName


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionRef


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolObject = Annotated[NamedTool | AllowedToolChoice, Field(discriminator="type")]


class JsonSchema(Strict):
    name: FunctionName
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """The answer fits the schema in either case."""

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        why = "only the schema reaches the model, as a constraint; put the description into a message"
        return refuse(values, {"description": why})


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class TemplateKwargs(Strict):
    """For the chat template, as other servers name it."""

    thinking: bool | None = None
    enable_thinking: bool | None = None


class ChatRequest(SamplingFields):
    """A conversation to be answered."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Longest answer, thoughts included. Left out: as far as the context goes."""
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """The old name of max_completion_tokens."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolObject | None = None
    """auto: text, calls or both; none: no calls; required or a function: calls that fit it; allowed_tools: of these."""
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """none and minimal: no thought; the others: a thought, where the chat template knows thinking."""
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None
    metadata: Metadata | None = None
    """Given back with the answer."""
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None

    thinking: bool | None = None
    """Let the model think first (templates that know thinking)."""
    chat_template_kwargs: TemplateKwargs | None = None
    inside: bool | None = None
    """Also report, per token, its text, whether MTP drafted it and which experts made it (`fathom` in each choice)."""

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        return refuse(values, REFUSED)
