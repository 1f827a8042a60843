"""A chat request of OpenAI's as a ChatJob. Whatever contradicts itself is refused."""

from __future__ import annotations

import json

from fathom.engine.grammar import Grammar
from fathom.engine.params import SamplingParams
from fathom.server.adapted import check_tools_size
from fathom.server.errors import ApiError
from fathom.server.limits import MAX_SCHEMA_CHARS
from fathom.server.params import sampling_params
from fathom.server.prepare import ChatJob
from fathom.server.schemas.chat import AllowedToolChoice, ChatRequest, JsonSchemaFormat, NamedTool
from fathom.server.schemas.messages import message_dicts
from fathom.server.served import Served
from fathom.server.tool_choice import ToolChoice


def job_of(body: ChatRequest, served: Served) -> ChatJob:
    """See above."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        message = f"max_tokens is {body.max_tokens} and max_completion_tokens {body.max_completion_tokens}"
        raise ApiError(400, f"{message}; they are two names of one limit, give one", param="max_tokens")
    params = sampling_params(
        body,
        served.llm.sampling,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        inside=bool(body.inside),
    )
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    return ChatJob(
        messages=message_dicts(body.messages),
        params=_with_format(body, params),
        tools=check_tools_size(tools),
        choice=_tool_choice(body),
        thinking=_thinking(body, served),
        priority=body.priority or 0,
    )


def _with_format(body: ChatRequest, params: SamplingParams) -> SamplingParams:
    """response_format as a grammar."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return params
    if params.grammar is not None:
        message = "response_format and regex or lark both constrain the answer; give one of them"
        raise ApiError(400, message, param="response_format")
    if not isinstance(wanted, JsonSchemaFormat):
        return params.replace(grammar=Grammar("json_object"))
    param = "response_format.json_schema.schema"
    try:
        text = json.dumps(wanted.json_schema.schema_, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ApiError(400, f"{param} holds a number that is too large for JSON; correct it", param=param) from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise ApiError(400, f"{param} has {len(text)} characters, the limit is {MAX_SCHEMA_CHARS}", param=param)
    return params.replace(grammar=Grammar("json_schema", text))


def _tool_choice(body: ChatRequest) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        return ToolChoice("required", (choice.function.name,), parallel=False)
    if isinstance(choice, AllowedToolChoice):
        names = tuple(tool.function.name for tool in choice.allowed_tools.tools)
        return ToolChoice(choice.allowed_tools.mode, names, parallel)
    return ToolChoice(choice or "auto", None, parallel)


def _thinking(body: ChatRequest, served: Served) -> bool | None:
    """thinking, chat_template_kwargs and reasoning_effort say the same thing; they may not contradict each other."""
    kwargs = body.chat_template_kwargs
    said = {"thinking": body.thinking}
    if kwargs is not None:
        said |= {f"chat_template_kwargs.{name}": getattr(kwargs, name) for name in ("thinking", "enable_thinking")}
    if body.reasoning_effort in ("none", "minimal"):
        said["reasoning_effort"] = False
    elif body.reasoning_effort is not None and served.facts.knows_thinking:
        said["reasoning_effort"] = True
    given = {name: value for name, value in said.items() if value is not None}
    if len(set(given.values())) > 1:
        words = ", ".join(f"{name} {'on' if value else 'off'}" for name, value in given.items())
        raise ApiError(400, f"the request turns thinking on and off ({words}); say it once", param=next(iter(given)))
    return next(iter(given.values()), None)
