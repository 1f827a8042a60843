"""Splitting a finished model over ranks, as the official inference folder does.

    embedding           rows of the vocabulary   a token outside the slice gives zeros      -> sum
    q_b / q, kv_b       heads                    attention over the rank's own heads
    o_proj              columns (its heads)                                                 -> sum
    dense FFN           gate, up: rows; down: columns                                       -> sum
    routed experts      whole, consecutive       tokens that chose none of them are skipped \
    shared experts      as the dense FFN                                                    /-> one sum for both
    head                rows of the vocabulary                                              -> join
    q_a, kv_a, norms, gate, eh_proj              whole on every rank

`shard` takes a model as it is, whole in memory or without memory on the meta device, and changes it in place: tensors
become this rank's slices under the same names, four kinds of modules get a sum or a join behind them. Everything else,
caches and generators included, works as before; the model does not know that it is split. What is cached (latents and
rotated keys) has no heads, so every rank holds the whole cache: that is MLA's price under this split.

For inference: collectives here have no gradient.

Shapes: T tokens, K experts per token, D hidden, E the rank's experts, I expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.model.block import Block
from fathom.model.layers import SwiGLU
from fathom.model.mla import MultiHeadLatentAttention
from fathom.model.moe import Experts
from fathom.model.transformer import DeepseekV3
from fathom.parallel.group import Group
from fathom.runtime import UserError


@torch.no_grad()
def shard(model: DeepseekV3, group: Group) -> DeepseekV3:
    """Leave `group.rank`'s part of the model in place; sizes that do not divide are a UserError before any change."""
    check_sizes(model.config, group.size)
    model.embed_tokens = VocabularySlice(model.embed_tokens, group)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    else:
        _narrow(model.lm_head, 0, group)
    model.lm_head.register_forward_hook(lambda module, args, logits: group.join(logits))
    for block in [*model.layers, *(module.block for module in model.mtp)]:
        _shard_block(block, group)
    return model


def check_sizes(config: ModelConfig, ranks: int) -> None:
    """Every side that is cut must be a multiple of the number of ranks."""
    moe = [config.is_moe_layer(i) for i in range(config.num_hidden_layers + config.num_nextn_predict_layers)]
    sides = {"num_attention_heads": config.num_attention_heads, "vocab_size": config.vocab_size}
    if not all(moe):
        sides["intermediate_size"] = config.intermediate_size
    if any(moe):
        sides["n_routed_experts"] = config.n_routed_experts
        sides["the shared experts' width"] = config.n_shared_experts * config.moe_intermediate_size
    for name, side in sides.items():
        if side % ranks:
            raise UserError(
                f"the model cannot be split over {ranks} processes: {name} is {side}, which {ranks} does not divide; "
                "choose a number of processes that divides it"
            )


def _shard_block(block: Block, group: Group) -> None:
    _shard_attention(block.self_attn, group)
    mlp = block.mlp
    if isinstance(mlp, SwiGLU):
        _split_columns(mlp, group)
        mlp.down_proj = SummedLinear(mlp.down_proj, group)
        return
    mlp.experts = ExpertSlice(mlp.experts, group)
    if mlp.shared_experts is not None:
        _split_columns(mlp.shared_experts, group)
        _narrow(mlp.shared_experts.down_proj, 1, group)
    mlp.register_forward_hook(lambda module, args, parts: group.sum(parts))  # routed and shared parts together


def _shard_attention(attention: MultiHeadLatentAttention, group: Group) -> None:
    config = attention.config
    _narrow(attention.q_proj if config.q_lora_rank is None else attention.q_b_proj, 0, group)
    _narrow(attention.kv_b_proj, 0, group)
    attention.o_proj = SummedLinear(attention.o_proj, group)
    attention.config = config.replace(num_attention_heads=config.num_attention_heads // group.size)


def _split_columns(mlp: SwiGLU, group: Group) -> None:
    _narrow(mlp.gate_proj, 0, group)
    _narrow(mlp.up_proj, 0, group)


def _narrow(linear: nn.Linear, axis: int, group: Group) -> None:
    linear.weight = _slice(linear.weight, axis, group)
    linear.out_features, linear.in_features = linear.weight.shape


def _slice(whole: Tensor, axis: int, group: Group) -> nn.Parameter:
    """This rank's slice in memory of its own, so that the whole can be freed."""
    side = whole.shape[axis] // group.size
    part = whole.narrow(axis, group.rank * side, side).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(part, requires_grad=whole.requires_grad)


class VocabularySlice(nn.Embedding):
    """The embedding of the rank's own tokens; the sum over ranks has one term that is not zero."""

    def __init__(self, whole: nn.Embedding, group: Group) -> None:
        rows = whole.num_embeddings // group.size
        super().__init__(rows, whole.embedding_dim, _weight=_slice(whole.weight, 0, group))  # no initialisation
        self.group = group

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]"""
        local = tokens - self.group.rank * self.num_embeddings
        foreign = (local < 0) | (local >= self.num_embeddings)
        rows = F.embedding(local.masked_fill(foreign, 0), self.weight)
        return self.group.sum(rows.masked_fill(foreign[..., None], 0.0))


class SummedLinear(nn.Linear):
    """A linear layer whose input is spread over ranks: each multiplies its columns; the bias is added once."""

    def __init__(self, whole: nn.Linear, group: Group) -> None:
        super().__init__(whole.in_features // group.size, whole.out_features, bias=False, device="meta")
        self.weight = _slice(whole.weight, 1, group)
        self.bias = whole.bias
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """[..., in / ranks] -> [..., out]"""
        y = self.group.sum(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


class ExpertSlice(Experts):
    """The rank's own experts; its result is one term of the sum over ranks."""

    def __init__(self, whole: Experts, group: Group) -> None:
        nn.Module.__init__(self)  # the parameters exist already
        self.gate_up = _slice(whole.gate_up, 0, group)
        self.down = _slice(whole.down, 0, group)
        self.ops = whole.ops
        self.first = group.rank * self.gate_up.shape[0]

    def forward(self, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """[T, D] -> [T, D]; only (token, expert) pairs of this rank are computed, each as a token with one expert."""
        local = indices_TK - self.first
        token, slot = torch.where((local >= 0) & (local < self.gate_up.shape[0]))
        y_TKD = x_TD.new_zeros(*indices_TK.shape, x_TD.shape[1])
        if token.numel():
            index, weight = local[token, slot, None], weights_TK[token, slot, None]
            y_TKD[token, slot] = self.ops.routed_experts(x_TD[token], index, weight, self.gate_up, self.down)
        return y_TKD.sum(dim=1)  # in order of slots, not with index_add: the same bits every time
