"""Rendered chat text back to messages: the inverse of templates/v3.jinja and templates/v3_1.jinja (their grammar is
there).

Two readers. `parse_assistant` takes what a model wrote after a prompt; a model can write anything, so tool calls
count only when the whole block is well formed (complete calls, arguments a JSON object); otherwise the text stays
content and nothing is lost. `parse_conversation` takes a whole rendered conversation and is strict about its frame.

Forgiven in a model's calls, because they are seen: a missing CALLS_END at the end (the first published template had
that fault with one call), white space after it or around the code fence, and the other format's way of writing a
call.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fathom.runtime import UserError
from fathom.text.chat_tokens import (
    ASSISTANT,
    BOS,
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    END_THINK,
    EOS,
    OUTPUT_BEGIN,
    OUTPUT_END,
    OUTPUTS_BEGIN,
    OUTPUTS_END,
    SEP,
    THINK,
    USER,
)

Message = dict[str, Any]

_ARROW = re.escape(SEP)
_V3_CALL = re.compile(rf"function{_ARROW}(?P<name>[^\n]+)\n```json\n(?P<arguments>.*)\n```", re.DOTALL)
_V3_LOOSE = re.compile(rf"\s*function{_ARROW}\s*(?P<name>\S+)\s*```(?:json)?\s(?P<arguments>.*)```\s*", re.DOTALL)
_V31_CALL = re.compile(rf"(?P<name>[^\n]+?){_ARROW}(?P<arguments>.*)", re.DOTALL)
_SHAPES = {"v3": (_V3_CALL, _V3_LOOSE, _V31_CALL), "v3.1": (_V31_CALL, _V3_CALL, _V3_LOOSE)}
CALL_FORMATS = tuple(_SHAPES)
_AFTER_A_CALL = (CALL_BEGIN, CALLS_END)


def parse_assistant(text: str, format: str, thinking: bool = False, eos: str = EOS) -> Message:
    """One completion -> {"role", "content", "reasoning_content"?, "tool_calls"?}.

    `thinking`: the prompt ended inside a thought (with <think>), so the text begins inside it. A thought that never
    closes is all reasoning. `content` is None only beside tool calls.
    """
    text = text.removesuffix(eos) if eos else text
    reasoning = ""
    if thinking or text.startswith(THINK):
        reasoning, text = _split_thought(text, format)
    elif format == "v3.1":
        text = text.removeprefix(END_THINK)
    content, calls = _split_calls(text, format)
    message: Message = {"role": "assistant", "content": content if content or not calls else None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _split_thought(text: str, format: str) -> tuple[str, str]:
    """(thought, rest). V3 sets the thought off with newlines, which belong to the format; V3.1 does not."""
    thought, closed, rest = text.removeprefix(THINK).partition(END_THINK)
    if format == "v3.1":
        return thought, rest
    if text.startswith(THINK):  # else the prompt had it, newline included
        thought = thought.removeprefix("\n")
    return (thought.removesuffix("\n") if closed else thought), rest.removeprefix("\n\n")


def _split_calls(text: str, format: str) -> tuple[str, list[dict[str, Any]]]:
    """(text before the calls, the calls), or (all of the text, []) unless every call is well formed."""
    before, found, block = text.partition(CALLS_BEGIN)
    if not found or format not in CALL_FORMATS:
        return text, []
    reader = CallBlock(format)
    reader.push(block)
    calls = reader.finish()
    return (before, calls) if calls else (text, [])


class CallBlock:
    """What follows CALLS_BEGIN, read piece by piece.

    It is all or nothing: a later piece can still spoil the block, so its calls count only at the end.
    """

    def __init__(self, format: str) -> None:
        self.format = format
        self.broken = False  # whatever comes, this is no well-formed block
        self._calls: list[dict[str, Any]] = []
        self._open = ""  # after the last complete call
        self._closed = False  # CALLS_END was there

    def push(self, text: str) -> None:
        self._open += text
        while not self.broken:
            if self._closed:
                self.broken = bool(self._open.strip())
                return
            found = [(at, token) for token in (CALL_END, CALLS_END) if (at := self._open.find(token)) >= 0]
            if not found:
                begun = self._open.lstrip()
                self.broken = not (begun.startswith(CALL_BEGIN) or any(t.startswith(begun) for t in _AFTER_A_CALL))
                return
            at, token = min(found)
            piece, self._open = self._open[:at], self._open[at + len(token) :]
            if token == CALLS_END:
                self._closed = True
                self.broken = bool(piece.strip()) or not self._calls
                continue
            space, opened, body = piece.partition(CALL_BEGIN)
            call = _call(body, self.format) if opened and not space.strip() else None
            self.broken = call is None
            if call is not None:
                self._calls.append(call)

    def finish(self) -> list[dict[str, Any]]:
        """The calls; none unless the block is well formed."""
        return [] if self.broken or self._open.strip() else self._calls


def _call(body: str, format: str) -> dict[str, Any] | None:
    if CALL_BEGIN in body:
        return None
    for shape in _SHAPES[format]:
        match = shape.fullmatch(body)
        if match and _is_json_object(match["arguments"]) and match["name"].strip():
            return {
                "type": "function",
                "function": {"name": match["name"].strip(), "arguments": match["arguments"]},
            }
    return None


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


class _Reader:
    """A position in the text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def take(self, token: str) -> bool:
        """Step over `token` if it is next."""
        found = self.text.startswith(token, self.at)
        self.at += len(token) * found
        return found

    def until(self, *stops: str) -> str:
        """The text up to the nearest of `stops` or the end, stepped over; the stop itself stays."""
        ends = [i for stop in stops if (i := self.text.find(stop, self.at)) >= 0]
        start, self.at = self.at, min(ends, default=len(self.text))
        return self.text[start : self.at]

    @property
    def done(self) -> bool:
        return self.at == len(self.text)


