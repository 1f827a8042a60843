"""LLM: text in, text out; every sampling field that a request can carry is seen to act."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import CONTEXT, VOCAB

import fathom
from fathom.engine.llm import LLM
from fathom.engine.naive import generate_tokens
from fathom.engine.params import SamplingParams
from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate

GREEDY = SamplingParams(temperature=0, max_tokens=24)
PROMPT = "the little fish"


def test_generate_is_the_naive_generator_with_text_around(llm, model, tokenizer):
    [out] = llm.generate(PROMPT, GREEDY)
    assert out.prompt == PROMPT
    assert out.prompt_token_ids == tokenizer.encode(PROMPT, add_bos=True)
    assert out.prompt_token_ids[0] == tokenizer.bos_id
    steps = list(generate_tokens(model, out.prompt_token_ids, GREEDY, eos_ids=tokenizer.eos_ids))
    [sample] = out.outputs
    assert sample.token_ids == [step.token_id for step in steps]
    assert sample.text == tokenizer.decode(sample.token_ids)
    assert sample.finish_reason == steps[-1].finish_reason and sample.logprobs is None
    metrics = out.metrics
    assert (metrics.prompt_tokens, metrics.generated_tokens) == (len(out.prompt_token_ids), len(steps))
    assert 0 < metrics.time_to_first_token < 60 and 0 < metrics.tokens_per_second < math.inf


def test_kinds_of_prompts(llm, tokenizer):
    ids = tokenizer.encode(PROMPT, add_bos=True)
    texts = [llm.generate(p, GREEDY)[0].outputs[0].text for p in (PROMPT, [PROMPT], ids, [ids])]
    assert len(set(texts)) == 1
    two = llm.generate([PROMPT, "sea"], [GREEDY, GREEDY.replace(max_tokens=3)])
    assert two[0].outputs[0].text == texts[0] and len(two[1].outputs[0].token_ids) == 3
    assert llm.generate([ids], GREEDY)[0].prompt is None
    assert llm.generate("", GREEDY)[0].prompt_token_ids == [tokenizer.bos_id]  # empty text: the begin token alone
    assert llm.generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("prompts", "params", "words"),
    [
        (["ok", "the fish " * CONTEXT], GREEDY, f"tokens, the context holds {CONTEXT}"),
        ([[]], GREEDY, "no tokens"),
        ([[1, VOCAB]], GREEDY, f"token id {VOCAB}"),
        ([[1, "x"]], GREEDY, "list of token ids"),
        ([{"role": "user"}], GREEDY, "messages go to chat"),
        ("x", SamplingParams(logit_bias={VOCAB: 1}), f"logit_bias has the token id {VOCAB}"),
        ("x", SamplingParams(stop_token_ids=[VOCAB]), f"stop_token_ids has the token id {VOCAB}"),
        (["x", "y"], [GREEDY], "2 prompts came with 1 sampling params"),
        ("x", {"temperature": 0}, r"sampling params are 'temperature'; give SamplingParams"),
    ],
)
def test_bad_requests_are_refused_before_any_work(llm, monkeypatch, prompts, params, words):
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(UserError, match=words):
        llm.generate(prompts, params)


@pytest.mark.parametrize("limit", [1, CONTEXT + 1])
def test_context_limits(model, tokenizer, limit):
    with pytest.raises(UserError, match=f"max_model_len is {limit}; the model's context allows 2 to {CONTEXT}"):
        LLM.from_parts(model, tokenizer, max_model_len=limit)


def test_max_model_len_cuts_answers(model, tokenizer):
    short = LLM.from_parts(model, tokenizer, max_model_len=20)
    [out] = short.generate(PROMPT, SamplingParams(temperature=0, ignore_eos=True))
    assert len(out.prompt_token_ids) + len(out.outputs[0].token_ids) == 20
    assert out.outputs[0].finish_reason == "length"


def test_end_tokens_are_in_the_ids_and_not_in_the_text(llm, tokenizer):
    free = llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids
    bias = {tokenizer.eos_ids[0]: 100.0}
    [sample] = llm.generate(PROMPT, GREEDY.replace(logit_bias=bias))[0].outputs
    assert (sample.text, sample.token_ids, sample.finish_reason) == ("", [tokenizer.eos_ids[0]], "stop")
    [sample] = llm.generate(PROMPT, GREEDY.replace(logit_bias=bias, ignore_eos=True))[0].outputs
    assert sample.token_ids == [tokenizer.eos_ids[0]] * 24 and sample.finish_reason == "length"
    [sample] = llm.generate(PROMPT, GREEDY.replace(stop_token_ids=[free[0]]))[0].outputs
    assert (sample.text, sample.finish_reason) == ("", "stop")


def test_stop_strings_at_every_place(llm):
    """Each stretch of the free answer, across token borders, ends it there; and no delta shows any of it."""
    text = llm.generate(PROMPT, GREEDY)[0].outputs[0].text
    assert len(text) > 15
    for begin in range(0, len(text) - 4, 3):
        stop = text[begin : begin + 4]
        shown = ""
        for delta in llm.stream(PROMPT, GREEDY.replace(stop=["never said", stop])):
            shown += delta.text
            assert text[: text.find(stop)].startswith(shown)
        assert shown == text[: text.find(stop)] and delta.finish_reason == "stop"
        [sample] = llm.generate(PROMPT, GREEDY.replace(stop=stop))[0].outputs
        assert (sample.text, sample.finish_reason) == (shown, "stop")


def test_a_held_back_beginning_comes_out_at_the_end(llm):
    text = llm.generate(PROMPT, GREEDY)[0].outputs[0].text
    [sample] = llm.generate(PROMPT, GREEDY.replace(stop=[text[-3:] + "and more"]))[0].outputs
    assert (sample.text, sample.finish_reason) == (text, "length")


def test_stream_is_generate_in_pieces(llm):
    params = SamplingParams(max_tokens=20, seed=5, n=2, logprobs=1)
    [whole] = llm.generate(PROMPT, params)
    deltas = list(llm.stream(PROMPT, params))
    for i in (0, 1):
        mine = [d for d in deltas if d.index == i]
        assert "".join(d.text for d in mine) == whole.outputs[i].text
        assert [d.token_id for d in mine] == whole.outputs[i].token_ids
        assert [d.logprob for d in mine] == whole.outputs[i].logprobs
        assert [d.finish_reason for d in mine] == [None] * (len(mine) - 1) + [whole.outputs[i].finish_reason]
    assert all(d.metrics is None for d in deltas[:-1])
    assert deltas[-1].metrics.generated_tokens == len(deltas)


def test_streams_may_be_read_in_turns(llm):
    """Each has its own text, also beside a whole answer that is made in between."""
    greedy = SamplingParams(temperature=0, max_tokens=9)
    texts = ["the little fish", "the tall tree", "all day"]
    alone = [llm.generate(text, greedy)[0].outputs[0].token_ids for text in texts]
    one, two = (llm.stream(text, greedy) for text in texts[:2])
    got = [[next(one).token_id], [next(two).token_id]]
    assert llm.generate(texts[2], greedy)[0].outputs[0].token_ids == alone[2]
    for a, b in zip(one, two, strict=True):
        got[0].append(a.token_id)
        got[1].append(b.token_id)
    assert got == alone[:2] and not llm.engine.has_work and not llm._open


def test_a_failed_step_reaches_every_open_stream(llm, monkeypatch):
    one, two = (llm.stream(text, SamplingParams(max_tokens=9)) for text in ("the fish", "the bird"))
    next(one), next(two)
    with monkeypatch.context() as patched:
        patched.setattr(llm.engine.runner, "run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(one)
    with pytest.raises(ZeroDivisionError):
        list(two)
    assert len(llm.generate("the fish", SamplingParams(temperature=0, max_tokens=3))) == 1 and not llm._open


def test_n_samples_differ_and_repeat(llm):
    params = SamplingParams(max_tokens=16, n=3, seed=1)
    first = [s.token_ids for s in llm.generate(PROMPT, params)[0].outputs]
    assert len({tuple(ids) for ids in first}) == 3
    assert [s.token_ids for s in llm.generate(PROMPT, params)[0].outputs] == first
    assert [s.token_ids for s in llm.generate(PROMPT, params.replace(n=1))[0].outputs] == first[:1]


def test_seeds_come_from_the_llm_when_a_request_has_none(model, tokenizer):
    params = SamplingParams(max_tokens=16)

    def run(seed):
        llm = LLM.from_parts(model, tokenizer, seed=seed)
        return [llm.generate(PROMPT, params)[0].outputs[0].token_ids for _ in range(2)]

    assert run(0) == run(0) and run(0) != run(1)
    assert run(0)[0] != run(0)[1]


def test_a_prompt_does_not_change_its_neighbours(llm):
    params = SamplingParams(max_tokens=10, seed=2)
    together = llm.generate(["sea", PROMPT, "bird"], params)
    assert together[1].outputs[0].token_ids == llm.generate(PROMPT, params)[0].outputs[0].token_ids


def test_penalties_and_bias_reach_the_sampler(llm):
    free = llm.generate(PROMPT, GREEDY)[0].outputs[0].token_ids
    banned = {token: -100.0 for token in set(free)}
    assert not set(free) & set(llm.generate(PROMPT, GREEDY.replace(logit_bias=banned))[0].outputs[0].token_ids)
    forced = GREEDY.replace(logit_bias={65: 100})
    assert set(llm.generate(PROMPT, forced)[0].outputs[0].token_ids) == {65}
    for field, value in (("repetition_penalty", 5.0), ("frequency_penalty", 2.0), ("presence_penalty", 2.0)):
        other = llm.generate(PROMPT, GREEDY.replace(**{field: value}))[0].outputs[0].token_ids
        assert other != free, field


def test_chat(model, tokenizer):
    template = ChatTemplate.builtin("v3")
    llm = LLM.from_parts(model, tokenizer, template)
    talk = [{"role": "user", "content": "sing"}]
    [out] = llm.chat(talk, GREEDY)
    assert out.prompt == template.render(talk)
    assert out.prompt_token_ids == tokenizer.encode(out.prompt) == llm.check(talk, GREEDY)
    assert out.prompt_token_ids.count(tokenizer.bos_id) == 1
    assert out.outputs[0].message == {"role": "assistant", "content": out.outputs[0].text}
    assert "".join(d.text for d in llm.stream(talk, GREEDY)) == out.outputs[0].text
    both = llm.chat([talk, [{"role": "user", "content": "swim"}]], GREEDY)
    assert both[0].outputs == out.outputs and both[1].prompt != out.prompt
    assert llm.count_tokens(talk) == len(out.prompt_token_ids)


def test_thinking_reaches_the_template(model, tokenizer):
    llm = LLM.from_parts(model, tokenizer, ChatTemplate.builtin("v3.1"))
    talk = [{"role": "user", "content": "sing"}]
    [out] = llm.chat(talk, GREEDY, thinking=True)
    assert out.prompt.endswith("<think>")
    assert out.outputs[0].message["reasoning_content"] == out.outputs[0].text  # the thought never closed
    assert llm.chat(talk, GREEDY)[0].prompt.endswith("</think>")
    with pytest.raises(UserError, match="need a conversation"):
        llm.stream("sing", thinking=True)


def test_without_a_template_chat_says_so(llm):
    with pytest.raises(UserError, match="no chat template"):
        llm.chat([{"role": "user", "content": "sing"}], GREEDY)


def test_public_names_are_there_and_lazy():
    assert fathom.LLM is LLM and fathom.SamplingParams is SamplingParams
    assert fathom.__version__ == "0.1.0" and set(fathom.__all__) <= {*dir(fathom)}
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = fathom.nothing_here
