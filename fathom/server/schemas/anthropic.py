"""The requests of POST /v1/messages and /v1/messages/count_tokens: all of Anthropic's fields, honoured or refused.

No effect by their definition: metadata.user_id (names somebody), cache_control (it marks what to cache; the prefix
cache here is automatic, keeps what it has room for, and ttl buys nothing), service_tier, speed: standard,
output_config.effort: high and thinking.display: summarized (the defaults), a tool's allowed_callers: ["direct"] and
eager_input_streaming: false.

A thinking block's signature proves nothing here (ours is one fixed word) and is not checked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fathom.server.limits import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS
from fathom.server.schemas.common import StopString, Strict, refuse
from fathom.server.schemas.messages import MAX_PARTS

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
CallId = Annotated[str, Field(min_length=1, max_length=256)]

REFUSED = {
    "container": "this server runs no containers; leave container out",
    "context_management": "this server edits no conversation; send the one that the model is to read",
    "diagnostics": "this server keeps no earlier requests to compare with; leave diagnostics out",
    "inference_geo": "this server is where it is; leave inference_geo out",
    "mcp_servers": "this server calls no others; leave mcp_servers out and define tools",
    "output_format": "this is the old name of output_config.format; send that",
    "user_profile_id": "this server has no profiles; leave user_profile_id out",
    "workspace_id": "this server has no workspaces; leave workspace_id out",
}


class CacheControl(Strict):
    """Where to cache; harmless, because every prefix is cached anyway."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(Strict):
    """A thought, as an answer of ours gave it."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class DirectCaller(Strict):
    type: Literal["direct"]


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: CallId
    name: ToolName
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: None = None


class ToolResultBlock(Strict):
    type: Literal["tool_result"]
    tool_use_id: CallId
    content: str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS)] | None = None
    is_error: bool | None = None
    """The model reads `Error: ` before the content: chat formats have no other place for it."""
    cache_control: CacheControl | None = None
    toolset_name: None = None


UserBlock = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]


class UserTurn(Strict):
    role: Literal["user"]
    content: str | Annotated[list[UserBlock], Field(min_length=1, max_length=MAX_PARTS)]


class AssistantTurn(Strict):
    role: Literal["assistant"]
    content: str | Annotated[list[AssistantBlock], Field(min_length=1, max_length=MAX_PARTS)]


Turn = Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]


class CustomTool(Strict):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    """The input of every call fits the schema."""
    cache_control: CacheControl | None = None
    allowed_callers: Annotated[list[Literal["direct"]], Field(max_length=1)] | None = None
    defer_loading: Literal[False] | None = None
    eager_input_streaming: Literal[False] | None = None
    """The input of a call comes in one piece, once it is known to be one."""

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type") not in (None, "custom"):
            why = (
                f"{str(values['type'])[:80]!r} is not a custom tool; this server runs none itself, define custom tools"
            )
            raise PydanticCustomError("refused", "{why}", {"param": "type", "why": why})
        return refuse(values, {"input_examples": "chat formats have no place for them; write them into description"})


class _MayCallSeveral(Strict):
    disable_parallel_tool_use: bool | None = None


class AutoChoice(_MayCallSeveral):
    type: Literal["auto"]


class AnyChoice(_MayCallSeveral):
    type: Literal["any"]


class ToolNameChoice(_MayCallSeveral):
    type: Literal["tool"]
    name: str


class NoChoice(Strict):
    type: Literal["none"]


Choice = Annotated[AutoChoice | AnyChoice | ToolNameChoice | NoChoice, Field(discriminator="type")]


class ThinkingEnabled(Strict):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1, le=2**31)]
    """The thought ends after this many tokens at the latest. Less than max_tokens; Anthropic's minimum is 1024."""
    display: Literal["summarized"] | None = None
    """The thought comes as the model wrote it."""


class ThinkingAdaptive(Strict):
    """A thought, as long as the model likes."""

    type: Literal["adaptive"]
    display: Literal["summarized"] | None = None


class ThinkingDisabled(Strict):
    type: Literal["disabled"]


Thinking = Annotated[ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled, Field(discriminator="type")]


class JsonFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: Literal["high"] | None = None
    """This model has one effort; how much it thinks is up to `thinking`."""
    format: JsonFormat | None = None
    """The text of the answer fits the schema."""


class CountRequest(Strict):
    """What a conversation consists of."""

    model: str
    """The id that /v1/models lists."""
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    """Turns of one role in a row count as one. The last one is the user's: an answer cannot be begun for the model."""
    system: str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS)] | None = None
    tools: Annotated[list[CustomTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    """Templates that know thinking."""
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    speed: Literal["standard"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, values: Any) -> Any:
        return refuse(values, REFUSED)


class RequestMetadata(Strict):
    user_id: Annotated[str, Field(max_length=512)] | None = None


class MessagesRequest(CountRequest):
    """A conversation to be answered."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31)]
    """Longest answer, thoughts included."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """Left out: what the checkpoint recommends (generation_config.json), else 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
