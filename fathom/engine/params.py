"""SamplingParams: everything a request may ask of the sampler, checked once, here.

Every field that is accepted is honoured; a value out of range is a UserError that names field, value and limit.
The order in which the fields act is documented in `sampling.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fathom.engine.grammar import Grammar
from fathom.runtime import UserError

MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens that hold this much probability."""
    top_k: int = 0
    """Keep this many likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the likeliest."""
    max_tokens: int | None = None
    """Longest answer in tokens; None: as far as the context goes."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these strings."""
    stop_token_ids: tuple[int, ...] = ()
    """The answer ends with one of these tokens, as it does with the model's own end tokens."""
    seed: int | None = None
    """None: the LLM derives one per request from its own seed."""
    n: int = 1
    """Samples per prompt."""
    logprobs: int | None = None
    """Report log-probabilities: 0 of the chosen token, k also of the k likeliest."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    ignore_eos: bool = False
    """Go on after the model's end tokens (stop and stop_token_ids still count)."""
    grammar: Grammar | None = None
    """Every answer fits this JSON schema, regular expression or Lark grammar."""
    prompt_logprobs: int | None = None
    """Report log-probabilities of the prompt's tokens too, each with the k likeliest."""
    inside: bool = False
    """Report which routed experts each token was made by."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                raise UserError(f"{name} is {value!r}; it must be a list")
            object.__setattr__(self, name, tuple(value))
        _number("temperature", self.temperature, low=0)
        _number("top_p", self.top_p, low=0, high=1, low_included=False)
        _integer("top_k", self.top_k, low=0)
        _number("min_p", self.min_p, low=0, high=1)
        _integer("max_tokens", self.max_tokens, low=1, optional=True)
        _integer("seed", self.seed, low=0, high=2**63 - 1, optional=True)
        _integer("n", self.n, low=1)
        _integer("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS, optional=True)
        _integer("prompt_logprobs", self.prompt_logprobs, low=0, high=MAX_LOGPROBS, optional=True)
        _number("repetition_penalty", self.repetition_penalty, low=0, low_included=False)
        _number("presence_penalty", self.presence_penalty, low=-2, high=2)
        _number("frequency_penalty", self.frequency_penalty, low=-2, high=2)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise UserError(f"stop holds {text!r}; each stop must be a string of at least one character")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, low=0)
        if not isinstance(self.logit_bias, Mapping):
            raise UserError(f"logit_bias is {self.logit_bias!r}; it must map token ids to numbers")
        object.__setattr__(self, "logit_bias", {_token_id(k): v for k, v in self.logit_bias.items()})
        for token, bias in self.logit_bias.items():
            _number(f"logit_bias of token {token}", bias, low=-100, high=100)
        for name in ("ignore_eos", "inside"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise UserError(f"grammar is {self.grammar!r:.80}; make one with Grammar.json_schema(...), .regex or .lark")
        if self.grammar is not None and self.ignore_eos:
            raise UserError("ignore_eos and grammar exclude each other: a grammar says where the answer ends; drop one")
        if self.temperature == 0 and self.n > 1:
            raise UserError(f"n is {self.n} with temperature 0: greedy samples are all alike; raise it or give n=1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """From JSON; an unknown key is an error."""
        return cls().replace(**values)

    def replace(self, /, **changes: Any) -> SamplingParams:
        known = [f.name for f in dataclasses.fields(self)]
        for key in changes:
            if key not in known:
                raise UserError(f"unknown sampling field {key!r}; known are {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what differs from the defaults."""
        default = SamplingParams()
        changed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {key: value for key, value in changed.items() if value != getattr(default, key)}


def _token_id(key: Any) -> int:
    try:
        token = int(key)  # JSON keys are strings
    except (TypeError, ValueError):
        raise UserError(f"logit_bias has the key {key!r}; keys must be token ids") from None
    if token < 0:
        raise UserError(f"logit_bias has the token id {token}; ids start at 0")
    return token


def _number(name: str, value: Any, *, low: float, high: float = math.inf, low_included: bool = True) -> None:
    limit = f"{'at least' if low_included else 'more than'} {low}"
    limit += "" if high == math.inf else f" and at most {high}"
    endless = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or endless:
        raise UserError(f"{name} is {value!r}; it must be a number, {limit}")
    if value > high or value < low or (value == low and not low_included):
        raise UserError(f"{name} is {value}; it must be {limit}")


def _integer(name: str, value: Any, *, low: int, high: float = math.inf, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} is {value!r}; it must be a whole number{' or None' if optional else ''}")
    _number(name, value, low=low, high=high)
