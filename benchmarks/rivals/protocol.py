"""How serving.py talks to a contender: one process each, one JSON document a line, nothing but the standard library.

    <- {"name": "transformers 5.24.0", "variants": ["float32 grouped_mm", ...]}          once, when ready
    -> {"do": "decode", "variant": "...", "prompts": [[0, 17, ...], ...], "new": 200}
    <- {"seconds": 2.61, "tokens": 199, "answers": [[5, 88, ...], ...]}
    -> {"do": "prefill", "variant": "...", "prompts": [[...]]}
    <- {"seconds": 0.21, "tokens": 1000}
    <- {"error": "..."}                                                                 instead of an answer

The same clock for all. Decoding: from the step that brought the first tokens to the last token, prompts not included;
`tokens` are those that came after that first step. Prefill: from the call to the first token. Decoding is greedy, has a
fixed length (end tokens are ordinary tokens) and all streams start together.

A contender's own output goes to standard error: the pipe that answers travel through is taken away from it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol


@dataclass
class Clock:
    """Turns steps into the figures above: call `step` with the number of new tokens whenever a step has ended."""

    first: float = 0.0
    last: float = 0.0
    tokens: int = -1

    def step(self, new: int) -> None:
        now = perf_counter()
        if self.tokens < 0:
            self.first, self.tokens = now, 0
        else:
            self.tokens += new
        self.last = now

    def figures(self, answers: Sequence[Sequence[int]]) -> dict[str, Any]:
        return {"seconds": self.last - self.first, "tokens": self.tokens, "answers": [list(a) for a in answers]}


class Runner(Protocol):
    """What a contender's script gives to `answer`."""

    name: str
    variants: list[str]

    def decode(self, variant: str, prompts: list[list[int]], new: int) -> dict[str, Any]: ...

    def prefill(self, variant: str, prompt: list[int]) -> float: ...


def answer(make: Callable[[dict[str, Any]], Runner]) -> None:
    """The main loop of a contender's process. Its options are a JSON document in the first argument."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    try:
        runner = make(json.loads(sys.argv[1]))
    except Exception as error:
        say({"error": _words(error)})
        raise
    say({"name": runner.name, "variants": runner.variants})
    for line in sys.stdin:
        try:
            say(_do(runner, json.loads(line)))
        except Exception as error:
            say({"error": _words(error)})


def _do(runner: Runner, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["do"] == "decode":
        return runner.decode(asked["variant"], asked["prompts"], asked["new"])
    prompt = asked["prompts"][0]
    return {"seconds": runner.prefill(asked["variant"], prompt), "tokens": len(prompt)}


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]
