"""A request of Anthropic's as a ChatJob."""

from __future__ import annotations

from fathom.engine.grammar import Grammar
from fathom.engine.params import SamplingParams
from fathom.server.adapted import check_tools_size, function_tool, schema_grammar
from fathom.server.anthropic_turns import chat_messages
from fathom.server.errors import ApiError
from fathom.server.prepare import ChatJob
from fathom.server.schemas.anthropic import (
    CountRequest,
    MessagesRequest,
    NoChoice,
    ThinkingEnabled,
    ToolNameChoice,
)
from fathom.server.served import Served
from fathom.server.tool_choice import ToolChoice

FIELDS = {"response_format": "output_config.format.schema"}
"""Fields of OpenAI's that an error about the job may name, and Anthropic's names for them."""


def job_of(body: CountRequest, served: Served) -> ChatJob:
    """Everything but the thought's budget, which `budget_of` gives."""
    tools = [
        function_tool(tool.name, tool.description, tool.input_schema, bool(tool.strict)) for tool in body.tools or ()
    ]
    return ChatJob(
        messages=chat_messages(body.system, body.messages),
        params=_params(body, served),
        tools=check_tools_size(tools),
        choice=_choice(body),
        thinking=None if body.thinking is None else body.thinking.type != "disabled",
    )


def budget_of(body: MessagesRequest) -> int | None:
    """How many tokens the thought may have."""
    if not isinstance(body.thinking, ThinkingEnabled):
        return None
    budget, param = body.thinking.budget_tokens, "thinking.budget_tokens"
    if budget >= body.max_tokens:
        message = f"{param} is {budget}; it must be less than max_tokens ({body.max_tokens}), which counts thoughts too"
        raise ApiError(400, message, param=param)
    return budget


def _params(body: CountRequest, served: Served) -> SamplingParams:
    grammar = _grammar(body)
    if not isinstance(body, MessagesRequest):
        return SamplingParams(grammar=grammar)
    asked = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    return served.llm.sampling.replace(
        **{name: value for name, value in asked.items() if value is not None},
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
        grammar=grammar,
    )


def _grammar(body: CountRequest) -> Grammar | None:
    if body.output_config is None or body.output_config.format is None:
        return None
    return schema_grammar(body.output_config.format.schema_, FIELDS["response_format"])


def _choice(body: CountRequest) -> ToolChoice:
    choice = body.tool_choice
    if choice is None:
        return ToolChoice()
    if isinstance(choice, NoChoice):
        return ToolChoice("none")
    parallel = not choice.disable_parallel_tool_use
    if isinstance(choice, ToolNameChoice):
        return ToolChoice("required", (choice.name,), parallel)
    return ToolChoice("required" if choice.type == "any" else "auto", None, parallel)
