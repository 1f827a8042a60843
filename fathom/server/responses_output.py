"""An answer as output items of the Responses API, and the events that build them.

    response.created, response.in_progress
    per item   response.output_item.added
                 reasoning, message   response.content_part.added
                                      response.reasoning_text.delta ..., .done
                                      or response.output_text.delta ..., .done
                                      response.content_part.done
                 function_call        response.function_call_arguments.delta, .done
               response.output_item.done
    response.completed, or response.incomplete (the answer was cut), or response.failed

The arguments of a call come in one piece, once it is certain that the model's text is a call. Logprobs are those of
the tokens of a text: they wait for the next piece of it, and are dropped if a call comes instead.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from typing import Any

from fathom.server.generation import ChatEvent
from fathom.server.tokens import TokenTexts

Event = dict[str, Any]


class OutputWriter:
    """Events of the engine in, events of the API out; `items` is the output so far. Close it at the end."""

    def __init__(self, texts: TokenTexts) -> None:
        self.texts = texts
        self.items: list[dict[str, Any]] = []
        self._open: str | None = None  # type of the item that is open
        self._logprobs: list[dict[str, Any]] = []

    def read(self, got: ChatEvent) -> Iterator[Event]:
        """The events of one token."""
        if got.logprob is not None:
            self._logprobs.append(self.texts.chat_logprob(got.logprob))
        for piece in got.pieces:
            if piece.kind == "reasoning":
                yield from self._begin("reasoning", "rs", summary=[], content=[])
                yield self._text("response.reasoning_text.delta", piece.text)
            elif piece.kind == "content":
                yield from self._begin("message", "msg", role="assistant", content=[])
                yield self._text("response.output_text.delta", piece.text, logprobs=self._take_logprobs())
            elif piece.kind == "call":
                self._logprobs.clear()
                yield from self.close()
                call_id = f"call_{uuid.uuid4().hex[:24]}"
                yield from self._begin("function_call", "fc", call_id=call_id, name=piece.text, arguments="")
            else:
                self.items[-1]["arguments"] += piece.text
                yield self._event("response.function_call_arguments.delta", delta=piece.text)

    def close(self, status: str = "completed") -> Iterator[Event]:
        """End the item that is open."""
        if self._open is None:
            return
        item = self.items[-1]
        item["status"] = status
        if self._open == "function_call":
            yield self._event("response.function_call_arguments.done", arguments=item["arguments"])
        else:
            part = item["content"][0]
            if self._open == "message":
                part["logprobs"] += self._take_logprobs()
                yield self._event(
                    "response.output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]
                )
            else:
                yield self._event("response.reasoning_text.done", content_index=0, text=part["text"])
            yield self._event("response.content_part.done", content_index=0, part=copy.deepcopy(part))
        self._open = None
        yield {"type": "response.output_item.done", **self._at(), "item": copy.deepcopy(item)}

    def _begin(self, type: str, prefix: str, **fields: Any) -> Iterator[Event]:
        """An item of this type, unless one is open."""
        if self._open == type:
            return
        yield from self.close()
        self._open = type
        item = {"type": type, "id": f"{prefix}_{uuid.uuid4().hex}", "status": "in_progress", **fields}
        self.items.append(item)
        yield {"type": "response.output_item.added", **self._at(), "item": copy.deepcopy(item)}
        if type == "function_call":
            return
        part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        if type == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"].append(part)
        yield self._event("response.content_part.added", content_index=0, part=copy.deepcopy(part))

    def _text(self, type: str, text: str, **more: Any) -> Event:
        part = self.items[-1]["content"][0]
        part["text"] += text
        if "logprobs" in more:
            part["logprobs"] += more["logprobs"]
        return self._event(type, content_index=0, delta=text, **more)

    def _event(self, type: str, **fields: Any) -> Event:
        return {"type": type, "item_id": self.items[-1]["id"], **self._at(), **fields}

    def _at(self) -> dict[str, int]:
        return {"output_index": len(self.items) - 1}

    def _take_logprobs(self) -> list[dict[str, Any]]:
        taken, self._logprobs = self._logprobs, []
        return taken
