"""Speculative decoding with the MTP module (report section 5.4.3): draft, verify in one forward, keep a prefix.

The rule, for a draft d drawn from q where the model's own distribution is p (Leviathan et al. 2023):

    accept d with probability min(1, p(d) / q(d));  else take a token from max(p - q, 0), normalised, and stop

Then the token has exactly the distribution p, whatever q is. Greedy decoding is the case of one-hot p: a draft stays
if it is the model's own choice. p and q are the distributions after penalties, bias, temperature and all cuts.

Whether to draft at all:
  greedy and unseeded requests   what has been faster lately, measured in seconds per token at this batch size (`Pace`)
  reproducible sampled requests  only their own acceptance: the text of a seed must not depend on how busy the engine is
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from fathom.engine.sampling import draw

MIN_DRAFTS = 24  # before a request's acceptance is believed
MIN_ACCEPTANCE = 0.4  # below it a request stops drafting
PROBE_EVERY, PROBE_STEPS, WARM_STEPS, RECENT = 256, 8, 3, 24


def accept(p: Tensor, q: Tensor, draft: int, generator: torch.Generator) -> tuple[int, bool]:
    """The token that takes the draft's place, and whether it is the draft. p, q: float64 [V], each sums to 1."""
    point = torch.rand((), generator=generator, dtype=torch.float64)
    if float(point * q[draft]) < float(p[draft]):
        return draft, True
    residual = (p - q).clamp(min=0)
    total = residual.sum()
    # p == q up to rounding leaves nothing: then any draw from p is right
    return draw(residual / total if float(total) > 0 else p, generator), False


@dataclass
class _Rate:
    """The last steps of one kind. Their median time is used: a hiccup of the machine should decide nothing."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    tokens: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))
    steps: int = 0

    def add(self, seconds: float, tokens: int) -> None:
        self.steps += 1
        if self.steps > WARM_STEPS:  # the first steps of a kind pay for caches
            self.seconds.append(seconds)
            self.tokens.append(tokens)

    @property
    def per_token(self) -> float | None:
        if len(self.seconds) < PROBE_STEPS:
            return None
        return median(self.seconds) * len(self.tokens) / max(sum(self.tokens), 1)


@dataclass
class Pace:
    """Which way of decoding is faster, by number of running sequences (in powers of two)."""

    rates: dict[tuple[int, bool], _Rate] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)

    def wants_drafts(self, running: int) -> bool:
        """The faster way by what was measured; every PROBE_EVERY steps the other one is tried again."""
        bucket = running.bit_length()
        with_drafts, plain = self._rate(bucket, True).per_token, self._rate(bucket, False).per_token
        if with_drafts is None:
            return True
        if plain is None:
            return False
        step = self.steps.get(bucket, 0)
        self.steps[bucket] = step + 1
        probing = step % PROBE_EVERY >= PROBE_EVERY - PROBE_STEPS
        return (with_drafts <= plain) != probing

    def add(self, running: int, drafted: bool, seconds: float, tokens: int) -> None:
        """A step without prefill took this long and gave this many tokens."""
        self._rate(running.bit_length(), drafted).add(seconds, tokens)

    def _rate(self, bucket: int, drafted: bool) -> _Rate:
        return self.rates.setdefault((bucket, drafted), _Rate())

    def state(self) -> str:
        """In words, for statistics."""
        said = []
        for bucket in sorted({b for b, _ in self.rates}):
            ways = (self._rate(bucket, True).per_token, self._rate(bucket, False).per_token)
            if None in ways:
                continue
            drafts, plain = (1e3 * w for w in ways if w is not None)
            low, high = 1 << (bucket - 1), (1 << bucket) - 1
            on = "on" if drafts <= plain else "off"
            size = f"{low}" if low == high else f"{low}-{high}"
            said.append(f"{size} running: {on} ({drafts:.2f} ms a token with drafts, {plain:.2f} without)")
        return "; ".join(said) or "on, not measured yet"
