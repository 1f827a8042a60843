"""What a request gives back, whole (`RequestOutput`) or piece by piece (`Delta`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fathom.engine.sampling import TokenLogprob

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Metrics:
    """Seconds and counts of one request, over all its samples."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    time_to_first_token: float = 0.0
    tokens_per_second: float = 0.0
    """Decoding speed of a sample: tokens after the first by the time they took (or all, if there are no others)."""
    cached_tokens: int = 0
    """Prompt tokens whose latents were found in the cache."""
    queue_seconds: float = 0.0
    """From the request to its first step."""
    drafted: int = 0
    """Tokens that the MTP module proposed."""
    accepted: int = 0
    """Of those, the ones the model agreed with."""


@dataclass(frozen=True)
class Delta:
    """One generated token and the text that it releases (often empty: half a character, a possible stop string)."""

    index: int
    """Which of the n samples; those of one request interleave."""
    text: str
    token_id: int
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None
    """Set on the last token of each sample."""
    metrics: Metrics | None = None
    """Set on the last token of the request."""
    drafted: bool = False
    """Whether the token was a draft of the MTP module that the model accepted."""
    experts: tuple[tuple[int, ...], ...] | None = None
    """With params.inside: per MoE layer, the routed experts at the position that predicted this token."""
    stop_string: str | None = None
    """The stop string that ended this sample."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """On the first token of a request that asked: one per prompt token, None for the first."""


@dataclass
class Completion:
    """One sample. `token_ids` holds every generated token, the end token included; `text` has no end token and ends
    before a stop string."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    experts: list[tuple[tuple[int, ...], ...]] | None = None
    """With params.inside: per token and MoE layer, the routed experts at the position that predicted it."""
    message: dict[str, Any] | None = None
    """From `chat` only: `text` with thoughts and tool calls taken apart."""


@dataclass
class RequestOutput:
    """The answer to one prompt. `prompt` is the text given or rendered from messages; None if token ids were given."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    metrics: Metrics = field(default_factory=Metrics)
    prompt_logprobs: list[TokenLogprob | None] | None = None


class Stopwatch:
    """Turns the moments of tokens into Metrics. Samples of one request run side by side."""

    def __init__(self, now: float, prompt_tokens: int) -> None:
        self.start = now
        self.prompt_tokens = prompt_tokens
        self.first_step: float | None = None
        self.first_token: float | None = None
        self.tokens = 0
        self.decoded = 0
        self.decode_seconds = 0.0
        self._last: dict[int, float] = {}

    def step(self, now: float) -> None:
        """The request is in a step of the engine."""
        if self.first_step is None:
            self.first_step = now

    def token(self, now: float, sample: int = 0) -> None:
        """A token of a sample came out at time `now`."""
        if self.first_token is None:
            self.first_token = now
        if sample in self._last:
            self.decode_seconds += now - self._last[sample]
            self.decoded += 1
        self.tokens += 1
        self._last[sample] = now

    def metrics(self, *, cached: int = 0, drafted: int = 0, accepted: int = 0) -> Metrics:
        """What is known when the last token is out."""
        assert self.first_token is not None
        first = self.first_token - self.start
        seconds = self.decode_seconds if self.decoded else max(self._last.values()) - self.start
        rate = (self.decoded or self.tokens) / max(seconds, 1e-9)
        queued = 0.0 if self.first_step is None else self.first_step - self.start
        return Metrics(self.prompt_tokens, self.tokens, first, rate, cached, queued, drafted, accepted)
