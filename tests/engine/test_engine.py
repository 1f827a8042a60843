"""The engine against the naive generator, token for token, on random mixes of requests; then all pages are free."""

from __future__ import annotations

import random

import pytest
import torch
from chain import chain_model
from tiny import CONTEXT, VOCAB, tiny_model

from fathom.engine.naive import generate_tokens
from fathom.engine.params import SamplingParams
from fathom.engine.request import Request
from fathom.engine.setup import EngineOptions, build_engine
from fathom.runtime import UserError

EOS = (1,)
GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)


@pytest.fixture(scope="module")
def models():
    """Random ones, of which MTP knows nothing, and chains, of which it knows much."""
    return [tiny_model(1), chain_model(2, 0.1), chain_model(3, 0.2), tiny_model(4, q_lora_rank=None)]


def engine_of(model, tokenizer, **options):
    return build_engine(model, tokenizer, EOS, EngineOptions(**options))


def answers(engine, requests, rng=None, aborts=0.0):
    """Add the requests one by one between steps, abort some; deltas by (id, sample), and who was aborted."""
    rng = rng or random.Random(0)
    left, got, aborted = list(requests), {}, set()
    while left or engine.has_work:
        if left and (not engine.has_work or rng.random() < 0.5):
            engine.add(left.pop())
        if rng.random() < aborts:
            victim = rng.choice(requests).id
            engine.abort(victim)
            aborted.add(victim)
        for request_id, delta in engine.step():
            got.setdefault((request_id, delta.index), []).append(delta)
        engine.pool.check([s.pages for s in engine.scheduler.running])
    return got, aborted


def naive(model, request, sample=0):
    return list(generate_tokens(model, request.prompt, request.params, seed=request.seed, sample=sample, eos_ids=EOS))


@torch.no_grad()
def smallest_margin(model, tokens):
    """How near these tokens come to a tie, in a router or in the last choice. A rounding may decide a tie either way,
    and a router's tie then changes everything after it."""
    record, config = [], model.config
    logits = model(torch.tensor([tokens]), record=record)[0, -1]
    best = logits.topk(2).values
    margins = [float(best[0] - best[1])]
    for routing, layer in zip(record, model.layers[config.first_k_dense_replace :], strict=True):
        groups = (routing.scores[0] + layer.mlp.gate.e_score_correction_bias).unflatten(-1, (config.n_group, -1))
        totals = groups.topk(2, -1).values.sum(-1)
        order = totals.sort(-1, descending=True).values
        margins.append(float((order[:, config.topk_group - 1] - order[:, config.topk_group]).min()))
        kept = torch.zeros_like(totals, dtype=torch.bool).scatter_(-1, totals.topk(config.topk_group).indices, True)
        chosen = groups.masked_fill(~kept[..., None], -9).flatten(-2).sort(-1, descending=True).values
        top_k = config.num_experts_per_tok
        margins.append(float((chosen[:, top_k - 1] - chosen[:, top_k]).min()))
    return min(margins)


def assert_same_answer(model, request, deltas, steps):
    have, want = [d.token_id for d in deltas], [s.token_id for s in steps]
    if have != want:
        same = next(i for i, (a, b) in enumerate(zip(have, want, strict=False)) if a != b)
        assert smallest_margin(model, [*request.prompt, *want[:same]]) < 1e-6, (request, have, want)
        return False
    assert deltas[-1].finish_reason == steps[-1].finish_reason
    return True