def parse_conversation(text: str, format: str, bos: str = BOS) -> list[Message]:
    """A whole rendered conversation -> its messages; a generation prompt at the end is dropped.

    System messages come back as the one they were joined to (tool definitions are part of it); ids of calls are not
    in the text.
    """
    if format not in CALL_FORMATS:
        raise UserError(f"conversations of format {format!r} cannot be parsed; only v3 and v3.1 are known")
    reader = _Reader(text)
    reader.take(bos)
    messages: list[Message] = []
    if system := reader.until(USER, ASSISTANT):
        messages.append({"role": "system", "content": system})
    while not reader.done:
        if reader.take(USER):
            messages.append({"role": "user", "content": reader.until(USER, ASSISTANT)})
        elif reader.take(OUTPUTS_BEGIN) or reader.text.startswith(OUTPUT_BEGIN, reader.at):
            messages.extend(_outputs(reader))
            reader.take(OUTPUTS_END)
            _answer(reader, messages, format)
        elif reader.take(ASSISTANT):
            _answer(reader, messages, format)
        else:
            raise UserError(f"this is not a {format} conversation: at character {reader.at} no turn begins")
    return messages


def _outputs(reader: _Reader) -> list[Message]:
    outputs: list[Message] = []
    start = reader.at
    while reader.take(OUTPUT_BEGIN):
        outputs.append({"role": "tool", "content": reader.until(OUTPUT_END)})
        if not reader.take(OUTPUT_END):
            raise UserError(f"a tool output that begins at character {start} does not end")
        end = reader.at
        reader.take("\n")
        if not reader.text.startswith(OUTPUT_BEGIN, reader.at):
            reader.at = end
    return outputs


def _answer(reader: _Reader, messages: list[Message], format: str) -> None:
    """An assistant turn up to EOS; without EOS it is a cut answer, and an empty cut answer is a generation prompt."""
    body = reader.until(EOS, USER, OUTPUTS_BEGIN, OUTPUT_BEGIN)
    ended = reader.take(EOS)
    if ended or body.strip() not in ("", THINK, END_THINK):
        messages.append(parse_assistant(body, format))
