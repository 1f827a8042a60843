"""Dialogues to train on, in the shapes that people have them in, as checked messages. Used or refused, never dropped.

    messages       {"messages": [{"role", "content", "tool_calls"?, "reasoning_content"?, "weight"?}], "tools"?, ...}
    ShareGPT       {"conversations": [{"from": "human" | "gpt" | ..., "value"}], "system"?, "tools"?}
    completion     {"prompt": text or messages, "completion": text or messages}
    Alpaca         {"instruction", "input"?, "output", "history"?: [[question, answer], ...], "system"?}

"weight": 0 or "loss": false on an answer: it is read and not trained on. What an answer thinks (`reasoning_content`,
`reasoning`, `thinking`, or <think> ... </think> at its beginning) becomes `reasoning_content`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fathom.runtime import UserError
from fathom.text.chat_messages import Message, normalize_messages, normalize_tools
from fathom.text.chat_tokens import END_THINK, THINK
from fathom.text.dataset import read_placed

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "bot": "assistant", "model": "assistant", "system": "system", "tool": "tool", "observation": "tool",
    "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
NOT_TRAINED_ON = (  # fields that say what is to be learnt, in ways that SFT does not do
    "rejected", "chosen", "label", "weight", "loss", "loss_mask", "images", "image", "videos", "audios",
    "function_call",
)  # fmt: skip
KNOWN = ("role", "content", "tool_calls", "tool_call_id", "name", "weight", "loss", *THOUGHTS)


@dataclass(frozen=True)
class Dialogue:
    """Checked messages, which of them are trained on, and the functions that the assistant may call."""

    messages: list[Message]
    trained: list[bool]
    tools: list[dict[str, Any]] | None = None


@dataclass
class Dialogues:
    """The dialogues of a file by their place in it ("line 7"), and what was recognised in it."""

    rows: list[tuple[str, Dialogue]] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    unused: set[str] = field(default_factory=set)

    @property
    def note(self) -> str:
        """One line about the file."""
        masked = sum(not t for _, d in self.rows for t, m in zip(d.trained, d.messages, strict=True) if _answers(m))
        thoughts = sum("reasoning_content" in m for _, d in self.rows for m in d.messages)
        parts = [", ".join(f"{count:,} dialogues ({shape})" for shape, count in self.shapes.items())]
        parts += [f"{masked:,} answers not trained on"] if masked else []
        parts += [f"{thoughts:,} answers with a thought"] if thoughts else []
        parts += [f"fields not used: {', '.join(sorted(self.unused))}"] if self.unused else []
        return "; ".join(parts)


def read_dialogues(path: Path | str) -> Dialogues:
    """All dialogues of a JSONL file or of a JSON array; whatever is wrong names its place."""
    found = Dialogues()
    for place, row in read_placed(path):
        try:
            shape, dialogue = _dialogue(row, found.unused)
        except UserError as error:
            raise UserError(f"{path} {place}: {error}") from None
        found.shapes[shape] += 1
        found.rows.append((place, dialogue))
    if not any(_answers(m) for _, d in found.rows for m in d.messages):
        raise UserError(f"{path}: no assistant turn in {len(found.rows)} dialogues; there is nothing to train on")
    return found


def is_dialogue(row: Mapping[str, Any]) -> bool:
    """Whether a row has one of the shapes."""
    return any(all(name in row for name in fields) for fields, _, _ in SHAPES)


def _dialogue(row: dict[str, Any], unused: set[str]) -> tuple[str, Dialogue]:
    found = next((each for each in SHAPES if all(name in row for name in each[0])), None)
    if found is None:
        raise UserError(
            "it has no messages, conversations, prompt and completion, or instruction and output; "
            f"its fields are {', '.join(map(str, row)) or 'none'}"
        )
    needed, shape, read = found
    if refused := [name for name in NOT_TRAINED_ON if row.get(name) is not None]:
        raise UserError(f"the field {refused[0]!r} of a whole dialogue is not something that SFT can follow; remove it")
    raw = read(row)
    system = row.get("system")
    if system not in (None, ""):
        if raw and raw[0].get("role") == "system":
            raise UserError("it has a system text of its own and a system message; leave one of them")
        raw.insert(0, {"role": "system", "content": system})
    optional = ("system", "tools", "input", "history") if shape == "Alpaca" else ("system", "tools")
    unused |= {name for name in row if name not in (*needed, *optional)}
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise UserError(f"tools is a text that is not JSON ({error})") from None
    trained = [_trained(message, index) for index, message in enumerate(raw)]
    for message in raw:
        _thought(message)
        unused |= {f"messages[].{name}" for name in message if name not in KNOWN}
    return shape, Dialogue(normalize_messages(raw), trained, normalize_tools(tools))


def _list_of(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise UserError(f"{name} is no list of objects; SFT wants the turns of one dialogue")
    return [dict(each) for each in value]


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    return _list_of(row["messages"], "messages")


def _sharegpt(row: dict[str, Any]) -> list[dict[str, Any]]:
    turns = _list_of(row["conversations"], "conversations")
    if turns and all("role" in turn for turn in turns):
        return turns
    messages = []
    for index, turn in enumerate(turns):
        said = turn.pop("from", None)
        role = SHAREGPT_ROLES.get(str(said).lower())
        if role is None:
            raise UserError(f"conversations[{index}] is from {said!r}; use {', '.join(SHAREGPT_ROLES)}")
        value = turn.pop("value", None)
        if str(said).lower() == "function_call":
            try:
                call = json.loads(value)
                function = {"name": call["name"], "arguments": call["arguments"]}
            except (TypeError, ValueError, KeyError):
                raise UserError(f"conversations[{index}] is no function call in JSON with name and arguments") from None
            turn |= {"content": None, "tool_calls": [{"type": "function", "function": function}]}
        else:
            turn["content"] = value
        messages.append({"role": role, **turn})
    return messages


def _completion(row: dict[str, Any]) -> list[dict[str, Any]]:
    sides: list[list[dict[str, Any]]] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[name]
        sides.append([{"role": role, "content": value}] if isinstance(value, str) else _list_of(value, name))
    for message in sides[0]:
        if message.get("role") == "assistant":
            message.setdefault("weight", 0)  # it is part of the prompt
    return sides[0] + sides[1]


def _alpaca(row: dict[str, Any]) -> list[dict[str, Any]]:
    messages = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError("history must hold pairs of a question and an answer")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


Reader = Callable[[dict[str, Any]], list[dict[str, Any]]]
SHAPES: tuple[tuple[tuple[str, ...], str, Reader], ...] = (
    (("messages",), "messages", _messages),
    (("conversations",), "ShareGPT", _sharegpt),
    (("prompt", "completion"), "prompt and completion", _completion),
    (("instruction", "output"), "Alpaca", _alpaca),
)


def _answers(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def _trained(message: dict[str, Any], index: int) -> bool:
    """Whether a turn is trained on; takes the fields that say so out of it."""
    said = [(name, message.pop(name)) for name in ("weight", "loss") if name in message]
    for name, value in said:
        if value not in (None, 0, 1):
            raise UserError(
                f"message {index}: {name} is {value!r}; an answer is trained on (1, true) or not (0, false)"
            )
        if value and message.get("role") != "assistant":
            raise UserError(f"message {index}: {name} is {value!r}, but SFT trains on the assistant's turns alone")
    return message.get("role") == "assistant" and all(value in (None, 1) for _, value in said)


def _thought(message: dict[str, Any]) -> None:
    """What the turn thinks, under one name."""
    found = [message.pop(name) for name in THOUGHTS if message.get(name) not in (None, "")]
    content = message.get("content")
    if message.get("role") == "assistant" and isinstance(content, str) and content.lstrip().startswith(THINK):
        thought, closed, rest = content.lstrip().removeprefix(THINK).partition(END_THINK)
        if not closed:
            raise UserError(f"an answer opens {THINK} and never closes it")
        found.append(thought.strip("\n"))
        message["content"] = rest.lstrip("\n")
    if len(found) > 1:
        raise UserError("an answer has its thought twice; leave one of them")
    if found and message.get("role") != "assistant":
        raise UserError(f"a thought stands in a turn of {message.get('role')!r}; only the assistant's are trained on")
    if found:
        message["reasoning_content"] = found[0]
