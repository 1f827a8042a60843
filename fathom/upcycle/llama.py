"""The original model in plain PyTorch, FP32: what an upcycle calibrates on, is measured against, and distils from.

    x = norm(h) g     q, k, v = W x (+ b)     h += W_o attention(rope(q), rope(k), v)     H/G query heads share a key
    y = norm(h) g'    h += W_down (silu(W_gate y) * W_up y)                               logits = W_head norm(h)

Rows of q and k stand for adjacent rotary pairs (source.py). A layer is read, used and dropped by whoever cannot hold
the whole model; `Llama` holds it.

Shapes: B rows, T tokens, D hidden, H query heads, G key heads, d head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.kernels.pointwise import plain_rotate
from fathom.model.transformer import attention_mask
from fathom.upcycle.source import LlamaConfig, Source

Rope = tuple[Tensor, Tensor]


def rotation(config: LlamaConfig, length: int, device: torch.device | None = None) -> Rope:
    """cos and sin [T, d/2] of positions 0 .. T-1."""
    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * config.rope_theta ** (-pair / config.head_dim)
    return angle.cos().to(device, torch.float32), angle.sin().to(device, torch.float32)


@dataclass(frozen=True)
class LlamaLayer:
    """The weights of one layer, [out, in]. Biases are there for qwen2."""

    config: LlamaConfig
    input_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    post_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None

    @classmethod
    def read(cls, source: Source, index: int) -> LlamaLayer:
        """Layer `index` of a checkpoint."""
        at = f"model.layers.{index}."
        get = {
            "input_norm": "input_layernorm.weight", "post_norm": "post_attention_layernorm.weight",
            **{name: f"self_attn.{name}_proj.weight" for name in "qkvo"},
            **{name: f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
        }  # fmt: skip
        if source.config.qkv_bias:
            get |= {f"{name}_bias": f"self_attn.{name}_proj.bias" for name in "qkv"}
        return cls(source.config, **{name: source.tensor(at + tensor) for name, tensor in get.items()})

    def to(self, device: torch.device | str) -> LlamaLayer:
        """A copy on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return LlamaLayer(**(values | {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}))

    def norm(self, h: Tensor, gain: Tensor) -> Tensor:
        """RMSNorm [..., D] -> [..., D]"""
        return F.rms_norm(h, gain.shape, gain, self.config.rms_norm_eps)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed [..., D] -> q [..., H, d], k and v [..., G, d], not yet rotated."""
        c = self.config
        q = F.linear(x, self.q, self.q_bias).unflatten(-1, (c.num_attention_heads, c.head_dim))
        k = F.linear(x, self.k, self.k_bias).unflatten(-1, (c.num_key_value_heads, c.head_dim))
        return q, k, F.linear(x, self.v, self.v_bias).unflatten(-1, (c.num_key_value_heads, c.head_dim))

    def attend(self, x: Tensor, rope: Rope, mask: Tensor | None = None) -> Tensor:
        """Normed [B, T, D] -> what attention adds to the residual, [B, T, D]. `mask` [B or 1, T, T]; None is causal."""
        q, k, v = self.project(x)
        q, k, v = (t.transpose(1, 2) for t in (plain_rotate(q, *rope), plain_rotate(k, *rope), v))
        allowed = None if mask is None else mask[:, None]
        o = F.scaled_dot_product_attention(q, k, v, allowed, is_causal=mask is None, enable_gqa=True)
        return F.linear(o.transpose(1, 2).flatten(2), self.o)

    def feed_forward(self, y: Tensor) -> Tensor:
        """Normed [..., D] -> what the FFN adds to the residual."""
        return F.linear(F.silu(F.linear(y, self.gate)) * F.linear(y, self.up), self.down)

    def forward(self, h: Tensor, rope: Rope, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]"""
        h = h + self.attend(self.norm(h, self.input_norm), rope, mask)
        return h + self.feed_forward(self.norm(h, self.post_norm))


@dataclass(frozen=True)
class Llama:
    """The whole model in memory."""

    config: LlamaConfig
    embedding: Tensor
    layers: tuple[LlamaLayer, ...]
    final_norm: Tensor
    head: Tensor

    @classmethod
    def load(cls, source: Source) -> Llama:
        """Everything of a checkpoint in FP32."""
        c = source.config
        embedding = source.tensor("model.embed_tokens.weight")
        layers = tuple(LlamaLayer.read(source, i) for i in range(c.num_hidden_layers))
        head = embedding if c.tie_word_embeddings else source.tensor("lm_head.weight")
        return cls(c, embedding, layers, source.tensor("model.norm.weight"), head)

    def to(self, device: torch.device | str) -> Llama:
        """A copy on another device."""
        layers = tuple(layer.to(device) for layer in self.layers)
        embedding = self.embedding.to(device)
        head = embedding if self.head is self.embedding else self.head.to(device)
        return Llama(self.config, embedding, layers, self.final_norm.to(device), head)

    def hidden(self, tokens: Tensor, *, segments: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, D] after the final norm; tokens see only their own of `segments` [B, T]."""
        rope = rotation(self.config, tokens.shape[1], tokens.device)
        mask = attention_mask(tokens.shape[1], 0, segments, tokens.device)
        h = self.embedding[tokens]
        for layer in self.layers:
            h = layer.forward(h, rope, mask)
        return F.rms_norm(h, self.final_norm.shape, self.final_norm, self.config.rms_norm_eps)

    def logits(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, V]"""
        return F.linear(self.hidden(tokens), self.head)
