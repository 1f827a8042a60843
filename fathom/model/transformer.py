"""DeepseekV3: the whole model of both families as one plain nn.Module. It knows one device and no collectives.

    tokens [B, T] -> embed -> blocks (first_k_dense_replace dense, then MoE) -> norm -> head -> logits [B, T, V] FP32

It is never told that it is sharded, served or quantised: parallel/, engine/ and checkpoint/ call or transform it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels.ops import Ops, pick
from fathom.model import cost
from fathom.model.block import Block
from fathom.model.layers import RMSNorm
from fathom.model.mla import AttentionForm, LayerCache
from fathom.model.moe import Routing
from fathom.model.mtp import MTPModule
from fathom.model.rope import rotation


class LatentCache:
    """What decoding keeps: per layer latents and rotated keys, one shared length. Rows of a batch advance together."""

    def __init__(
        self, config: ModelConfig, batch: int, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = [
            LayerCache(
                torch.empty(batch, max_tokens, config.kv_lora_rank, dtype=dtype, device=device),
                torch.empty(batch, max_tokens, config.qk_rope_head_dim, dtype=dtype, device=device),
            )
            for _ in range(config.num_hidden_layers)
        ]
        self.max_tokens = max_tokens
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        assert 0 <= length <= self.length
        self.length = length


class DeepseekV3(nn.Module):
    """The model. `device="meta"` builds it without memory; parameters get `dtype`, the router biases stay FP32."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        ops: Ops | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.ops = ops or pick()
        device = torch.device(device) if device is not None else torch.get_default_device()
        # the weight is given: nn.Embedding's own initialisation on the meta device imports half of torch's compiler
        rows = torch.empty(config.vocab_size, config.hidden_size, device=device)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=rows)
        self.layers = nn.ModuleList(Block(config, i, self.ops, device) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, device)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device=device)
        self.mtp = nn.ModuleList(MTPModule(config, k, self.ops, device) for k in range(config.num_nextn_predict_layers))
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        if dtype is not None:
            self.to_dtype(dtype)

    # ---- forward ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: LatentCache | None = None,
        segments: Tensor | None = None,
        attention: AttentionForm | None = None,
        record: list[Routing] | None = None,
    ) -> Tensor:
        """Logits [B, T, V] FP32 for tokens [B, T]; see `hidden` for the arguments."""
        return self.logits(self.hidden(tokens, cache=cache, segments=segments, attention=attention, record=record))

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: LatentCache | None = None,
        segments: Tensor | None = None,
        attention: AttentionForm | None = None,
        record: list[Routing] | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] after the final norm.

        cache      tokens continue what it holds and are appended to it
        segments   [B, T] sample number of each token: tokens see only their own sample (SFT packing); no cache then
        attention  "naive" or "absorbed"; default naive for whole sequences, absorbed once the cache holds something
        record     receives one Routing per MoE layer
        """
        start = cache.length if cache is not None else 0
        new = tokens.shape[1]
        if cache is not None:
            assert segments is None, "segments and cache exclude each other"
            assert start + new <= cache.max_tokens, f"cache holds {cache.max_tokens} tokens, {start + new} needed"
        form: AttentionForm = attention or ("absorbed" if start else "naive")
        rope = rotation(self.config, torch.arange(start, start + new, device=tokens.device))
        mask = attention_mask(new, start, segments, tokens.device)
        x = self.embed_tokens(tokens)
        layer_caches: Sequence[LayerCache | None] = cache.layers if cache is not None else [None] * len(self.layers)
        for layer, layer_cache in zip(self.layers, layer_caches, strict=True):
            x = layer(x, rope, mask, layer_cache, start, form, record)
        if cache is not None:
            cache.length = start + new
        out: Tensor = self.norm(x)
        return out

    def logits(self, h: Tensor) -> Tensor:
        """The head: hidden states [..., D] -> FP32 logits [..., V]."""
        out: Tensor = self.lm_head(h)
        return out.float()

    def mtp_hidden(
        self,
        h_BTD: Tensor,
        tokens: Tensor,
        depth: int = 0,
        *,
        segments: Tensor | None = None,
        record: list[Routing] | None = None,
    ) -> Tensor:
        """One MTP step: hidden states [B, S, D] of depth k-1 = `depth` and all tokens [B, T] -> [B, T-1-depth, D].

        Position i of the result joins h_i with the embedding of token i+1+depth and predicts token i+2+depth.
        """
        length = tokens.shape[1] - 1 - depth
        rope = rotation(self.config, torch.arange(length, device=tokens.device))
        mask = attention_mask(length, 0, segments[:, :length] if segments is not None else None, tokens.device)
        embedded = self.embed_tokens(tokens[:, 1 + depth :])
        out: Tensor = self.mtp[depth](h_BTD[:, :length], embedded, rope, mask, record=record)
        return out

    def mtp_logits(self, tokens: Tensor, depth: int = 0) -> Tensor:
        """FP32 [B, T-1-depth, V]: position i predicts token i+2+depth from tokens up to i+1+depth."""
        assert depth < len(self.mtp), f"the model has {len(self.mtp)} MTP modules, depth {depth} was asked for"
        h = self.hidden(tokens)
        for k in range(depth + 1):
            h = self.mtp_hidden(h, tokens, k)
        return self.logits(h)

    # ---- state -----------------------------------------------------------------------------------------------------

    def new_cache(self, batch: int, max_tokens: int) -> LatentCache:
        """An empty cache for `batch` rows of at most `max_tokens` tokens."""
        weight = self.embed_tokens.weight
        return LatentCache(self.config, batch, max_tokens, weight.dtype, weight.device)

    def to_dtype(self, dtype: torch.dtype) -> DeepseekV3:
        """Cast the parameters; router biases stay FP32 (BF16 would merge hundreds of values into a few)."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        return self

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> DeepseekV3:
        """The one place of initialisation: every matrix normal with std `initializer_range` (the report: 0.006 for all
        learnable parameters; the distribution was not published), norm gains 1, biases 0."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
        for name, buffer in self.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.zero_()
        return self

    # ---- cost ------------------------------------------------------------------------------------------------------

    def num_parameters(self) -> cost.Parameters:
        """Total and activated parameters (from the config: works on the meta device)."""
        return cost.parameters(self.config)

    def flops_per_token(self, context: int) -> float:
        """Forward FLOPs of one token that sees `context` tokens, naive attention."""
        return cost.flops_per_token(self.config, context)

    def cache_bytes_per_token(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of latent cache for one token over all layers (V3 in BF16: 70,272)."""
        return cost.cache_bytes_per_token(self.config, (dtype or self.embed_tokens.weight.dtype).itemsize)


def attention_mask(new: int, start: int, segments: Tensor | None, device: torch.device) -> Tensor | None:
    """[B or 1, new, start + new] bool, True where attention is allowed; None is plain causal attention from zero."""
    if segments is None and start == 0:
        return None
    causal = torch.ones(new, start + new, dtype=torch.bool, device=device).tril(start)[None]
    return causal if segments is None else causal & (segments[:, :, None] == segments[:, None, :])
