"""What a tool choice means for the prompt, for the constraint on the answer, and for reading it.

    choice      tools in the prompt   the answer                                               calls are
    none        yes                   the token that opens calls is banned                     not looked for
    auto        yes                   free; or any text, then calls that fit                   parsed
    required    yes                   nothing but calls, each fits its schema                  parsed

auto is constrained when something was promised about its calls: a strict tool, only some tools allowed, no parallel
calls. A JSON response_format is about the text of an answer: with auto the answer is JSON or calls, with required it
has no text. regex and lark are about the whole answer and do not go with tools that may be called.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fathom.engine.grammar_source import JSON_OPTIONS, Grammar
from fathom.engine.params import SamplingParams
from fathom.engine.tool_grammar import auto_tool_grammar, tool_call_grammar
from fathom.runtime import UserError
from fathom.server.errors import ApiError
from fathom.text.chat_tokens import CALLS_BEGIN
from fathom.text.tokenizer import Tokenizer

BAN = -100.0
Tool = dict[str, Any]


@dataclass(frozen=True)
class ToolChoice:
    """`names`: only these may be called, None: any. `parallel`: more than one call in an answer."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None
    parallel: bool = True


def checked_choice(choice: ToolChoice, tools: Sequence[Tool], format: str) -> ToolChoice:
    """The choice that counts: none without tools. What cannot be is refused."""
    names = [tool["function"]["name"] for tool in tools]
    if not names:
        if choice.mode == "required" or choice.names is not None:
            raise ApiError(400, "tool_choice asks for calls, but tools is empty; send tools", param="tool_choice")
        return ToolChoice("none")
    if format == "other":
        message = "this model's chat template writes calls in a form that this server cannot read; leave tools out"
        raise ApiError(400, message, param="tools")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, f"tools defines the function {twice!r} twice; give each a name of its own", param="tools")
    for name in choice.names or ():
        if name not in names:
            message = f"tool_choice names the function {name!r}; tools has {', '.join(names)}"
            raise ApiError(400, message, param="tool_choice")
    return choice


def constrained(
    params: SamplingParams, choice: ToolChoice, tools: Sequence[Tool], format: str, tokenizer: Tokenizer
) -> SamplingParams:
    """The sampling parameters with what the choice adds to them."""
    if not tools:
        return params
    if choice.mode == "none":
        begin = tokenizer.id_of(CALLS_BEGIN)
        return params if begin is None else params.replace(logit_bias={**params.logit_bias, begin: BAN})
    if params.grammar is not None and params.grammar.kind in ("regex", "lark"):
        kind = params.grammar.kind
        message = f"{kind} is about the whole answer, so it leaves no place for calls; use tool_choice none"
        raise ApiError(400, message, param=kind)
    callable_tools = [t for t in tools if choice.names is None or t["function"]["name"] in choice.names]
    try:
        grammar = _grammar(params.grammar, choice, callable_tools, format, tokenizer)
    except UserError as error:
        raise ApiError(400, str(error), param="tools") from None
    return params if grammar is None else params.replace(grammar=grammar)


def _grammar(
    answer: Grammar | None, choice: ToolChoice, tools: Sequence[Tool], format: str, tokenizer: Tokenizer
) -> Grammar | None:
    """`answer`: the JSON that a text must be."""
    if choice.mode == "required" or answer is not None:
        calls = tool_call_grammar(tools, format, choice="required", parallel=choice.parallel, tokenizer=tokenizer)
        return calls if choice.mode == "required" or answer is None else _calls_or_json(calls, answer)
    if choice.names is not None or not choice.parallel or any(tool["function"].get("strict") for tool in tools):
        return auto_tool_grammar(tools, format, parallel=choice.parallel, tokenizer=tokenizer)
    return None


def _calls_or_json(calls: Grammar, answer: Grammar) -> Grammar:
    """One grammar for both; the first rule of `calls` gets another name."""
    schema = json.loads(answer.text) if answer.kind == "json_schema" else {"type": "object"}
    schema["x-guidance"] = JSON_OPTIONS
    rules = calls.text.replace("start:", "only_calls:", 1)
    return Grammar("lark", f"start: only_calls | only_json\nonly_json: %json {json.dumps(schema)}\n{rules}")
