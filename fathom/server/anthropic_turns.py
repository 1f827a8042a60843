"""Anthropic's turns as the messages that the chat template takes.

    user       [tool_result ...] [text ...]             ->  a `tool` message each, then one `user` message
    assistant  [thinking ...] [text ...] [tool_use ...]  ->  one `assistant` message

Turns of one role in a row are one turn. The chat formats know exactly this order, so another one is refused. As in
Anthropic's API every tool_use needs its tool_result in the next turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from fathom.server.errors import ApiError
from fathom.server.prepare import Message
from fathom.server.schemas.anthropic import AssistantTurn, TextBlock, ThinkingBlock, ToolResultBlock, UserTurn

Blocks = list[tuple[str, Any]]  # (where it is in the request, block)
_ORDER = {"thinking": 0, "text": 1, "tool_use": 2}


def chat_messages(system: str | Sequence[TextBlock] | None, turns: Sequence[UserTurn | AssistantTurn]) -> list[Message]:
    """See above."""
    last = len(turns) - 1
    if turns[last].role == "assistant":
        why = "the last turn is the assistant's; this server cannot go on with a begun answer, end with a user turn"
        raise ApiError(400, f"messages[{last}]: {why}", param=f"messages[{last}]")
    result: list[Message] = [] if not system else [{"role": "system", "content": _text(system)}]
    calls: list[str] = []  # of the turn before, without a result yet
    for role, group in groupby(enumerate(turns), key=lambda pair: pair[1].role):
        blocks = list(_blocks(group))
        if role == "user":
            result += _user(blocks, calls)
        else:
            message, calls = _assistant(blocks)
            result.append(message)
    return result


def _blocks(group: Iterable[tuple[int, UserTurn | AssistantTurn]]) -> Iterable[tuple[str, Any]]:
    for index, turn in group:
        path = f"messages[{index}].content"
        if isinstance(turn.content, str):
            yield path, TextBlock(type="text", text=turn.content)
        else:
            yield from ((f"{path}[{i}]", block) for i, block in enumerate(turn.content))


def _text(content: str | Sequence[TextBlock]) -> Any:
    """Several blocks stay parts: the template's reader puts newlines between them."""
    return content if isinstance(content, str) else [{"type": "text", "text": block.text} for block in content]


def _user(blocks: Blocks, calls: list[str]) -> list[Message]:
    results: list[Message] = []
    texts: list[TextBlock] = []
    for path, block in blocks:
        if not isinstance(block, ToolResultBlock):
            texts.append(block)
            continue
        if texts:
            raise _error(path, "tool_result blocks come before the text of their turn; move it up")
        if block.tool_use_id not in calls:
            raise _error(f"{path}.tool_use_id", f"the turn before has no open tool_use {block.tool_use_id!r}")
        calls.remove(block.tool_use_id)
        results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)})
    if calls:
        raise _error(blocks[0][0], f"tool_result is missing for the tool_use {', '.join(calls)} of the turn before")
    return [*results, *([{"role": "user", "content": _text(texts)}] if texts else [])]


def _result(block: ToolResultBlock) -> Any:
    content = _text(block.content or "")
    if not block.is_error:
        return content or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    first = {"type": "text", "text": "Error: " + (parts[0]["text"] if parts else "")}
    return [first, *parts[1:]]


@dataclass
class _Answer:
    thoughts: list[str] = field(default_factory=list)
    texts: list[TextBlock] = field(default_factory=list)
    calls: dict[str, Any] = field(default_factory=dict)  # by id


def _assistant(blocks: Blocks) -> tuple[Message, list[str]]:
    """The message and the ids of its calls."""
    answer, before = _Answer(), "thinking"
    for path, block in blocks:
        if _ORDER[block.type] < _ORDER[before]:
            why = f"{block.type} after {before} has no place in chat formats; the order is thinking, text, tool_use"
            raise _error(path, why)
        before = block.type
        if isinstance(block, ThinkingBlock):
            answer.thoughts.append(block.thinking)
        elif isinstance(block, TextBlock):
            answer.texts.append(block)
        elif block.id in answer.calls:
            raise _error(f"{path}.id", f"the id {block.id!r} is there twice in this turn; give each tool_use its own")
        else:
            function = {"name": block.name, "arguments": _arguments(block.input, path)}
            answer.calls[block.id] = {"id": block.id, "type": "function", "function": function}
    message: Message = {"role": "assistant", "content": _text(answer.texts) if answer.texts else None}
    message |= {"reasoning_content": "\n".join(answer.thoughts)} if answer.thoughts else {}
    message |= {"tool_calls": list(answer.calls.values())} if answer.calls else {}
    if len(message) == 2 and message["content"] is None:  # an empty thought alone
        message["content"] = ""
    return message, list(answer.calls)


def _arguments(given: dict[str, Any], path: str) -> str:
    try:
        return json.dumps(given, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise _error(f"{path}.input", "it holds a number that is too large for JSON; correct it") from None


def _error(path: str, why: str) -> ApiError:
    return ApiError(400, f"{path}: {why}", param=path)
