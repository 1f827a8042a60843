"""Weights held in FP8: exactly the values that loading in FP32 gives, in a quarter of the bytes."""

from __future__ import annotations

import pytest
import torch

import fathom
from fathom.engine.naive import generate_tokens
from fathom.model.quant import FP8Experts, FP8Linear


@pytest.fixture(scope="module")
def held():
    return fathom.load_model("minnow", dtype="fp8")


def test_values_are_those_of_fp32(held):
    wide = fathom.load_model("minnow", dtype="float32")
    seen = 0
    for name, module in held.named_modules():
        if isinstance(module, FP8Linear):
            assert torch.equal(module.dense(torch.float32), wide.get_submodule(name).weight), name
            seen += 1
        if isinstance(module, FP8Experts):
            for part in ("gate_up", "down"):
                assert torch.equal(module.matrix(part).dense(), getattr(wide.get_submodule(name), part)), name
            seen += 1
    assert seen == 7 * 5 + 3 + 6 * 4  # attention; the dense layer; experts and shared experts of the others and of MTP
    assert held.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert held.embed_tokens.weight.dtype == torch.bfloat16 == held.lm_head.weight.dtype


def test_it_takes_a_quarter_of_fp32(held):
    held_bytes = sum(p.numel() * p.element_size() for p in held.parameters())
    assert held_bytes < 0.34 * 4 * held.num_parameters().with_mtp  # embedding and head stay BF16


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_the_engine_reads_it(held, kernels):
    """Compiled: the very tokens of the FP32 model. Plain: activations are BF16, so only that it speaks."""
    params = fathom.SamplingParams(temperature=0, max_tokens=24)
    parts = fathom.LLM("minnow", kernels="torch")  # its tokenizer
    llm = fathom.LLM.from_parts(held, parts.tokenizer, kernels=kernels)
    out = llm.generate("Once upon a time", params)[0].outputs[0]
    assert len(out.token_ids) == 24
    if llm.kernels == "cpu":
        ids = parts.tokenizer.encode("Once upon a time", add_bos=True)
        wide = fathom.load_model("minnow", dtype="float32")
        assert out.token_ids == [step.token_id for step in generate_tokens(wide, ids, params)]
