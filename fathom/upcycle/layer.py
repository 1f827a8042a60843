"""One Llama layer as a DeepSeek-V3 layer: the tensors of the checkpoint, named as inside a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.upcycle import feed_forward, sparse
from fathom.upcycle.attention import plain_mix, split_keys
from fathom.upcycle.calibrate import Sample
from fathom.upcycle.feed_forward import Tensors
from fathom.upcycle.latent import One, constant_latent, exact_latent, fit_one, fold_bias
from fathom.upcycle.llama import LlamaLayer
from fathom.upcycle.options import Options, Plan
from fathom.upcycle.principal import principal_mix

MIX_ROWS = 4


def attention_tensors(plan: Plan, options: Options, layer: LlamaLayer, sample: Sample) -> tuple[Tensors, One | None]:
    """Attention with the input norm, and the constant function where one was needed."""
    hidden = plan.source.hidden_size
    q, k, v = _folded(layer)
    one = fit_one(sample.x) if plan.values == "constant" or plan.source.qkv_bias else None
    mix = plain_mix(plan.keys)
    if options.mix == "principal" and plan.keys.groups > 1:
        mix = principal_mix(plan.keys, q, k, _with_ones(sample.x[:MIX_ROWS], q.shape[1]))
    keys = split_keys(plan.keys, mix, q, k)
    w = one.w if one else None
    if plan.values == "exact":
        latent = exact_latent(plan.keys, keys, v, w, hidden)
    else:
        assert w is not None
        latent = constant_latent(plan.keys, keys, v, w, hidden, plan.config.kv_lora_rank, sample.x)
    rope, queries = fold_bias(keys.rope, hidden, w), fold_bias(keys.queries, hidden, w).flatten(0, 1)
    out = {"input_layernorm.weight": torch.ones(hidden)}
    if plan.config.q_lora_rank is None:
        out["self_attn.q_proj.weight"] = queries
    else:
        out["self_attn.q_a_proj.weight"] = torch.eye(hidden)
        out["self_attn.q_a_layernorm.weight"] = torch.ones(hidden)
        out["self_attn.q_b_proj.weight"] = queries
    out["self_attn.kv_a_proj_with_mqa.weight"] = torch.cat((latent.rows, rope))
    out["self_attn.kv_a_layernorm.weight"] = latent.gain
    out["self_attn.kv_b_proj.weight"] = torch.cat((latent.keys, latent.values), dim=1).flatten(0, 1)
    out["self_attn.o_proj.weight"] = layer.o
    return out, one


def _folded(layer: LlamaLayer) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v with the input norm's gain in their columns, biases as one more column."""

    def fold(weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight * layer.input_norm
        return weight if bias is None else torch.cat((weight, bias[:, None]), dim=1)

    return fold(layer.q, layer.q_bias), fold(layer.k, layer.k_bias), fold(layer.v, layer.v_bias)


def _with_ones(x_NTD: Tensor, width: int) -> Tensor:
    """[N, T, D'], a column of ones for the biases where there are some."""
    return x_NTD if x_NTD.shape[-1] == width else torch.cat((x_NTD, torch.ones_like(x_NTD[..., :1])), dim=-1)


def feed_forward_tensors(
    plan: Plan, options: Options, layer: LlamaLayer, sample: Sample, moe: bool, seed: int
) -> tuple[Tensors, sparse.Quality | None]:
    """The FFN with the norm before it, and what a sparse split found."""
    norm = {"post_attention_layernorm.weight": layer.post_norm}
    if not moe:
        return norm | feed_forward.dense(layer), None
    assert plan.experts is not None
    if options.ffn == "exact":
        return norm | feed_forward.exact(layer, plan.experts), None
    generator = torch.Generator().manual_seed(seed)
    if options.ffn == "sparse":
        tensors, quality = sparse.sparse(layer, plan.experts, sample.y.flatten(0, 1), generator)
        return norm | tensors, quality
    return norm | feed_forward.grown(layer, plan.experts, sample.y.flatten(0, 1), generator), None
