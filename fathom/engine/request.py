"""A request as the engine sees it, and the sequences (one per sample) that answer it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fathom.engine.params import SamplingParams

if TYPE_CHECKING:
    from fathom.engine.grammar import Matcher


@dataclass(frozen=True)
class Request:
    """What was asked. `seed` counts where params.seed is None; `reproducible`: the answer may not depend on the load.
    `thinking_open`: the prompt ends inside a thought, so a grammar waits for the end of it."""

    id: str
    prompt: list[int]
    params: SamplingParams
    seed: int = 0
    priority: int = 0
    thinking_open: bool = False
    reproducible: bool = True


class State(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class SequenceState:
    """One sample. tokens = prompt + answer so far; the first `computed` of them have their latents in `pages`."""

    request: Request
    index: int
    arrival: int
    tokens: list[int]
    room: int  # longest answer in tokens
    generator: torch.Generator
    seed: int  # of the drafts' randomness
    matcher: Matcher | None = None
    leader: SequenceState | None = None  # sample 0 of the same request, whose prompt pages the others share
    state: State = State.WAITING
    computed: int = 0
    cached: int = 0  # prompt tokens found in the cache when it was first admitted
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # of the sealed ones
    drafts: list[int] = field(default_factory=list)  # MTP's guess of what follows tokens
    draft_probs: list[Tensor] = field(default_factory=list)  # sampled requests: the distribution each was drawn from
    mtp_filled: int = 0  # slots of the MTP layer that are filled
    last_hidden: Tensor | None = None  # [D] of token computed - 1, for the MTP module
    pending: list[Tensor] = field(default_factory=list)  # [., D] each: slots mtp_filled .. computed - 1 of MTP wait
    drafted: int = 0
    accepted: int = 0
    speculate: bool = True
    preemptions: int = 0

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def generated(self) -> list[int]:
        """The answer so far."""
        return self.tokens[self.prompt_length :]

    @property
    def must_draft(self) -> bool:
        """A seed has to give the same text whatever else runs: then drafts may depend on the request alone."""
        return self.request.reproducible and self.request.params.temperature > 0

    @property
    def prefill_end(self) -> int:
        """How far prefill goes: all of the prompt; for a preempted sequence all but the newest token, which decodes
        again with a draft as it would have."""
        return len(self.tokens) - (len(self.tokens) > self.prompt_length)

    @property
    def in_prefill(self) -> bool:
        """Whether more than the newest token waits to be computed."""
        return len(self.tokens) - self.computed > 1

    @property
    def waits_for_leader(self) -> bool:
        """Whether sample 0 is still computing the prompt that this sample will find in the cache."""
        return self.leader is not None and self.leader.state is not State.FINISHED and self.leader.in_prefill

    @property
    def order(self) -> tuple[int, int, int]:
        """Smaller runs first."""
        return (self.request.priority, self.arrival, self.index)
