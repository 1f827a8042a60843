r"""Grammars that make a model call tools, in the words of its chat format (see text/templates and text/chat_parse.py).

    v3      CALLS_BEGIN CALL_BEGIN "function" SEP name "\n```json\n" arguments "\n```" CALL_END ("\n" ...)* CALLS_END
    v3.1    CALLS_BEGIN CALL_BEGIN name SEP arguments CALL_END (...)* CALLS_END

Arguments follow the tool's `parameters`, with the white space that grammar.py allows everywhere. What these grammars
admit, `parse_assistant` reads as calls, with one exception: nothing stops a model from spelling a control token with
ordinary tokens inside a string of its arguments. In text the two look alike, so the parser takes it for the real one.

`tool_call_grammar` is for tool_choice "required" or a named function: calls and nothing else. `auto_tool_grammar` is
for tool_choice "auto" with strict tools: any text, and if calls begin, well-formed ones that end the answer.

Control tokens are matched as tokens. Give `tokenizer` and those it does not have are matched as their text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fathom.engine.grammar_source import JSON_OPTIONS, Grammar, check_schema
from fathom.runtime import UserError
from fathom.text.chat_messages import normalize_tools
from fathom.text.chat_tokens import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEP
from fathom.text.tokenizer import Tokenizer

MAX_CALLS = 8
"""Calls in one answer; without a bound a model could go on for ever."""

Tools = Sequence[Mapping[str, Any]]


def tool_call_grammar(
    tools: Tools,
    format: str,
    *,
    choice: Literal["required"] | str,
    parallel: bool,
    tokenizer: Tokenizer | None = None,
) -> Grammar:
    """The answer is one call, or with `parallel` up to MAX_CALLS.

    `choice`: "required" for any of the tools, or the name of the one to call. (One that is itself called "required" is
    forced by giving no other tool.)
    """
    functions = _functions(tools)
    if choice != "required":
        if choice not in functions:
            raise UserError(f"the tool choice {choice!r} is none of the tools; use one of {', '.join(functions)}")
        functions = {choice: functions[choice]}
    rules = _call_rules(functions, format, parallel, tokenizer)
    return Grammar("lark", "\n".join([f"start: {_token(CALLS_BEGIN, tokenizer)} calls", *rules]))


def auto_tool_grammar(tools: Tools, format: str, *, parallel: bool, tokenizer: Tokenizer | None = None) -> Grammar:
    """Any text; after CALLS_BEGIN well-formed calls. Only tools with "strict": true have their arguments checked."""
    functions = _functions(tools)
    for name, function in functions.items():
        if not function.get("strict"):
            functions[name] = {"parameters": {}}
    begin = _token(CALLS_BEGIN, tokenizer)
    if begin.startswith("<"):
        start = ["start: TEXT", f"    | TEXT {begin} calls"]
    else:  # a lazy rule ends where its last words first occur
        start = ["start: TEXT", "    | opened calls", f"opened[lazy]: TEXT {begin}"]
    return Grammar(
        "lark", "\n".join([*start, r"TEXT: /(.|\n)*/", *_call_rules(functions, format, parallel, tokenizer)])
    )


def _functions(tools: Tools) -> dict[str, dict[str, Any]]:
    functions = {tool["function"]["name"]: tool["function"] for tool in normalize_tools(tools) or []}
    if not functions:
        raise UserError("the tool choice asks for a call, but there are no tools; give some")
    return functions


def _call_rules(
    functions: Mapping[str, Mapping[str, Any]], format: str, parallel: bool, tokenizer: Tokenizer | None
) -> list[str]:
    """Rule `calls`: what follows CALLS_BEGIN."""
    begin, sep, end, calls_end = (_token(t, tokenizer) for t in (CALL_BEGIN, SEP, CALL_END, CALLS_END))
    if format == "v3":
        head, after_name, tail, between = f'"function" {sep}', '"\\n```json\\n"', '"\\n```"', '"\\n"'
    elif format == "v3.1":
        head, after_name, tail, between = "", sep, "", ""
    else:
        raise UserError(f"the chat format {format!r} has no tool calls that are known here; only v3 and v3.1 have")
    more = f" ({between} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    rules = [
        f"calls: call{more} {calls_end}",
        f"call: {begin} {head} ({' | '.join(f'tool_{i}' for i in range(len(functions)))}) {end}",
    ]
    for i, (name, function) in enumerate(functions.items()):
        rules.append(f"tool_{i}: {json.dumps(name)} {after_name} %json {_parameters(name, function)} {tail}")
    return rules


def _parameters(name: str, function: Mapping[str, Any]) -> str:
    """The arguments' schema as JSON: an object, whatever else `parameters` says or leaves open."""
    schema = dict(function.get("parameters") or {})
    if "parameters" not in function:  # a function without parameters
        schema = {"additionalProperties": False}
    types = schema.get("type", "object")
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise UserError(f"tool {name!r}: the type of its parameters is {types!r}; arguments are always an object")
    try:
        check_schema(json.dumps(schema))
    except UserError as error:
        raise UserError(f"tool {name!r}: {error}") from None
    return json.dumps({**schema, "type": "object", "x-guidance": JSON_OPTIONS})


def _token(token: str, tokenizer: Tokenizer | None) -> str:
    """A control token in Lark: the token itself, or its text for a tokenizer that does not have it."""
    known = tokenizer is None or tokenizer.id_of(token) in tokenizer.control_tokens
    return token if known else json.dumps(token)
