"""A request of the Responses API as a ChatJob."""

from __future__ import annotations

from fathom.engine.grammar import Grammar
from fathom.server.adapted import check_tools_size, function_tool, schema_grammar
from fathom.server.errors import ApiError
from fathom.server.prepare import ChatJob
from fathom.server.responses_input import chat_messages
from fathom.server.schemas.responses_request import AllowedChoice, FunctionChoice, ResponsesRequest, SchemaFormat
from fathom.server.served import Served
from fathom.server.tool_choice import ToolChoice

FIELDS = {"messages": "input", "response_format": "text.format.schema", "thinking": "reasoning.effort"}
"""Fields of /v1/chat/completions that an error about the job may name, and their names here."""


def job_of(body: ResponsesRequest, served: Served) -> ChatJob:
    """See above."""
    if body.top_logprobs is not None and not body.include:
        message = 'top_logprobs needs include: ["message.output_text.logprobs"]'
        raise ApiError(400, message, param="top_logprobs")
    tools = [
        function_tool(tool.name, tool.description, tool.parameters, bool(tool.strict)) for tool in body.tools or ()
    ]
    return ChatJob(
        messages=chat_messages(body.instructions, body.input),
        params=served.llm.sampling.replace(
            temperature=temperature_of(body, served),
            top_p=top_p_of(body, served),
            max_tokens=served.llm.sampling.max_tokens if body.max_output_tokens is None else body.max_output_tokens,
            logprobs=(body.top_logprobs or 0) if body.include else None,
            grammar=_grammar(body),
        ),
        tools=check_tools_size(tools),
        choice=_choice(body),
        thinking=_thinking(body, served),
    )


def temperature_of(body: ResponsesRequest, served: Served) -> float:
    """What counts, whoever said it."""
    return served.llm.sampling.temperature if body.temperature is None else body.temperature


def top_p_of(body: ResponsesRequest, served: Served) -> float:
    return served.llm.sampling.top_p if body.top_p is None else body.top_p


def _grammar(body: ResponsesRequest) -> Grammar | None:
    wanted = None if body.text is None else body.text.format
    if wanted is None or wanted.type == "text":
        return None
    if isinstance(wanted, SchemaFormat):
        return schema_grammar(wanted.schema_, FIELDS["response_format"])
    return Grammar("json_object")


def _choice(body: ResponsesRequest) -> ToolChoice:
    parallel, choice = body.parallel_tool_calls is not False, body.tool_choice
    if isinstance(choice, FunctionChoice):
        return ToolChoice("required", (choice.name,), parallel=False)
    if isinstance(choice, AllowedChoice):
        return ToolChoice(choice.mode, tuple(tool.name for tool in choice.tools), parallel)
    return ToolChoice(choice or "auto", None, parallel)


def _thinking(body: ResponsesRequest, served: Served) -> bool | None:
    effort = None if body.reasoning is None else body.reasoning.effort
    if effort in ("none", "minimal"):
        return False
    return True if effort is not None and served.facts.knows_thinking else None
