"""Messages in the OpenAI shape: checked, and brought into the one form the templates are given.

    {"role": "system" | "user", "content": text}
    {"role": "assistant", "content": text | None, "reasoning_content"?: text, "tool_calls"?: [call, ...]}
    {"role": "tool", "content": text, "tool_call_id"?: text}
    call = {"id"?: text, "type": "function", "function": {"name": text, "arguments": JSON object, as text or dict}}

A text is a string or a list of {"type": "text", "text": ...} parts (joined by newlines). Tool outputs must follow the
call they answer; the formats bind outputs to calls by position alone, so outputs that carry ids are put into the
order of the calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.runtime import UserError
from fathom.text.call_arguments import Arguments

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


def normalize_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Checked copies; a UserError names the index of the message that is wrong."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise UserError("messages must be a list with at least one message")
    result: list[Message] = []
    open_calls: list[str | None] = []  # ids of calls that have no output yet
    for index, given in enumerate(messages):
        where = f"message {index}"
        if not isinstance(given, Mapping):
            raise UserError(f"{where} is a {type(given).__name__}; it must be an object with role and content")
        role = given.get("role")
        if role not in ROLES:
            raise UserError(f"{where} has the role {role!r}; use one of {', '.join(ROLES)}")
        message = dict(given)
        if role == "assistant":
            _assistant(message, where)
            open_calls = [call.get("id") for call in message.get("tool_calls", [])]
        else:
            message["content"] = _text(given.get("content"), f"{where} ({role}): content")
            if role == "tool":
                _answer(message, open_calls, where)
            elif role == "user":
                open_calls = []
        result.append(message)
    return _outputs_in_call_order(result)


def normalize_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Checked copies of [{"type": "function", "function": {"name", "description"?, "parameters"?}}]; None for []."""
    if tools is None or (isinstance(tools, Sequence) and not tools):
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise UserError(f"tools is a {type(tools).__name__}; it must be a list of function definitions")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise UserError(f'tool {index} must be an object {{"type": "function", "function": {{"name": ...}}}}')
        _name(function.get("name"), f"tool {index}")
        if not isinstance(function.get("description") or "", str):
            raise UserError(f"tool {index}: description must be a string")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise UserError(f"tool {index}: parameters must be a JSON Schema object")
    try:
        copies = json.loads(json.dumps(list(tools), ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"tools cannot be written as JSON ({error}); use plain objects, lists and texts") from None
    _valid_unicode(json.dumps(copies, ensure_ascii=False), "tools")
    return [{"type": "function", **tool} for tool in copies]


def _assistant(message: Message, where: str) -> None:
    calls = message.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
            raise UserError(f"{where}: tool_calls is a {type(calls).__name__}; it must be a list")
        message["tool_calls"] = [_call(call, f"{where}, tool call {i}") for i, call in enumerate(calls)]
    reasoning = message.pop("reasoning_content", None)
    if reasoning is not None and (text := _text(reasoning, f"{where}: reasoning_content")):
        message["reasoning_content"] = text
    content = message.get("content")
    if content is None and not calls and "reasoning_content" not in message:
        raise UserError(f"{where} (assistant) has neither content nor tool_calls; give it one of them")
    text = "" if content is None else _text(content, f"{where} (assistant): content")
    message["content"] = text if text or not calls else None  # templates tell "text before the calls" by None


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise UserError(f'{where} must be {{"type": "function", "function": {{"name": ..., "arguments": ...}}}}')
    _name(function.get("name"), where)
    if call.get("id") is not None and not isinstance(call["id"], str):
        raise UserError(f"{where}: id is {call['id']!r}; it must be a string")
    return {**call, "type": "function", "function": {**function, "arguments": _arguments(function, where)}}


def _arguments(function: Mapping[str, Any], where: str) -> Arguments:
    """An object, JSON text of one, or a text that is no JSON: a call that was cut off. Nothing means no arguments."""
    given = function.get("arguments")
    if given is None or given == "":
        given = {}
    if isinstance(given, str):
        arguments = Arguments(given)
        if arguments.parsed == given:
            return Arguments(_valid_unicode(given, f"{where}: arguments"), given)
    else:
        try:
            arguments = Arguments(json.dumps(given, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: arguments cannot be written as JSON ({error}); give a JSON object") from None
    if not isinstance(arguments.parsed, Mapping):
        kind = type(arguments.parsed).__name__
        raise UserError(f"{where}: arguments must be a JSON object, as text or as a dict, not {kind}")
    _valid_unicode(arguments, f"{where}: arguments")
    return arguments


def _name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not name.strip() or name != name.strip() or "\n" in name or "<｜" in name:
        raise UserError(f"{where}: the function name is {name!r}; it must be one line of text without spaces around it")
    _valid_unicode(name, f"{where}: the function name")


def _text(value: Any, what: str) -> str:
    if value is None:
        raise UserError(f"{what} is missing; give a string or a list of text parts")
    if isinstance(value, str):
        return _valid_unicode(value, what)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise UserError(f"{what} is a {type(value).__name__}; it must be a string or a list of text parts")
    parts = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UserError(f'{what} has a part of type {kind!r}; only {{"type": "text", "text": ...}} is supported')
        parts.append(part["text"])
    return _valid_unicode("\n".join(parts), what)


def _valid_unicode(text: str, what: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{what} holds half of a surrogate pair, which is no character; send valid Unicode") from None
    return text


def _answer(message: Message, open_calls: list[str | None], where: str) -> None:
    """One tool output: take the call it answers off the list of open ones."""
    answered = message.get("tool_call_id")
    if not open_calls:
        raise UserError(f"{where} is a tool output without a call before it; put it after the assistant's tool_calls")
    if answered is None or all(i is None for i in open_calls):
        open_calls.pop(0)
    elif answered in open_calls:
        open_calls.remove(answered)
    else:
        raise UserError(f"{where}: tool_call_id {answered!r} is none of the open calls {open_calls}")


def _outputs_in_call_order(messages: list[Message]) -> list[Message]:
    result: list[Message] = []
    order: dict[str, int] = {}
    outputs: list[Message] = []

    def close() -> None:
        if all(m.get("tool_call_id") in order for m in outputs):
            outputs.sort(key=lambda m: order[m["tool_call_id"]])
        result.extend(outputs)
        outputs.clear()

    for message in messages:
        if message["role"] == "tool":
            outputs.append(message)
            continue
        close()
        if message["role"] == "assistant":
            order = {call["id"]: i for i, call in enumerate(message.get("tool_calls", [])) if call.get("id")}
        result.append(message)
    close()
    return result
