"""Stop strings in a stream: text that might be the start of a stop string is held back until that is decided.

    stop = ["END"]    push "the E" -> "the "    push "N" -> ""    push "d" -> "ENd"    push " END" -> " ", stopped

So a stop string that spreads over several tokens never shows a part of itself, and nothing else is lost. The stop
string that is complete first wins (of two that end together, the longer), so the tokens' borders change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feed text pieces in order; what comes out is safe to show."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""
        self.stopped = False
        self.found: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> str:
        """Text that may be shown now. After a stop string is found `stopped` is set and nothing more comes out."""
        if self.stopped:
            return ""
        text = self.held + text
        ends = [(at + len(stop), at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.held, self.stopped = "", True
            _, start, self.found = min(ends)
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What is still held back when the answer ends without a stop string."""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
