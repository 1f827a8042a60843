"""Speculation is exact: the tokens have the model's own distribution, whatever the drafts are."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from chain import chain_model

import fathom
from fathom.engine.params import SamplingParams
from fathom.engine.request import Request
from fathom.engine.sampling import filtered_probs
from fathom.engine.setup import EngineOptions, build_engine
from fathom.engine.speculative import Pace, accept

SMALL, LENGTH = 7, 3
PROMPT = [0, 3, 5]
SAMPLING = SamplingParams(temperature=2.0, top_p=0.95, max_tokens=LENGTH, ignore_eos=True)


def chi_square_p(observed: Counter, expected: dict, total: int) -> float:
    """p-value of Pearson's test; cells that expect fewer than 5 are one cell."""
    cells, rest = [], [0.0, 0.0]
    for key, probability in expected.items():
        pair = (observed[key], probability * total)
        if pair[1] >= 5:
            cells.append(pair)
        else:
            rest = [rest[0] + pair[0], rest[1] + pair[1]]
    assert sum(o for o, _ in cells) + rest[0] == total, "something was drawn that has probability 0"
    cells += [tuple(rest)] if rest[1] >= 1 else []
    assert len(cells) > 20
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def exact(model) -> dict:
    """The probability of every answer of LENGTH tokens, from the full model."""
    answers = list(itertools.product(range(SMALL), repeat=LENGTH))
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *answer] for answer in answers]))[:, len(PROMPT) - 1 : -1].double()
    out = {}
    for answer, rows in zip(answers, logits, strict=True):
        probability = 1.0
        for token, row in zip(answer, rows, strict=True):
            probability *= float(filtered_probs(row, SAMPLING)[token])
        out[answer] = probability
    assert sum(out.values()) == pytest.approx(1)
    return out


@pytest.mark.parametrize(("drafts", "noise"), [(1, 0.3), (3, 0.2)])
def test_sampled_speculation_has_exactly_the_models_distribution(tokenizer, drafts, noise):
    model = chain_model(11, noise, vocab_size=SMALL, num_hidden_layers=2)
    engine = build_engine(model, tokenizer, (), EngineOptions(speculative=drafts, max_running=200, max_model_len=16))
    observed: Counter = Counter()
    samples = 4000
    for block in range(samples // 200):
        answers: dict[int, list[int]] = {}
        engine.add(Request(f"{block}", PROMPT, SAMPLING.replace(n=200), seed=block))
        while engine.has_work:
            for _, delta in engine.step():
                answers.setdefault(delta.index, []).append(delta.token_id)
        observed.update(tuple(answer) for answer in answers.values())
    stats = engine.stats()
    assert 0.2 < stats.accepted / stats.drafted < 0.95, "both branches of the rule have to be taken"
    assert chi_square_p(observed, exact(model), samples) > 1e-3


def test_sampled_speculation_equals_plain_decoding_on_minnow():
    """Two samples of 900 answers, tokens 2 to 4 of each (the first is never drafted), by a two-sample chi-square."""
    params = SamplingParams(temperature=1.5, max_tokens=4, n=300, ignore_eos=True)
    counts, accepted = [], 0
    for speculative in (True, False):
        llm = fathom.LLM("minnow", speculative=speculative, max_running=128, seed=int(speculative))
        seen = [Counter[int](), Counter[int](), Counter[int]()]
        for out in llm.generate(["Once upon a time there was"] * 3, params):
            for sample in out.outputs:
                for place, token in enumerate(sample.token_ids[1:]):
                    seen[place][token] += 1
        counts.append(seen)
        accepted += llm.engine.stats().accepted
    assert accepted > 300
    for ours, plain in zip(*counts, strict=True):
        common = [t for t in ours | plain if ours[t] + plain[t] >= 10]
        cells = [(ours[t], plain[t]) for t in common]
        cells.append((ours.total() - sum(a for a, _ in cells), plain.total() - sum(b for _, b in cells)))
        statistic = sum((a - b) ** 2 / (a + b) for a, b in cells if a + b)
        half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
        assert len(cells) > 4 and float(torch.special.gammaincc(half[0], half[1])) > 1e-3


def test_the_rule_itself():
    """accept: P(token) is p for any q, also where q misses what p has."""
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    q = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    counts = torch.zeros(4)
    draws = torch.multinomial(q, 20000, replacement=True, generator=generator).tolist()
    kept = 0
    for draft in draws:
        token, is_draft = accept(p, q, draft, generator)
        assert not is_draft or token == draft
        counts[token] += 1
        kept += is_draft
    assert counts[3] == 0
    assert torch.allclose(counts / 20000, p.float(), atol=0.012)
    assert kept / 20000 == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.012)  # 1 - total variation


def test_equal_distributions_always_accept():
    p = torch.full((5,), 0.2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    assert all(accept(p, p.clone(), i % 5, generator) == (i % 5, True) for i in range(200))


def test_pace_prefers_what_is_faster_and_looks_again():
    pace = Pace()
    cost = {True: 0.002, False: 0.001}
    used = []
    for step in range(3000):
        way = pace.wants_drafts(4)
        used.append(way)
        if step == 1500:
            cost = {True: 0.0005, False: 0.001}
        pace.add(4, way, cost[way], 1)
    assert sum(used[200:1500]) < 100  # off, but tried again now and then
    assert sum(used[2300:]) > 600  # it noticed that drafting had become the faster way
    assert "on" in pace.state()
