"""An answer read while it is written: text in any cuts, pieces of a message out.

The joined pieces are what `parse_assistant` says of the whole text, however it was cut. So a piece is given out only
when nothing that may follow can change it:

    thought, content    at once, except an end that may grow into a control token (or, in V3, into the newlines that
                        set a thought off); a complete EOS is held too, because only the last one is dropped
    calls               at the end of the answer: until then any text may follow and make the block malformed, and
                        then all of it is content. Once it is malformed for certain it comes out as content at once.
    sure calls          a grammar forces the block to be well formed: names and arguments come out as they are written,
                        and an answer that was cut inside a call ends with a part of its arguments
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fathom.text.chat_parse import CALL_FORMATS, CallBlock
from fathom.text.chat_tokens import CALL_BEGIN, CALL_END, CALLS_BEGIN, END_THINK, EOS, SEP, THINK


@dataclass(frozen=True)
class Piece:
    kind: Literal["reasoning", "content", "call", "arguments"]
    text: str
    """Of a "call": the function's name; a new call begins with it."""
    call: int = 0
    """The index of the call, for "call" and "arguments"."""


class AnswerStream:
    """`thinking`: the prompt ended inside a thought. Without `tools`, the tokens of calls are plain content.
    `sure`: a grammar forces calls into the format."""

    def __init__(self, format: str, *, thinking: bool, tools: bool, sure: bool = False, eos: str = EOS) -> None:
        self.in_reasoning = thinking  # the text so far is still inside the thought
        self._thinking = thinking
        self._newlines = format != "v3.1"  # a thought is set off by newlines that belong to the format
        self._eos = eos
        self._has_calls = tools and format in CALL_FORMATS
        self._sure = _SureCalls(format) if sure and self._has_calls else None
        self._block = CallBlock(format)
        self._block_text: list[str] = []
        self._raw = ""  # an end that may be EOS
        self._text = ""  # not yet given out
        self._state: Literal["start", "newline", "thought", "gap", "content", "block", "plain"] = "start"
        self._pieces: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        """More of the answer."""
        self._raw += text
        held = _overlap(self._raw, self._eos)
        return self._read(self._take_raw(len(self._raw) - held), last=False)

    def finish(self) -> list[Piece]:
        """The end of the answer: what was held back."""
        return self._read(self._take_raw(len(self._raw)).removesuffix(self._eos), last=True)

    def _take_raw(self, n: int) -> str:
        taken, self._raw = self._raw[:n], self._raw[n:]
        return taken

    def _read(self, text: str, last: bool) -> list[Piece]:
        self._text += text
        while self._step(last):
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    def _step(self, last: bool) -> bool:
        """Read on in the current state; False when more text is needed."""
        if self._state == "start":
            return self._start(last)
        if self._state == "newline":
            return self._leave_out("\n", "thought", last)
        if self._state == "gap":
            return self._leave_out("\n\n", "content", last)
        if self._state == "thought":
            return self._thought(last)
        if self._state == "content" and self._has_calls:
            return self._content(last)
        if self._state == "block":
            return self._calls(last)
        self._give("content", len(self._text))
        return False

    def _start(self, last: bool) -> bool:
        marks = (THINK,) if self._thinking or self._newlines else (THINK, END_THINK)
        mark = next((m for m in marks if self._text.startswith(m)), "")
        if not mark and not last and any(m.startswith(self._text) for m in marks):
            return False
        self._text = self._text.removeprefix(mark)
        self.in_reasoning = self._thinking or mark == THINK
        self._state = "thought" if self.in_reasoning else "content"
        if mark == THINK and self._newlines:
            self._state = "newline"
        return True

    def _leave_out(self, prefix: str, then: Literal["thought", "content"], last: bool) -> bool:
        if not last and len(self._text) < len(prefix) and prefix.startswith(self._text):
            return False
        self._text = self._text.removeprefix(prefix)
        self._state = then
        return True

    def _thought(self, last: bool) -> bool:
        end = self._text.find(END_THINK)
        if end < 0:
            held = _overlap(self._text, END_THINK)
            if self._newlines:
                held = max(held, _overlap(self._text, "\n" + END_THINK))
            self._give("reasoning", len(self._text) - (0 if last else held))
            return False
        self._give("reasoning", end - (self._newlines and self._text[:end].endswith("\n")))
        self._text = self._text.partition(END_THINK)[2]
        self.in_reasoning = False
        self._state = "gap" if self._newlines else "content"
        return True

    def _content(self, last: bool) -> bool:
        begin = self._text.find(CALLS_BEGIN)
        if begin < 0:
            held = 0 if last else _overlap(self._text, CALLS_BEGIN)
            self._give("content", len(self._text) - held)
            return False
        self._give("content", begin)
        self._text = self._text.removeprefix(CALLS_BEGIN)
        self._state = "block"
        return True

    def _calls(self, last: bool) -> bool:
        if self._sure is not None:
            self._pieces += self._sure.push(self._text, last)
            self._text = ""
            return False
        self._block.push(self._text)
        self._block_text.append(self._text)
        self._text = ""
        calls = self._block.finish() if last else []
        if self._block.broken or (last and not calls):
            self._text = CALLS_BEGIN + "".join(self._block_text)
            self._state = "plain"
            return True
        for i, call in enumerate(calls):
            self._pieces.append(Piece("call", call["function"]["name"], i))
            self._pieces.append(Piece("arguments", call["function"]["arguments"], i))
        return False

    def _give(self, kind: Literal["reasoning", "content"], n: int) -> None:
        if n:
            self._pieces.append(Piece(kind, self._text[:n]))
        self._text = self._text[n:]


class _SureCalls:
    """Calls that a grammar forces into the format (tool_grammar.py), read as they come.

    v3    CALL_BEGIN "function" SEP name "\n```json\n" arguments "\n```" CALL_END
    v3.1  CALL_BEGIN name SEP arguments CALL_END
    """

    def __init__(self, format: str) -> None:
        self._opened, self._closed = (SEP, CALL_END) if format == "v3.1" else ("\n```json\n", "\n```" + CALL_END)
        self._text = ""
        self._call = -1
        self._state: Literal["between", "head", "arguments"] = "between"

    def push(self, text: str, last: bool) -> list[Piece]:
        self._text += text
        pieces: list[Piece] = []
        while True:
            if self._state == "between":
                _, found, rest = self._text.partition(CALL_BEGIN)
                if not found:
                    return pieces
                self._text, self._state, self._call = rest, "head", self._call + 1
            elif self._state == "head":
                head, found, rest = self._text.partition(self._opened)
                if not found:
                    return pieces
                pieces.append(Piece("call", head.rpartition(SEP)[2], self._call))
                self._text, self._state = rest, "arguments"
            else:
                part, found, rest = self._text.partition(self._closed)
                held = 0 if found or last else _overlap(part, self._closed)
                if len(part) > held:
                    pieces.append(Piece("arguments", part[: len(part) - held], self._call))
                self._text = rest if found else part[len(part) - held :]
                if not found:
                    return pieces
                self._state = "between"


def _overlap(text: str, token: str) -> int:
    """Length of the longest end of `text` that is a beginning of `token`, or all of it."""
    longest = min(len(text), len(token))
    return next((n for n in range(longest, 0, -1) if token.startswith(text[-n:])), 0)
