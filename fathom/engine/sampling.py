"""Sampling: from one row of logits to one token.

The steps, always in this order (`sample_row` is the definition every faster sampler is compared with):

1. repetition penalty   tokens seen in prompt or answer: logit / r if positive, logit * r if negative
2. frequency, presence  tokens seen in the answer: logit -= frequency * count + presence
3. logit bias           logit += bias
4. temperature          0 means greedy: the highest logit, ties to the lowest id; steps 5-8 do not apply
5. top-k                the k likeliest tokens stay, ties to the lowest id
6. top-p                of those, the fewest whose probabilities (renormalised after top-k) sum to at least p
7. min-p                of those, the ones at least min_p times as likely as the likeliest
8. draw                 a uniform number from the row's own generator, read off the cumulative distribution in order
                        of ids; one per token, two or more where a draft is rejected (speculative.py)

A row consumes randomness from its own seed alone, so its answer never depends on the other rows of a batch.
Log-probabilities are those of the model itself: log-softmax of the logits before step 1.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.engine.params import SamplingParams
from fathom.runtime import UserError


@dataclass(frozen=True)
class TokenLogprob:
    """The chosen token's log-probability, and the likeliest tokens with theirs, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def derive_seed(seed: int, *path: int) -> int:
    """A seed of its own for each (request, sample, ...) below `seed`, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, (seed, *path))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_generator(seed: int, sample: int = 0) -> torch.Generator:
    """The random stream of one sample; sample i of a request with n > 1 has its own."""
    return torch.Generator("cpu").manual_seed(derive_seed(seed, sample))


def sample_row(
    logits: Tensor,  # [V] float32
    params: SamplingParams,
    generator: torch.Generator,
    *,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
) -> tuple[int, TokenLogprob | None]:
    """The next token after `prompt` + `generated`, and its log-probability if `params.logprobs` asks for it."""
    logits = logits.detach().to("cpu", torch.float32)
    if logits.isnan().any():
        raise UserError(
            "the model gave logits that are not numbers (NaN): the weights are damaged or overflow in this dtype; "
            "try dtype float32 or check the checkpoint"
        )
    adjusted = apply_bias(apply_penalties(logits, params, prompt, generated), params)
    greedy = params.temperature == 0
    token = lowest_argmax(adjusted) if greedy else draw(filtered_probs(adjusted, params), generator)
    return token, token_logprob(logits, token, params.logprobs)


def lowest_argmax(logits: Tensor) -> int:
    return int((logits == logits.max()).nonzero()[0])


def apply_penalties(logits: Tensor, params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]) -> Tensor:
    logits = logits.double()
    if params.repetition_penalty != 1.0 and (prompt or generated):
        seen = torch.tensor(sorted({*prompt, *generated}))
        value = logits[seen]
        logits[seen] = torch.where(value > 0, value / params.repetition_penalty, value * params.repetition_penalty)
    if (params.frequency_penalty or params.presence_penalty) and generated:
        counts = Counter(generated)
        ids, times = torch.tensor(list(counts)), torch.tensor(list(counts.values()), dtype=torch.float64)
        logits[ids] -= params.frequency_penalty * times + params.presence_penalty
    return logits


def apply_bias(logits: Tensor, params: SamplingParams) -> Tensor:
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    return logits


def filtered_probs(logits: Tensor, params: SamplingParams) -> Tensor:  # [V] float64 -> [V], sums to 1
    """Steps 4 to 7. The largest logit is taken off first, so that no temperature, however small, overflows."""
    probs = torch.softmax((logits - logits.max()) / params.temperature, dim=-1)
    if params.top_k or params.top_p < 1:
        ordered, ids = torch.sort(probs, descending=True, stable=True)  # stable: ties stay in order of ids
        if params.top_k:
            ordered[params.top_k :] = 0
            ordered /= ordered.sum()
        before = ordered.cumsum(0) - ordered  # probability of everything likelier than this token
        ordered[before >= params.top_p] = 0
        probs = torch.zeros_like(probs).scatter_(0, ids, ordered)
    if params.min_p:
        probs[probs < params.min_p * probs.max()] = 0
    return probs / probs.sum()


def draw(probs: Tensor, generator: torch.Generator) -> int:
    """The token whose slice of the cumulative distribution holds the row's next uniform number."""
    cumulative = probs.cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    token = int(torch.searchsorted(cumulative, point, right=True))
    return min(token, int(probs.nonzero()[-1]))  # rounding at the far end never picks an excluded token


def token_logprob(logits: Tensor, token: int, top: int | None) -> TokenLogprob | None:
    if top is None:
        return None
    logprobs = torch.log_softmax(logits, dim=-1)
    ids = torch.sort(logprobs, descending=True, stable=True).indices[:top].tolist() if top else []
    return TokenLogprob(token, float(logprobs[token]), tuple((i, float(logprobs[i])) for i in ids))
