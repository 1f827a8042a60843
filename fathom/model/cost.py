"""What a model costs, from its config alone: parameters, FLOPs per token, cache bytes per token.

Planner and benchmarks ask here. V3: 671,026,419,200 parameters in the main model, 684,489,845,504 as stored with the
MTP layer and its copies of embedding and head; 36.6B activated with the head, 37.6B with the embedding too (facts 1.5).
"""

from __future__ import annotations

from dataclasses import dataclass

from fathom.config import ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Counts. The router bias counts, as in the published totals; scales of FP8 weights do not."""

    total: int  # main model
    activated: int  # of the main model, one token: head included, embedding (a lookup) not
    mtp: int  # unique to the MTP modules
    stored: int  # as released: with MTP modules and a copy of embedding and head for each

    @property
    def with_mtp(self) -> int:
        """Main model and MTP modules, nothing counted twice."""
        return self.total + self.mtp


def attention_parameters(c: ModelConfig) -> int:
    """MLA of one layer, both latent norms included."""
    heads, hidden = c.num_attention_heads, c.hidden_size
    if c.q_lora_rank is None:
        query = hidden * heads * c.qk_head_dim
    else:
        query = hidden * c.q_lora_rank + c.q_lora_rank + c.q_lora_rank * heads * c.qk_head_dim
    latent = hidden * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank
    up = c.kv_lora_rank * heads * (c.qk_nope_head_dim + c.v_head_dim)
    bias = 0
    if c.attention_bias:
        bias = (c.q_lora_rank or 0) + c.kv_lora_rank + c.qk_rope_head_dim + hidden
    return query + latent + up + heads * c.v_head_dim * hidden + bias


def ffn_parameters(c: ModelConfig, layer: int) -> tuple[int, int]:
    """(total, activated) of one layer's feed-forward part, gate and router bias included."""
    if not c.is_moe_layer(layer):
        dense = 3 * c.hidden_size * c.intermediate_size
        return dense, dense
    expert = 3 * c.hidden_size * c.moe_intermediate_size
    gate = c.n_routed_experts * (c.hidden_size + int(c.has_router_bias))
    total = gate + expert * (c.n_routed_experts + c.n_shared_experts)
    return total, gate + expert * (c.num_experts_per_tok + c.n_shared_experts)


def layer_parameters(c: ModelConfig, layer: int) -> tuple[int, int]:
    """(total, activated) of one block with its two norms."""
    rest = attention_parameters(c) + 2 * c.hidden_size
    total, activated = ffn_parameters(c, layer)
    return rest + total, rest + activated


def parameters(c: ModelConfig) -> Parameters:
    """See Parameters."""
    vocabulary = c.vocab_size * c.hidden_size
    layers = [layer_parameters(c, i) for i in range(c.num_hidden_layers)]
    head = 0 if c.tie_word_embeddings else vocabulary
    total = vocabulary + head + c.hidden_size + sum(t for t, _ in layers)
    activated = vocabulary + c.hidden_size + sum(a for _, a in layers)
    mtp = sum(
        layer_parameters(c, c.num_hidden_layers + k)[0] + 2 * c.hidden_size**2 + 3 * c.hidden_size
        for k in range(c.num_nextn_predict_layers)
    )
    return Parameters(total, activated, mtp, total + mtp + 2 * vocabulary * c.num_nextn_predict_layers)


def flops_per_token(c: ModelConfig, context: int) -> float:
    """Forward FLOPs of one token: 2 per activated matrix parameter, and naive attention over `context` tokens."""
    attention = 2 * c.num_attention_heads * (c.qk_head_dim + c.v_head_dim) * context * c.num_hidden_layers
    return 2.0 * parameters(c).activated + attention


def training_flops_per_token(c: ModelConfig, length: int, *, mtp: bool = True) -> float:
    """FLOPs of training on one token of rows of `length`: three forwards' worth (backward makes two products for each).

    Causal attention sees half of the row on average. Each MTP module is a block, eh_proj and the head once more.
    """
    context = (length + 1) / 2
    attention = 2 * c.num_attention_heads * (c.qk_head_dim + c.v_head_dim) * context
    forward = flops_per_token(c, 0) + attention * c.num_hidden_layers
    if mtp and c.num_nextn_predict_layers:
        for k in range(c.num_nextn_predict_layers):
            block = layer_parameters(c, c.num_hidden_layers + k)[1]
            forward += 2.0 * (block + 2 * c.hidden_size**2 + c.vocab_size * c.hidden_size) + attention
    return 3 * forward


def cache_bytes_per_token(c: ModelConfig, bytes_per_value: int) -> int:
    """Latent and rotated key, over all layers."""
    return (c.kv_lora_rank + c.qk_rope_head_dim) * c.num_hidden_layers * bytes_per_value
