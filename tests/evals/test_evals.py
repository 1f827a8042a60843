"""Acceptance and load, against what a plain loop counts."""

from __future__ import annotations

import torch
from tiny import tiny_model

from fathom.engine.naive import generate_tokens
from fathom.engine.params import SamplingParams
from fathom.evals.acceptance import greedy_acceptance
from fathom.evals.load import expert_load
from fathom.model.moe import Routing


def test_acceptance_counts_drafts_that_greedy_decoding_then_says() -> None:
    model = tiny_model(3)
    prompts = [[1, 2, 3], [7, 8], [5, 5, 9, 11]]
    drafted = accepted = 0
    for prompt in prompts:
        answer = [s.token_id for s in generate_tokens(model, prompt, SamplingParams(temperature=0, max_tokens=12))]
        for number in range(1, len(answer)):  # the draft made once answer[number - 1] was known
            seen = torch.tensor([[*prompt, *answer[:number]]])
            draft = int(model.mtp_logits(seen)[0, -1].argmax())
            drafted += 1
            accepted += draft == answer[number]
    result = greedy_acceptance(model, prompts, max_tokens=12)
    assert (result.drafted, result.accepted) == (drafted, accepted)
    assert drafted == 33


def test_acceptance_of_a_perfect_draft_is_one() -> None:
    model = tiny_model(3)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all logits equal: greedy decoding and every draft say token 0
    assert greedy_acceptance(model, [[1, 2, 3]], max_tokens=8).rate == 1.0


def test_expert_load_counts_every_choice_once() -> None:
    model = tiny_model(1)
    rows = [torch.arange(20), torch.arange(40, 70)]
    load = expert_load(model, rows)
    c = model.config
    assert load.shape == (c.num_hidden_layers - c.first_k_dense_replace, c.n_routed_experts)
    assert (load.sum(1) == 50 * c.num_experts_per_tok).all()
    wanted = torch.zeros_like(load)
    for row in rows:
        record: list[Routing] = []
        model.hidden(row[None], record=record)
        for layer, routing in enumerate(record):
            for expert in routing.indices.flatten().tolist():
                wanted[layer, expert] += 1
    assert torch.equal(load, wanted)
