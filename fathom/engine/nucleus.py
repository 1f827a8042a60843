"""sampling.filtered_probs without sorting the vocabulary; tests hold the two together, ties included.

Only tokens that can stay are sorted. With top-k these are the ones at least as likely as the k-th. With top-p alone:
all tokens less likely than eps = (1 - p) / V hold less than 1 - p together, so those above eps hold more than p, and
the fewest likeliest that reach p are among them. For a peaked distribution that is a handful out of 129,280.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.engine.params import SamplingParams


def filtered_probs(logits: Tensor, params: SamplingParams) -> Tensor:  # [V] float64 -> [V], sums to 1
    """See sampling.filtered_probs."""
    probs = torch.softmax((logits - logits.max()) / params.temperature, dim=-1)
    vocab = probs.shape[0]
    cut = 0 < params.top_k < vocab
    if cut or params.top_p < 1:
        least = float(probs.topk(params.top_k).values[-1]) if cut else (1 - params.top_p) / vocab
        ids = (probs >= least).nonzero()[:, 0]
        ordered, order = torch.sort(probs[ids], descending=True, stable=True)
        if cut:
            ordered[params.top_k :] = 0
            ordered /= ordered.sum()
        before = ordered.cumsum(0) - ordered
        ordered[before >= params.top_p] = 0
        probs = torch.zeros_like(probs)
        probs[ids[order]] = ordered
    if params.min_p:
        probs[probs < params.min_p * probs.max()] = 0
    return probs / probs.sum()
