"""Tokens and times of an answer, as the `usage` of a response.

OpenAI's fields first. accepted_prediction_tokens and rejected_prediction_tokens count the drafts of the model's own
multi-token prediction. `fathom` is ours: seconds to the first token and in the queue (the longest, if a request has
several prompts), decoding speed of a sample (the mean), and how full the context is (the longest sample).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fathom.engine.outputs import Delta, Metrics


@dataclass
class UsageCount:
    """Fed with every delta of a request; several requests of one response share it under different keys."""

    context_limit: int
    prompt_tokens: dict[int, int] = field(default_factory=dict)  # prompt -> its length
    generated: dict[tuple[int, int], int] = field(default_factory=dict)  # (prompt, sample) -> tokens
    reasoning_tokens: int = 0
    metrics: list[Metrics] = field(default_factory=list)

    def token(self, delta: Delta, prompt: int = 0, *, reasoning: bool = False) -> None:
        """A token came."""
        key = (prompt, delta.index)
        self.generated[key] = self.generated.get(key, 0) + 1
        self.reasoning_tokens += reasoning
        if delta.metrics is not None:
            self.metrics.append(delta.metrics)

    @property
    def prompt_total(self) -> int:
        return sum(self.prompt_tokens.values())

    @property
    def generated_total(self) -> int:
        return sum(self.generated.values())

    def as_dict(self) -> dict[str, Any]:
        """The `usage` object."""
        drafted, accepted = (sum(getattr(m, name) for m in self.metrics) for name in ("drafted", "accepted"))
        used = max((self.prompt_tokens[p] + n for (p, _), n in self.generated.items()), default=self.prompt_total)
        speeds = [m.tokens_per_second for m in self.metrics]
        return {
            "prompt_tokens": self.prompt_total,
            "completion_tokens": self.generated_total,
            "total_tokens": self.prompt_total + self.generated_total,
            "prompt_tokens_details": {"cached_tokens": sum(m.cached_tokens for m in self.metrics)},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "accepted_prediction_tokens": accepted,
                "rejected_prediction_tokens": drafted - accepted,
            },
            "fathom": {
                "time_to_first_token": max((m.time_to_first_token for m in self.metrics), default=0.0),
                "tokens_per_second": sum(speeds) / len(speeds) if speeds else 0.0,
                "queue_seconds": max((m.queue_seconds for m in self.metrics), default=0.0),
                "context_used": used,
                "context_limit": self.context_limit,
                "drafted": drafted,
                "accepted": accepted,
            },
        }
