"""From the logits of a step to tokens: the rows of many sequences at once where that is the same, one by one where not.

`sampling.sample_row` is the definition. Rows that are greedy and unchanged by penalties, bias or grammar are one
argmax for all; every other row goes through the definition's own pieces. With drafts, the rows of a sequence are taken
in order until one differs from its draft (speculative.accept).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.engine.nucleus import filtered_probs
from fathom.engine.params import SamplingParams
from fathom.engine.request import SequenceState
from fathom.engine.sampling import apply_bias, apply_penalties, draw, lowest_argmax
from fathom.engine.speculative import accept
from fathom.runtime import UserError

NAN = (
    "the model gave logits that are not numbers (NaN): the weights are damaged or overflow in this dtype; "
    "try dtype float32 or check the checkpoint"
)


def is_plain(params: SamplingParams) -> bool:
    """Whether the logits are used as they are."""
    return (
        params.grammar is None
        and not params.logit_bias
        and params.repetition_penalty == 1.0
        and not params.presence_penalty
        and not params.frequency_penalty
    )


def best_tokens(logits: Tensor) -> list[int]:
    """[R, V] -> the highest logit of each row, ties to the lowest id (torch.max promises it); NaN is a UserError."""
    top, ids = logits.max(dim=-1)
    if any(map(math.isnan, top.tolist())):
        raise UserError(NAN)
    return ids.tolist()


def adjusted(logits: Tensor, sequence: SequenceState) -> Tensor:  # [V] float32 -> [V] float64
    """The logits after penalties, bias and grammar."""
    params, prompt = sequence.request.params, sequence.request.prompt
    out = apply_bias(apply_penalties(logits, params, prompt, sequence.generated), params)
    mask = sequence.matcher.mask() if sequence.matcher is not None else None
    return out if mask is None else out.masked_fill(~mask, float("-inf"))


def choose(logits: Tensor, sequence: SequenceState, best: Sequence[int]) -> tuple[int, bool]:
    """The next token of a sequence from row 0 of `logits` [., V], and whether it is the first of its drafts.

    `best` are the argmaxes of the rows. The caller appends the token and, if it was the draft, comes back with the
    rest of the rows and drafts.
    """
    params = sequence.request.params
    draft = sequence.drafts[0] if sequence.drafts else None
    if params.temperature == 0:
        token = best[0] if is_plain(params) else lowest_argmax(adjusted(logits[0], sequence))
        return token, token == draft
    probs = filtered_probs(adjusted(logits[0], sequence) if not is_plain(params) else logits[0].double(), params)
    if draft is None:
        return draw(probs, sequence.generator), False
    return accept(probs, sequence.draft_probs[0], draft, sequence.generator)


def draw_draft(logits: Tensor, sequence: SequenceState, best: int, point: float) -> tuple[int, Tensor | None]:
    """A draft from MTP's logits [V], and the distribution it was drawn from (None where the request is greedy).

    Penalties and bias act as on the model's own logits; a grammar masks the first draft only, the state of the
    matcher being that of the newest token.
    """
    params = sequence.request.params
    if is_plain(params):
        changed = logits
    elif sequence.drafts:
        changed = apply_bias(apply_penalties(logits, params, sequence.request.prompt, sequence.generated), params)
    else:
        changed = adjusted(logits, sequence)
    if params.temperature == 0:
        return (best if is_plain(params) else lowest_argmax(changed)), None
    probs = filtered_probs(changed.double(), params)
    cumulative = probs.cumsum(0)
    token = int(torch.searchsorted(cumulative, point * float(cumulative[-1]), right=True))
    return min(token, int(probs.nonzero()[-1])), probs
