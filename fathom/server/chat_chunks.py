"""The stream of /v1/chat/completions, chunk by chunk.

    {"delta": {"role": "assistant", "content": ""}}                       one per choice, at once
    {"delta": {"reasoning_content": ...}} {"delta": {"content": ...}}
    {"delta": {"tool_calls": [{"index", "id", "type", "function": {"name", "arguments": ""}}]}}, then argument pieces
    {"delta": {}, "finish_reason": ...}                                   one per choice
    {"choices": [], "usage": {...}}                                       with stream_options.include_usage
    [DONE]

A token without text yet (half a character) makes no chunk of its own: its logprob and its entry under `fathom` come
with the next chunk of its choice, so that every token is in exactly one chunk.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from fathom.server.generation import ChatEvent
from fathom.server.sse import DONE, event
from fathom.server.tokens import TokenTexts


class ChunkWriter:
    """`head`: what every chunk begins with."""

    def __init__(self, head: dict[str, Any], texts: TokenTexts, inside: bool, with_usage: bool) -> None:
        self.head, self.texts, self.inside, self.with_usage = head, texts, inside, with_usage
        self._tokens: dict[int, list[dict[str, Any]]] = defaultdict(list)  # not yet in a chunk, by choice
        self._logprobs: dict[int, list[dict[str, Any]]] = defaultdict(list)

    def role(self, index: int) -> bytes:
        """The first chunk of a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def chunks(self, got: ChatEvent) -> Iterator[bytes]:
        """The chunks of one token: none, its text, or its text and the end."""
        if self.inside:
            self._tokens[got.index].append(token_inside(got, self.texts))
        if got.logprob is not None:
            self._logprobs[got.index].append(self.texts.chat_logprob(got.logprob))
        delta = _delta(got)
        if delta:
            yield self._chunk(got.index, delta)
        if got.finish is not None:
            yield self._chunk(got.index, {}, got.finish)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk without choices."""
        return event({**self.head, "choices": [], "usage": usage})

    def done(self) -> bytes:
        return DONE

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        logprobs = self._logprobs.pop(index, None)
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": finish,
        }
        if self.inside:
            choice["fathom"] = {"tokens": self._tokens.pop(index, [])}
        usage = {"usage": None} if self.with_usage else {}
        return event({**self.head, "choices": [choice], **usage})


def token_inside(got: ChatEvent, texts: TokenTexts) -> dict[str, Any]:
    """What the extension `inside` reports of a token."""
    delta = got.delta
    experts = [list(layer) for layer in delta.experts or ()]
    return {"id": delta.token_id, "text": texts.text(delta.token_id), "drafted": delta.drafted, "experts": experts}


def call_id() -> str:
    """A new id for a tool call."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _delta(got: ChatEvent) -> dict[str, Any]:
    """The pieces of one token as a delta; several of one kind are joined."""
    delta: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for piece in got.pieces:
        if piece.kind == "content":
            delta["content"] = delta.get("content", "") + piece.text
        elif piece.kind == "reasoning":
            delta["reasoning_content"] = delta.get("reasoning_content", "") + piece.text
        elif piece.kind == "call":
            calls[piece.call] = {
                "index": piece.call,
                "id": call_id(),
                "type": "function",
                "function": {"name": piece.text, "arguments": ""},
            }
        else:
            call = calls.setdefault(piece.call, {"index": piece.call, "function": {"arguments": ""}})
            call["function"]["arguments"] += piece.text
    return delta | ({"tool_calls": list(calls.values())} if calls else {})
