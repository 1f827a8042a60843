"""The request of POST /v1/responses: all of OpenAI's fields, honoured or refused.

The route keeps nothing: whatever `store` asks for, the answer says `store: false`, and what would need a stored
response (previous_response_id, conversation, background, item references) is refused. A conversation goes on by
sending its items again, thoughts included: they come in the clear.

No effect by their definition: user, safety_identifier and metadata (given back), prompt_cache_key,
prompt_cache_retention: in_memory, service_tier: auto or default, text.verbosity: medium, truncation: disabled,
reasoning.context: auto, a tool's allowed_callers: ["direct"]; ids, status and phase of items that come back to us.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fathom.server.limits import MAX_MESSAGES, MAX_TOOLS, MAX_TOP_LOGPROBS
from fathom.server.schemas.chat import FunctionName, JsonObjectFormat, TextFormat
from fathom.server.schemas.common import Metadata, Strict, refuse
from fathom.server.schemas.responses_items import InputItem

REFUSED = {
    "access_programs": "this server has no such programs; leave access_programs out",
    "background": "this server keeps no responses to fetch later; leave background out, or stream",
    "background_options": "this server keeps no responses to fetch later; leave background_options out",
    "context_management": "this server compacts nothing; send the items that the model is to read",
    "conversation": "this server keeps no conversations; send all their items as input",
    "image": "this model reads text only; leave image out",
    "max_tool_calls": "this counts calls of built-in tools, and this server has none; leave it out",
    "moderation": "this server has no moderation model; leave moderation out",
    "previous_response_id": "this server keeps no responses; send all items of the conversation as input",
    "prompt": "this server keeps no prompts; send instructions and input",
    "prompt_cache_options": "the prefix cache is always on and has no options; leave them out",
}


class FunctionTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of the arguments."""
    strict: bool | None = None
    """The arguments of every call fit `parameters`; left out: false."""
    allowed_callers: Annotated[list[Literal["direct"]], Field(max_length=1)] | None = None
    defer_loading: Literal[False] | None = None
    async_: Literal[False] | None = Field(default=None, alias="async")

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("type"), str) and values["type"] != "function":
            why = f"{values['type'][:80]!r} is not offered; this server has no tools of its own, define functions"
            raise PydanticCustomError("refused", "{why}", {"param": "type", "why": why})
        return refuse(values, {"output_schema": "chat formats have no place for it; write it into description"})


class FunctionChoice(Strict):
    type: Literal["function"]
    name: FunctionName


class AllowedChoice(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(min_length=1, max_length=MAX_TOOLS)]


Choice = Annotated[FunctionChoice | AllowedChoice, Field(discriminator="type")]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    name: FunctionName
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """The answer fits the schema in either case."""

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        why = "only the schema reaches the model, as a constraint; put the description into instructions"
        return refuse(values, {"description": why})


class TextConfig(Strict):
    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """none and minimal: no thought; the others: a thought, where the chat template knows thinking."""
    context: Literal["auto"] | None = None
    """The chat template decides which thoughts of the input the model reads again."""
    mode: Literal["standard"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        why = "thoughts are given whole, not in summary; leave it out"
        return refuse(values, {"summary": why, "generate_summary": why})


class ResponsesStreamOptions(Strict):
    include_obfuscation: Literal[False] | None = None
    """Padding against eavesdroppers who measure chunks is not offered."""


class ResponsesRequest(Strict):
    """Text, or the items of a conversation, to be answered."""

    model: str
    """The id that /v1/models lists."""
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    """A system message before the input."""
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Longest answer, thoughts included. Left out: as far as the context goes."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 is greedy. Left out: what the checkpoint recommends (generation_config.json), else 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=8)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """With include: ["message.output_text.logprobs"]."""
    stream: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: bool | None = None
    """Nothing is stored; the answer says so."""
    truncation: Literal["disabled"] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        if isinstance(values, dict):
            if values.get("background") is False:
                values = {**values, "background": None}
            include = values.get("include")
            if isinstance(include, list) and "reasoning.encrypted_content" in include:
                why = "thoughts come in the clear, as content of reasoning items; leave reasoning.encrypted_content out"
                raise PydanticCustomError("refused", "{why}", {"param": "include", "why": why})
        return refuse(values, REFUSED)

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> ResponsesRequest:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "refused", "{why}", {"param": "stream_options", "why": "only a request with stream: true has these"}
            )
        return self
