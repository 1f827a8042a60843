"""Constrained output in the engine: with batching, speculation and an open thought, every complete answer fits."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from json_schemas import SCHEMAS

import fathom
from fathom.engine.grammar import Grammar
from fathom.engine.params import SamplingParams
from fathom.engine.request import Request
from fathom.runtime import UserError
from fathom.text.chat_tokens import END_THINK


@pytest.fixture(scope="module")
def minnow():
    return fathom.LLM("minnow", speculative=2)


def test_every_complete_answer_fits_its_schema(minnow):
    """All schemas in one batch. A small model may babble in an open string until it is cut, never break the form."""
    params = [
        SamplingParams(temperature=0.7, max_tokens=120, seed=i, grammar=Grammar("json_schema", json.dumps(schema)))
        for i, schema in enumerate(SCHEMAS.values())
    ]
    talk = [{"role": "user", "content": "Give me an example as JSON."}]
    outputs = [result.outputs[0] for result in minnow.chat([talk] * len(params), params)]
    complete = 0
    for schema, out in zip(SCHEMAS.values(), outputs, strict=True):
        if out.finish_reason == "stop":
            jsonschema.validate(json.loads(out.text), schema)
            complete += 1
    assert complete >= 85
    stats = minnow.engine.stats()
    assert stats.accepted > 300 and minnow.engine.pool.held == 0


def test_speculation_does_not_change_a_greedy_constrained_answer(minnow):
    grammar = Grammar("regex", r"(red|green|blue)( (fish|bird)){1,4}\.")
    params = SamplingParams(temperature=0, max_tokens=60, grammar=grammar)
    plain = fathom.LLM("minnow", speculative=False)
    texts = [llm.generate("The colours are", params)[0].outputs[0] for llm in (minnow, plain)]
    assert texts[0].token_ids == texts[1].token_ids
    assert re.fullmatch(grammar.text, texts[0].text) and texts[0].finish_reason == "stop"


def test_a_grammar_that_runs_out_of_its_limits_ends_its_request_alone(minnow):
    """Also when a draft meets the limit first."""
    engine = minnow.engine
    costly = Grammar("regex", "(.{0,300}a){0,300}(.{0,300}b){300}")
    engine.add(Request("costly", [0, 9], SamplingParams(max_tokens=400, seed=1, grammar=costly, temperature=2.0)))
    engine.add(Request("plain", [0, 9], SamplingParams(max_tokens=400, seed=2, ignore_eos=True)))
    failed, ended = {}, []
    while engine.has_work:
        ended += [request_id for request_id, delta in engine.step() if delta.metrics is not None]
        failed |= engine.failed
    assert list(failed) == ["costly"] and "needs more work" in str(failed["costly"]) and ended == ["plain"]


def test_the_constraint_starts_after_the_thought(minnow):
    # a push towards the end of the thought, none towards the end of all: minnow was never taught to think
    bias = {minnow.tokenizer.id_of(END_THINK): 12.0, 1: -100.0}
    grammar = Grammar("regex", "(yes|no)")
    params = SamplingParams(temperature=0.8, max_tokens=300, seed=4, grammar=grammar, logit_bias=bias)
    [result] = minnow.chat([{"role": "user", "content": "Is water wet?"}], params, thinking=True)
    thought, closed, answer = result.outputs[0].text.partition(END_THINK)
    assert closed and answer in ("yes", "no") and len(thought) > 3


def test_a_grammar_that_does_not_compile_is_refused_before_anything_runs(minnow):
    with pytest.raises(UserError, match="regular expression"):
        minnow.generate(["Hi"], SamplingParams(grammar=Grammar("regex", "(")))
    with pytest.raises(UserError, match="exclude each other"):
        SamplingParams(grammar=Grammar("regex", "a"), ignore_eos=True)
