"""The fast choices against their definitions in sampling.py."""

from __future__ import annotations

import pytest
import torch

from fathom.engine import nucleus, sampling
from fathom.engine.choose import best_tokens
from fathom.engine.params import SamplingParams
from fathom.runtime import UserError


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
@pytest.mark.parametrize("ties", [False, True])
def test_the_nucleus_equals_its_definition(spread, ties):
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        logits = (torch.randn(300, generator=generator) * spread).double()
        if ties:
            logits = logits.round()  # many equal probabilities: order of ids decides
        for top_k, top_p, min_p in [
            (0, 0.9, 0), (0, 0.3, 0), (0, 0.999, 0), (0, 1e-6, 0), (1, 1, 0), (7, 1, 0), (7, 0.5, 0.1), (299, 0.9, 0),
            (5000, 0.8, 0), (0, 1, 0.2), (0, 1, 0),
        ]:  # fmt: skip
            params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
            want, have = sampling.filtered_probs(logits.clone(), params), nucleus.filtered_probs(logits.clone(), params)
            assert torch.equal(want > 0, have > 0), params
            assert torch.allclose(want, have, rtol=1e-12, atol=0)


def test_the_nucleus_takes_banned_tokens_and_small_temperatures():
    logits = torch.tensor([1.0, float("-inf"), 3.0, 2.0], dtype=torch.float64)
    for temperature in (1e-6, 1.0):
        params = SamplingParams(temperature=temperature, top_p=0.9)
        have = nucleus.filtered_probs(logits.clone(), params)
        assert torch.allclose(have, sampling.filtered_probs(logits.clone(), params)) and have[1] == 0


def test_best_tokens_take_the_lowest_id_of_a_tie():
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 5.0, 5.0], [1.0, 0.0, 3.0]])
    assert best_tokens(logits) == [1, 0, 2] == [sampling.lowest_argmax(row) for row in logits]
    with pytest.raises(UserError, match="not numbers"):
        best_tokens(torch.tensor([[0.0, float("nan")]]))
