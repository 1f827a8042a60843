"""One sample's way from tokens to text: the end of an answer, stop strings across token borders, the detokenizer."""

from __future__ import annotations

from collections.abc import Collection

from fathom.engine.outputs import FinishReason
from fathom.engine.params import SamplingParams
from fathom.engine.stopping import StopStrings
from fathom.text.tokenizer import Tokenizer


class Answer:
    """Push tokens in order until `finish` is set. `room`: the longest answer in tokens."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, eos_ids: Collection[int], room: int) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopStrings(params.stop)
        self._ends = {*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)}
        self._room = room
        self.count = 0
        self.finish: FinishReason | None = None

    def push(self, token: int, *, complete: bool = False) -> str:
        """The text that this token releases. `complete`: a grammar has nothing more to add."""
        assert self.finish is None
        self.count += 1
        if token in self._ends:
            self.finish = "stop"
        elif self.count == self._room:
            self.finish = "length"
        text = "" if self.finish == "stop" else self._stops.push(self._detokenizer.push(token))
        if complete and self.finish is None:
            self.finish = "stop"
        if self.finish is not None:
            text += self._stops.push(self._detokenizer.flush())
            text += self._stops.flush()
        if self._stops.stopped:
            self.finish = "stop"
        return text

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.found
