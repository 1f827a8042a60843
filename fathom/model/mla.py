"""Multi-head Latent Attention (report section 2.1.1): keys and values of all heads come from one small latent.

    c^Q = norm(W^DQ h)         q = W^UQ c^Q            per head [nope | rope]        (q_a, q_b; or q_proj alone)
    [c^KV | k^R] = W^DKV h     c^KV = norm(c^KV)       k^R = RoPE(k^R), one for all heads, not normed
    [k^C | v] = W^UKV c^KV     k = [k^C | k^R]         o = softmax(scale q.k) v      u = W^O o

Two forms of the same function, side by side:
  naive     expand keys and values from the latent, then ordinary attention: training and prefill (compute bound)
  absorbed  fold W^UK into the query and W^UV into the output, attend over the latent itself: decode. The cache holds
            kv_lora_rank + qk_rope_head_dim values per token and layer (512 + 64 at V3's size), whatever the heads.

The latent norms use eps 1e-6 in every release, whatever `rms_norm_eps` says.

Shapes: B batch, T new tokens, S cached + new tokens, H heads, N nope, R rope, V value width, C latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels.attention import attention
from fathom.kernels.pointwise import rotate, wide
from fathom.model.layers import RMSNorm, dense_weight

AttentionForm = Literal["naive", "absorbed"]
LATENT_NORM_EPS = 1e-6


@dataclass
class LayerCache:
    """Latent cache of one layer: normed latents [B, max, C] and rotated keys [B, max, R]."""

    latent: Tensor
    k_rope: Tensor

    def append(self, latent_BTC: Tensor, k_rope_BTR: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Write new tokens at `start`; return all of them, [B, S, C] and [B, S, R]."""
        end = start + latent_BTC.shape[1]
        self.latent[:, start:end] = latent_BTC
        self.k_rope[:, start:end] = k_rope_BTR
        return self.latent[:, :end], self.k_rope[:, :end]


class MultiHeadLatentAttention(nn.Module):
    """MLA with or without query compression."""

    def __init__(self, config: ModelConfig, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = config
        heads, hidden, bias = config.num_attention_heads, config.hidden_size, config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * config.qk_head_dim, bias=False, device=device)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=bias, device=device)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS, device)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False, device=device)
        latent = config.kv_lora_rank
        self.kv_a_proj_with_mqa = nn.Linear(hidden, latent + config.qk_rope_head_dim, bias=bias, device=device)
        self.kv_a_layernorm = RMSNorm(latent, LATENT_NORM_EPS, device)
        per_head = config.qk_nope_head_dim + config.v_head_dim
        self.kv_b_proj = nn.Linear(latent, heads * per_head, bias=False, device=device)
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=bias, device=device)
        self.core: Callable[..., Tensor] = attention  # of the naive form

    def forward(
        self,
        h_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        start: int = 0,
        form: AttentionForm = "naive",
    ) -> Tensor:
        """Attention output [B, T, D]. `mask` [B or 1, T, S]: True where attention is allowed; None is causal, S = T."""
        q_nope, q_rope = self.queries(h_BTD, rope)
        latent, k_rope = self.latents(h_BTD, rope)
        if cache is not None:
            latent, k_rope = cache.append(latent, k_rope, start)
        attend = self.naive if form == "naive" else self.absorbed
        o_BTHV = attend(q_nope, q_rope, latent.to(h_BTD.dtype), k_rope.to(h_BTD.dtype), mask)
        out: Tensor = self.o_proj(o_BTHV.flatten(2))
        return out

    def queries(self, h: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> q_nope [B, T, H, N] and rotated q_rope [B, T, H, R]."""
        c = self.config
        q = self.q_proj(h) if c.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(h)))
        q_nope, q_rope = q.unflatten(-1, (c.num_attention_heads, c.qk_head_dim)).split(
            [c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1
        )
        return q_nope, rotate(q_rope, *rope)

    def latents(self, h: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> what the cache keeps: normed latents [B, T, C] and rotated keys [B, T, R]."""
        c = self.config
        latent, k_rope = self.kv_a_proj_with_mqa(h).split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        return self.kv_a_layernorm(latent), rotate(k_rope[:, :, None], *rope)[:, :, 0]

    def naive(
        self, q_nope: Tensor, q_rope: Tensor, latent_BSC: Tensor, k_rope_BSR: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention over expanded keys and values -> [B, T, H, V]."""
        c = self.config
        heads = c.num_attention_heads
        k_nope, v = (
            self.kv_b_proj(latent_BSC).unflatten(-1, (heads, -1)).split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        )
        k_rope = k_rope_BSR[:, :, None].expand(-1, -1, heads, -1)
        q = torch.cat((q_nope, q_rope.to(q_nope.dtype)), dim=-1).transpose(1, 2)
        k = torch.cat((k_nope, k_rope.to(k_nope.dtype)), dim=-1).transpose(1, 2)
        o = self.core(q, k, v.transpose(1, 2), None if mask is None else mask[:, None], c.softmax_scale)
        return o.transpose(1, 2)

    def absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent_BSC: Tensor, k_rope_BSR: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The same attention over the latents themselves -> [B, T, H, V]."""
        c = self.config
        w_uk, w_uv = (
            dense_weight(self.kv_b_proj, q_nope.dtype)
            .unflatten(0, (c.num_attention_heads, -1))
            .split([c.qk_nope_head_dim, c.v_head_dim], dim=1)
        )
        q_latent = torch.einsum("bthn,hnc->bthc", q_nope, w_uk)
        scores = torch.einsum("bthc,bsc->bhts", q_latent, latent_BSC)
        scores = scores + torch.einsum("bthr,bsr->bhts", q_rope, k_rope_BSR)
        scores = wide(scores) * c.softmax_scale
        if mask is None:
            new, total = scores.shape[-2:]
            mask = torch.ones(new, total, dtype=torch.bool, device=scores.device).tril(total - new)[None]
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
        weights = scores.softmax(dim=-1).to(latent_BSC.dtype)
        z = torch.einsum("bhts,bsc->bthc", weights, latent_BSC)
        return torch.einsum("bthc,hvc->bthv", z, w_uv)