def random_mix(rng, speculates):
    """Requests that share prefixes or not, greedy or (without speculation) sampled, of all lengths."""
    shared = [0, *(rng.randrange(3, VOCAB) for _ in range(60))]
    requests = []
    for i in range(rng.randrange(1, 8)):
        prompt = shared[: rng.choice([1, 1, 8, 33, 50])] + [rng.randrange(3, VOCAB) for _ in range(rng.randrange(30))]
        greedy = speculates or rng.random() < 0.6
        params = SamplingParams(
            temperature=0 if greedy else rng.choice([0.7, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            max_tokens=rng.choice([1, 2, 7, 12, 20, None if rng.random() < 0.2 else 16]),
            ignore_eos=rng.random() < 0.3,
            frequency_penalty=rng.choice([0, 0, 0.5]),
            logprobs=rng.choice([None, None, 2]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
            n=1 if greedy else rng.choice([1, 2, 3]),
        )
        requests.append(Request(f"r{i}", prompt, params, seed=i, priority=rng.choice([0, 0, 1])))
    return requests


@pytest.mark.parametrize("block", range(10))
def test_random_mixes_equal_the_naive_generator(models, tokenizer, block):
    """20 mixes each, 200 in all: lengths, batches, chunk sizes, prefix reuse, tiny pools, aborts, 0 to 3 drafts."""
    accepted = reused = ties = 0
    for mix in range(20 * block, 20 * block + 20):
        rng = random.Random(mix)
        model, speculative = models[mix % len(models)], rng.choice([False, 1, 2, 3, "auto"])
        engine = engine_of(
            model, tokenizer, speculative=speculative, kernels=["auto", "torch"][block % 2],
            page_size=rng.choice([1, 2, 4, 8, 16]), cache_tokens=rng.choice([CONTEXT + 8, CONTEXT + 8, 1000]),
            max_running=rng.choice([1, 4, 8]), step_tokens=rng.choice([1, 5, 16, 64]),
        )  # fmt: skip
        requests = random_mix(rng, speculative is not False)
        got, aborted = answers(engine, requests, rng, aborts=0.02)
        assert engine.pool.held == 0 and not engine.has_work
        for request in requests:
            for sample in range(request.params.n if request.id not in aborted else 0):
                deltas, steps = got[request.id, sample], naive(model, request, sample)
                ties += not assert_same_answer(model, request, deltas, steps)
        stats = engine.stats()
        accepted, reused = accepted + stats.accepted, reused + stats.prefix_hit_tokens
    assert ties <= 1 and accepted > 50 and reused > 100  # else the mixes would prove little


@pytest.mark.parametrize("speculative", [False, 2])
def test_preemption_changes_nothing(models, tokenizer, speculative):
    """Eight sequences in a pool that holds little more than one of them."""
    model = models[1]
    requests = [
        Request(f"{i}", [0, *range(9 + i, 59)], GREEDY.replace(max_tokens=25), priority=i % 2) for i in range(8)
    ]
    engine = engine_of(model, tokenizer, speculative=speculative, cache_tokens=CONTEXT, page_size=4, step_tokens=32)
    got, _ = answers(engine, requests)
    for request in requests:
        assert [d.token_id for d in got[request.id, 0]] == [s.token_id for s in naive(model, request)]
    assert engine.stats().preemptions > 5 and engine.pool.held == 0


def test_many_drafts_at_the_end_of_a_full_pool(models, tokenizer):
    """Slots are reserved for the drafts that are still wanted, not for all: a pool of one context is enough."""
    engine = engine_of(models[1], tokenizer, speculative=8, cache_tokens=CONTEXT, page_size=4)
    request = Request("a", [0, *range(9, 9 + CONTEXT - 7)], SamplingParams(ignore_eos=True, seed=1))
    engine.add(request)
    for _ in range(50):
        engine.step()
    assert not engine.has_work and engine.stats().preemptions == 0


def test_whoever_ended_in_a_step_that_failed_is_lost_too(models, tokenizer, monkeypatch):
    engine = engine_of(models[1], tokenizer, speculative=2)
    engine.add(Request("short", [0, 9, 8], GREEDY.replace(max_tokens=1)))
    engine.add(Request("long", [0, 9, 8], GREEDY))
    monkeypatch.setattr(engine.runner, "draft", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert engine.lost == ["long", "short"] and not engine.has_work and engine.pool.held == 0


def test_logprobs_equal_the_naive_ones(models, tokenizer):
    engine = engine_of(models[1], tokenizer, speculative=2)
    request = Request("a", [0, 9, 8, 7], GREEDY.replace(logprobs=3, prompt_logprobs=2))
    got, _ = answers(engine, [request])
    deltas = got["a", 0]
    assert any(d.drafted for d in deltas)
    for delta, step in zip(deltas, naive(models[1], request), strict=True):
        assert delta.logprob.top[0][0] == step.logprob.top[0][0]
        assert delta.logprob.logprob == pytest.approx(step.logprob.logprob, abs=1e-4)
    with torch.no_grad():
        rows = torch.log_softmax(models[1](torch.tensor([request.prompt]))[0], -1)
    scored = deltas[0].prompt_logprobs
    assert scored[0] is None and all(d.prompt_logprobs is None for d in deltas[1:])
    for row, token, entry in zip(rows[:-1], request.prompt[1:], scored[1:], strict=True):
        assert entry.token_id == token and entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [i for i, _ in entry.top] == row.topk(2).indices.tolist()


def test_drafting_that_is_slower_is_switched_off(models, tokenizer, monkeypatch):
    """By a clock in which a draft costs a thousand times a step."""
    now = [0.0]
    monkeypatch.setattr("fathom.engine.engine.perf_counter", lambda: now[0])
    engine = engine_of(models[1], tokenizer, speculative="auto")

    def slowed(own, seconds):
        def call(*args, **options):
            now[0] += seconds
            return own(*args, **options)

        return call

    for name, seconds in (("run", 0.001), ("draft", 1.0)):
        monkeypatch.setattr(engine.runner, name, slowed(getattr(engine.runner, name), seconds))
    got, _ = answers(engine, [Request("a", [0, 9, 8], GREEDY.replace(max_tokens=110))])
    assert got["a", 0][-1].metrics.drafted < 40 and ": off (" in engine.stats().speculation


@pytest.mark.parametrize("speculative", [False, 1, 3])
def test_a_seed_gives_one_text_whatever_else_runs(tokenizer, speculative):
    """Alone, in a crowd, and in a crowd that is preempted all the time."""
    model = chain_model(5, 0.15)
    mine = Request(
        "mine", [0, 5, 6, 7], SamplingParams(temperature=0.9, top_p=0.95, max_tokens=40, seed=3, ignore_eos=True)
    )
    crowd = [
        Request(f"c{i}", [0, *range(3 + i, 40 + 3 * i)], SamplingParams(max_tokens=40, ignore_eos=True), i, priority=-1)
        for i in range(6)
    ]
    texts, preemptions = [], []
    for others, cache in (([], 1000), (crowd, 2000), (crowd, CONTEXT)):
        engine = engine_of(model, tokenizer, speculative=speculative, cache_tokens=cache, page_size=4, step_tokens=24)
        got, _ = answers(engine, [*others, mine])
        texts.append([d.token_id for d in got["mine", 0]])
        preemptions.append(engine.stats().preemptions)
        assert bool(engine.stats().accepted) == bool(speculative)
    assert texts[0] == texts[1] == texts[2]
    assert preemptions[2] > 0


def test_experts_are_recorded_only_when_asked(models, tokenizer):
    engine = engine_of(models[1], tokenizer, speculative=1)
    wanted, plain = GREEDY.replace(inside=True), GREEDY
    got, _ = answers(engine, [Request("a", [0, 9, 8], wanted), Request("b", [0, 9, 8], plain)])
    config = models[1].config
    assert all(d.experts is None for d in got["b", 0])
    record = []
    tokens = [0, 9, 8, *(d.token_id for d in got["a", 0])]
    with torch.no_grad():
        models[1](torch.tensor([tokens]), record=record)
    for at, delta in enumerate(got["a", 0], start=2):
        assert len(delta.experts) == config.num_hidden_layers - config.first_k_dense_replace
        for layer, chosen in zip(record, delta.experts, strict=True):
            assert sorted(chosen) == sorted(layer.indices[0, at].tolist())


def test_a_prefix_in_the_cache_is_not_computed_again(models, tokenizer):
    engine = engine_of(models[0], tokenizer, page_size=8, speculative=False)
    first = Request("a", [0, *range(10, 60)], GREEDY)
    got, _ = answers(engine, [first])
    longer = [*first.prompt, *(d.token_id for d in got["a", 0]), 77]
    got, _ = answers(engine, [Request("b", longer, GREEDY)])
    assert got["b", 0][-1].metrics.cached_tokens == (len(longer) - 2) // 8 * 8  # the answer's pages too
    assert [d.token_id for d in got["b", 0]] == [s.token_id for s in naive(models[0], Request("b", longer, GREEDY))]


def test_samples_of_one_request_share_their_prompt(models, tokenizer):
    engine = engine_of(models[0], tokenizer, page_size=8, speculative=False)
    params = SamplingParams(n=4, max_tokens=5, ignore_eos=True)
    engine.add(Request("a", [0, *range(10, 50)], params))
    while engine.has_work:
        engine.step()
        assert engine.pool.held <= 6 + 3 * 2  # 41 tokens: five shared pages, and what each has of its own
    assert engine.stats().prefix_hit_tokens == 3 * 40


def test_a_short_prompt_is_not_held_up_by_a_long_one_nor_the_other_way(models, tokenizer):
    engine = engine_of(models[0], tokenizer, step_tokens=8, speculative=False, cache_tokens=4000)
    engine.add(Request("long", list(range(3, 103)), GREEDY.replace(max_tokens=1)))
    ended = []
    for i in range(40):
        engine.add(Request(f"short{i}", [0, 5 + i, 6], GREEDY.replace(max_tokens=2)))
        ended += [rid for rid, delta in engine.step() if delta.finish_reason]
    assert "long" in ended  # half of what decoding leaves is the oldest prompt's: 100 tokens take some 30 steps
    assert sum(rid.startswith("short") for rid in ended[: ended.index("long")]) >= 3


def test_priorities_come_first(models, tokenizer):
    engine = engine_of(models[0], tokenizer, max_running=1, speculative=False)
    for i, priority in enumerate([5, 5, 0]):
        engine.add(Request(f"{i}", [0, 7, i + 9], GREEDY.replace(max_tokens=2), priority=priority))
    order = []
    while engine.has_work:
        order += [rid for rid, delta in engine.step() if delta.finish_reason]
    assert order == ["2", "0", "1"]


def test_speculation_switches_itself_off(tokenizer):
    """A seeded request whose drafts are never right stops drafting; with True it goes on."""
    model = tiny_model(1)
    params = SamplingParams(temperature=0.01, max_tokens=100, ignore_eos=True, seed=1)
    drafted = {}
    for speculative in ("auto", True):
        got, _ = answers(engine_of(model, tokenizer, speculative=speculative), [Request("a", [0, 5], params)])
        drafted[speculative] = got["a", 0][-1].metrics.drafted
    assert drafted["auto"] < 30 < 90 < drafted[True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_tokens": 1}, "cache_tokens is 1"),
        ({"max_model_len": CONTEXT + 1}, f"allows 2 to {CONTEXT}"),
        ({"max_model_len": 100, "cache_tokens": 40}, "max_model_len is 100, but cache_tokens is 64 tokens"),
        ({"speculative": 99}, "speculative is 99"),
        ({"cache": "int4"}, "cache is 'int4'"),
        ({"kernels": "fast"}, "kernels is 'fast'"),
        ({"max_running": 0}, "max_running is 0"),
    ],
)
def test_bad_options(models, tokenizer, options, words):
    with pytest.raises(UserError, match=words):
        engine_of(models[0], tokenizer, **options)


def test_no_drafts_without_an_mtp_module(tokenizer):
    model = tiny_model(1, num_nextn_predict_layers=0)
    assert engine_of(model, tokenizer).stats().speculation == "off"
    with pytest.raises(UserError, match="no MTP module"):
        engine_of(model, tokenizer, speculative=True)


def test_what_cannot_be_answered_is_refused_before_it_waits(models, tokenizer):
    engine = engine_of(models[0], tokenizer, cache_tokens=32)
    with pytest.raises(UserError, match="40 tokens, the context holds 32"):
        engine.add(Request("a", [5] * 40, GREEDY))
    engine.add(Request("b", [5], GREEDY))
    with pytest.raises(UserError, match="'b' is in use"):
        engine.add(Request("b", [5], GREEDY))


def test_a_failed_step_drops_the_running_requests_and_frees_their_pages(models, tokenizer, monkeypatch):
    engine = engine_of(models[0], tokenizer)
    engine.add(Request("a", [5, 6], GREEDY))
    engine.step()
    with monkeypatch.context() as patched:
        patched.setattr(engine.runner, "run", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises(RuntimeError, match="broken"):
            engine.step()
    assert engine.lost == ["a"] and engine.pool.held == 0 and not engine.has_work
    got, _ = answers(engine, [Request("b", [5, 6], GREEDY)])
    assert len(got["b", 0]) == 30
