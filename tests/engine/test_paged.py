"""The paged model, plain and compiled, against the model's own forward; formats of the cache; the cost rule."""

from __future__ import annotations

import pytest
import torch
from chain import chain_model
from float64 import assert_as_near, exact_logits
from tiny import VOCAB, tiny_config, tiny_model

import fathom.engine.selfcheck as selfcheck
from fathom.config import RopeScaling
from fathom.engine.llm import LLM
from fathom.engine.paged import cheaper_form, new_pool, pool_bytes_per_token, read_latents, write_latents
from fathom.engine.selfcheck import compare, paged_logits
from fathom.kernels import cpu
from fathom.presets import PRESETS

TOKENS = [0, *range(20, 90)]
COMPILED = pytest.param("cpu", marks=pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available())))


@pytest.mark.parametrize("kernels", ["torch", COMPILED])
@pytest.mark.parametrize("chunk", [1, 5, 40])
def test_paged_logits_equal_the_models_own(tokenizer, kernels, chunk):
    yarn = RopeScaling(factor=4.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0)
    models = tiny_model(3), tiny_model(4, q_lora_rank=None, attention_bias=True), chain_model(5)
    for model in (*models, tiny_model(6, rope_scaling=yarn)):
        llm = LLM.from_parts(model, tokenizer, kernels=kernels, page_size=4)
        with torch.no_grad():
            plain = model(torch.tensor([TOKENS]), attention="naive")[0]
        assert_as_near(paged_logits(llm, TOKENS, chunk), plain, exact_logits(model, TOKENS))
        assert llm.engine.pool.held == 0


@pytest.mark.parametrize("kernels", ["torch", COMPILED])
@pytest.mark.parametrize("chunk", [700, 2600])
def test_long_prompts_with_yarn(tokenizer, kernels, chunk):
    """Positions far beyond the trained context, more keys than one round of the compiled prefill holds."""
    yarn = RopeScaling(factor=64.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0)
    model = tiny_model(7, rope_scaling=yarn, max_position_embeddings=4096)
    tokens = torch.randint(20, VOCAB, (2600,), generator=torch.Generator().manual_seed(0)).tolist()
    llm = LLM.from_parts(model, tokenizer, kernels=kernels, max_running=1)
    with torch.no_grad():
        plain = model(torch.tensor([tokens]), attention="naive")[0]
    assert_as_near(paged_logits(llm, tokens, chunk), plain, exact_logits(model, tokens))


@pytest.mark.parametrize("kernels", [COMPILED])
def test_compiled_logits_do_not_depend_on_the_batch(tokenizer, kernels, monkeypatch):
    """Bit for bit while sequences have few new tokens each; a long chunk takes the prefill path, equal to rounding."""
    monkeypatch.setattr(selfcheck, "SINGLE", 0)
    model = tiny_model(3)
    llm = LLM.from_parts(model, tokenizer, kernels=kernels)
    alone = paged_logits(llm, TOKENS, 1)
    for chunk in (2, 3, 7, 33):
        assert torch.equal(paged_logits(llm, TOKENS, chunk), alone), chunk
    whole = paged_logits(llm, TOKENS, len(TOKENS))
    assert_as_near(whole, alone, exact_logits(model, TOKENS))


@pytest.mark.parametrize("kernels", ["torch", COMPILED])
def test_narrow_caches_stay_close(tokenizer, kernels):
    model = chain_model(6)
    differences = {}
    for cache in ("float32", "bfloat16", "fp8"):
        llm = LLM.from_parts(model, tokenizer, kernels=kernels, cache=cache)
        differences[cache] = compare(llm, model, [TOKENS]).typical
    assert differences["float32"] < 1e-5 < differences["bfloat16"] < differences["fp8"] < 0.2


def test_fp8_latents_have_a_scale_for_each_token_and_128_values():
    config = tiny_config(kv_lora_rank=200)
    pool = new_pool(config, 3, 4, torch.bfloat16, True, torch.device("cpu"))
    latent = torch.randn(5, 200) * torch.tensor([1e-3, 1.0, 50.0, 1e3, 0.0])[:, None]
    k_rope = torch.randn(5, 8)
    write_latents(pool, torch.tensor([0, 5, 6, 7, 11]), latent, k_rope)
    pages = torch.tensor([0, 1, 2])
    have, rope = (x[[0, 5, 6, 7, 11]] for x in read_latents(pool, pages, torch.float32))
    assert pool.scale.shape == (3, 4, 2)
    largest = torch.stack([latent[:, :128].abs().amax(1), latent[:, 128:].abs().amax(1)], 1)
    bound = largest.repeat_interleave(torch.tensor([128, 72]), 1) * 2**-4 + 1e-6  # 3 mantissa bits
    assert ((have - latent).abs() <= bound).all()
    assert torch.equal(rope, k_rope.bfloat16().float())


def test_bytes_per_token_are_the_reports():
    v3 = PRESETS["v3-671b"]
    assert pool_bytes_per_token(v3, torch.bfloat16, False, 61) == 70_272
    assert pool_bytes_per_token(v3, torch.bfloat16, True, 1) == 656  # FlashMLA's FP8 format


def test_long_chunks_are_naive_and_short_ones_absorbed():
    v3 = PRESETS["v3-671b"]
    assert cheaper_form(v3, 1, 4096) == "absorbed"
    assert cheaper_form(v3, 4096, 4096) == "naive"
