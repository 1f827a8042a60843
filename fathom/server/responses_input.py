"""Items of a /v1/responses request as the messages that the chat template takes.

Items are flat, messages are not: reasoning, text and function calls that follow each other are one assistant message,
in this order; what does not fit into it begins the next one. Outputs follow the calls that they answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fathom.server.errors import ApiError
from fathom.server.prepare import Message
from fathom.server.schemas.responses_items import (
    AssistantItem,
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    ReasoningItem,
)

Item = InputMessage | AssistantItem | FunctionCall | FunctionCallOutput | ReasoningItem


def chat_messages(instructions: str | None, items: str | Sequence[Item]) -> list[Message]:
    """See above."""
    reader = _Reader()
    if instructions:
        reader.messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*reader.messages, {"role": "user", "content": items}]
    for index, item in enumerate(items):
        reader.read(item, f"input[{index}]")
    if reader.open:
        raise _error("input", f"function_call_output is missing for the call {', '.join(reader.open)}")
    if not reader.messages or reader.messages[-1]["role"] == "assistant":
        why = "the last item is the model's; this server cannot go on with a begun answer, end with another item"
        raise _error(f"input[{len(items) - 1}]", why)
    return reader.messages


class _Reader:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.open: list[str] = []  # ids of calls without an output yet
        self._answer: Message | None = None  # the assistant message that may still grow

    def read(self, item: Item, path: str) -> None:
        if isinstance(item, FunctionCallOutput):
            self._output(item, path)
        elif isinstance(item, FunctionCall):
            self._call(item, path)
        elif self.open:
            raise _error(path, f"function_call_output is missing before this item for the call {', '.join(self.open)}")
        elif isinstance(item, ReasoningItem):
            text = "\n".join(part.text for part in item.content or ())
            if text:
                self._part("reasoning_content", text)
        elif isinstance(item, AssistantItem):
            self._part("content", _assistant_text(item))
        else:
            role = "user" if item.role == "user" else "system"
            self._add({"role": role, "content": _text(item.content)})

    def _part(self, key: str, value: Any) -> None:
        """A thought or text: into the open assistant message, if it comes before what that has."""
        answer = self._answer
        if answer is None or answer["content"] is not None or ("reasoning_content" in answer and key != "content"):
            answer = self._new_answer()
        answer[key] = value

    def _new_answer(self) -> Message:
        self._answer = {"role": "assistant", "content": None}
        self.messages.append(self._answer)
        return self._answer

    def _call(self, item: FunctionCall, path: str) -> None:
        if item.call_id in self.open:
            raise _error(f"{path}.call_id", f"the call {item.call_id!r} is open already; give each its own id")
        if self.open and self._answer is None:
            raise _error(path, f"function_call_output is missing before this item for the call {', '.join(self.open)}")
        _check_arguments(item.arguments, f"{path}.arguments")
        function = {"name": item.name, "arguments": item.arguments}
        answer = self._answer or self._new_answer()
        answer.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
        self.open.append(item.call_id)

    def _output(self, item: FunctionCallOutput, path: str) -> None:
        if item.call_id not in self.open:
            raise _error(f"{path}.call_id", f"no function_call without an output has the call_id {item.call_id!r}")
        self.open.remove(item.call_id)
        self._add({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})

    def _add(self, message: Message) -> None:
        self._answer = None
        self.messages.append(message)


def _text(content: Any) -> Any:
    """Several parts stay parts: the template's reader puts newlines between them."""
    return content if isinstance(content, str) else [{"type": "text", "text": part.text} for part in content]


def _assistant_text(item: AssistantItem) -> Any:
    if isinstance(item.content, str):
        return item.content
    texts = [part.refusal if part.type == "refusal" else part.text for part in item.content]
    return [{"type": "text", "text": text} for text in texts]


def _check_arguments(arguments: str, path: str) -> None:
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise _error(path, "it must be a JSON object as text")


def _error(path: str, why: str) -> ApiError:
    return ApiError(400, f"{path}: {why}", param=path)
