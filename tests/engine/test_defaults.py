"""What generation_config.json says is what a prompt gets that says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from fathom.checkpoint.writer import save_model
from fathom.engine.defaults import default_sampling, described
from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams

ALL = {"temperature": 0.3, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "max_new_tokens": 6}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, {}),
        ({}, {}),
        ({"eos_token_id": 1, "bos_token_id": 0, "transformers_version": "5"}, {}),
        (ALL, {"max_tokens": 6} | {k: v for k, v in ALL.items() if k != "max_new_tokens"}),
        ({"temperature": None, "top_k": None, "max_new_tokens": None}, {}),
        ({"do_sample": True, "temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.2},
         {"temperature": 0, "repetition_penalty": 1.2}),
    ],
)  # fmt: skip
def test_the_checkpoint_s_advice(tmp_path: Path, said: dict | None, meant: dict) -> None:
    if said is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert default_sampling(tmp_path) == SamplingParams(**meant)


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"top_p": 7}, {"top_k": -1}, {"max_new_tokens": 0}])
def test_unusable_advice_is_left_out_with_a_warning(tmp_path: Path, wrong: dict) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"min_p": 0.1} | wrong))
    with pytest.warns(UserWarning, match="generation_config.json is not followed in one point"):
        assert default_sampling(tmp_path) == SamplingParams(min_p=0.1)


def test_an_llm_follows_it_where_it_is_not_told_otherwise(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path, dtype="fp32")
    tiny_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(ALL))
    llm, prompt = LLM(tmp_path, seed=5), "the little fish"
    assert (llm.folder, llm.sampling) == (tmp_path, default_sampling(tmp_path))

    def tokens(params: SamplingParams | None) -> list[int]:
        return LLM(tmp_path, seed=5).generate(prompt, params)[0].outputs[0].token_ids

    assert tokens(None) == tokens(llm.sampling) and len(tokens(None)) == 6
    assert [delta.token_id for delta in llm.stream(prompt)] == tokens(None)
    assert len(tokens(llm.sampling.replace(max_tokens=9))) == 9
    assert len(tokens(SamplingParams(max_tokens=12, ignore_eos=True))) == 12  # given: as they are


def test_it_is_said_in_words() -> None:
    assert described(SamplingParams()) == "temperature 1, top_p 1"
    assert described(SamplingParams(temperature=0, top_p=0.9)) == "greedy"
    params = SamplingParams(temperature=0.3, top_p=0.9, repetition_penalty=1.1, max_tokens=500)
    assert described(params) == "temperature 0.3, top_p 0.9, repetition_penalty 1.1, max_tokens 500"
