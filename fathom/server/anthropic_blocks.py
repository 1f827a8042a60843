"""An answer as Anthropic's content blocks, and the events that build them.

    message_start
    content_block_start, content_block_delta ..., content_block_stop       per block: thinking, text, tool_use
    message_delta                                                          stop_reason, usage
    message_stop

`ping` fills silence, `error` ends a stream that failed. A thinking block ends with a signature_delta. The input of a
tool_use comes in one piece, once it is certain that the model's text is a call.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from fathom.server.generation import ChatEvent
from fathom.server.usage import UsageCount
from fathom.text.chat_stream import Piece

SIGNATURE = "fathom-unsigned"
"""Of every thinking block. It says that there is nothing to verify: thoughts are plain text and may be edited."""


class BlockWriter:
    """Pieces in, events out; `content` is the answer so far. Close it at the end."""

    def __init__(self) -> None:
        self.content: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._arguments = ""

    def read(self, pieces: Iterable[Piece]) -> Iterator[dict[str, Any]]:
        for piece in pieces:
            if piece.kind == "reasoning":
                yield from self._begin("thinking", thinking="", signature="")
                self.content[-1]["thinking"] += piece.text
                yield self._delta("thinking_delta", thinking=piece.text)
            elif piece.kind == "content":
                yield from self._begin("text", citations=None, text="")
                self.content[-1]["text"] += piece.text
                yield self._delta("text_delta", text=piece.text)
            elif piece.kind == "call":
                yield from self.close()
                yield from self._begin("tool_use", id=f"toolu_{uuid.uuid4().hex[:24]}", name=piece.text, input={})
            else:
                self._arguments += piece.text

    def close(self) -> Iterator[dict[str, Any]]:
        """End the block that is open."""
        if self._open is None:
            return
        if self._open["type"] == "thinking":
            self._open["signature"] = SIGNATURE
            yield self._delta("signature_delta", signature=SIGNATURE)
        elif self._open["type"] == "tool_use":
            try:
                self._open["input"] = _object(self._arguments)
                said = json.dumps(self._open["input"], ensure_ascii=False)
            except ValueError:  # cut in the middle: a stream shows what there is
                said = self._arguments.encode("utf-8", "replace").decode()
            self._arguments = ""
            yield self._delta("input_json_delta", partial_json=said)
        self._open = None
        yield {"type": "content_block_stop", "index": len(self.content) - 1}

    def _begin(self, type: str, **empty: Any) -> Iterator[dict[str, Any]]:
        """A block of this type, unless one is open."""
        if self._open is not None and self._open["type"] == type:
            return
        yield from self.close()
        self._open = {"type": type, **empty}
        self.content.append(self._open)
        yield {"type": "content_block_start", "index": len(self.content) - 1, "content_block": dict(self._open)}

    def _delta(self, type: str, **what: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": {"type": type, **what}}


def stop_of(event: ChatEvent, usage: UsageCount, max_tokens: int) -> dict[str, Any]:
    """stop_reason and stop_sequence of the last event."""
    if event.finish == "length":
        full = usage.generated_total < max_tokens
        return {"stop_reason": "model_context_window_exceeded" if full else "max_tokens", "stop_sequence": None}
    if event.finish == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    found = event.delta.stop_string
    return {"stop_reason": "end_turn" if found is None else "stop_sequence", "stop_sequence": found}


def usage_dict(usage: UsageCount) -> dict[str, Any]:
    """Anthropic's usage: `input_tokens` are those that were not in the cache. Known in full at the end; before that
    all of the prompt counts as new."""
    cached = sum(metrics.cached_tokens for metrics in usage.metrics)
    return {
        "input_tokens": usage.prompt_total - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.generated_total,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _object(arguments: str) -> dict[str, Any]:
    """The input of a call. What Python reads but JSON cannot hold is null (NaN, 1e999) or `?` (half a character)."""
    value = json.loads(arguments or "{}", parse_constant=lambda _: None, parse_float=_finite)
    clean: dict[str, Any] = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return clean


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
