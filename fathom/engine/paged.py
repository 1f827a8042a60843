"""The model over pages of latents: packed tokens of many sequences in, hidden states out.

The plain version (any device) calls the model's own modules and only replaces where keys come from: each new latent is
written to its page, then every sequence attends over its pages.

    few new tokens (decode, verification)   absorbed attention over gathered pages, all sequences of one length together
    a chunk of a prompt                     naive or absorbed, whichever costs fewer operations here (`cheaper_form`)

On a CPU with a compiler, kernels/cpu runs whole blocks instead; tests hold the two together.

The MTP module's latents lie in the same pages, one slot later than their position: slot j holds what the module saw at
position j - 1, that is (hidden state of token j - 1, token j). So a page depends on nothing after its end and can be
shared like every other layer's. Slot 0 stays empty; `page_hidden` keeps the hidden state at the end of each page, from
which a sequence that found the page in the cache goes on.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from fathom.config import ModelConfig
from fathom.kernels.reference import FP8, FP8_MAX, scales_from_amax
from fathom.kernels.step import PagedLatents, StepBatch
from fathom.model.block import Block
from fathom.model.mla import AttentionForm, MultiHeadLatentAttention
from fathom.model.moe import MoE, Routing
from fathom.model.rope import rotation
from fathom.model.transformer import DeepseekV3

FEW = 8  # a sequence with at most this many new tokens attends together with others of its kind
SCALE_TILE = 128


@dataclass(frozen=True)
class Segment:
    """Tokens begin .. end of a step belong to one sequence, row `row` of the page table; it sees `keys` slots."""

    begin: int
    end: int
    row: int
    keys: int

    @property
    def new(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Step:
    """A step for the plain version: the tensors, and the same borders as numbers."""

    batch: StepBatch
    segments: Sequence[Segment]


def cheaper_form(c: ModelConfig, new: int, keys: int) -> AttentionForm:
    """Fewer multiplications for `new` queries over `keys` latents: expanding every key, or folding into queries."""
    heads, latent, rope, nope, value = (
        c.num_attention_heads, c.kv_lora_rank, c.qk_rope_head_dim, c.qk_nope_head_dim, c.v_head_dim,
    )  # fmt: skip
    naive = keys * latent * heads * (nope + value) + new * keys * heads * (nope + rope + value)
    absorbed = new * heads * latent * (nope + value) + new * keys * heads * (2 * latent + rope)
    return "naive" if naive <= absorbed else "absorbed"


CACHES = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False), "fp8": (torch.bfloat16, True)}


def cache_format(cache: str, own: torch.dtype) -> tuple[torch.dtype, bool]:
    """(dtype of the pages, whether latents are FP8) by name; "auto" is `own`."""
    return CACHES[cache] if cache != "auto" else (own, False)


def new_pool(
    c: ModelConfig, pages: int, page_size: int, dtype: torch.dtype, fp8: bool, device: torch.device
) -> PagedLatents:
    """The pages of one layer. `fp8`: the latents in E4M3 with one scale per token and 128 values (facts 9.15)."""
    latent = zeros((pages, page_size, c.kv_lora_rank), FP8 if fp8 else dtype, device)
    k_rope = zeros((pages, page_size, c.qk_rope_head_dim), dtype, device)
    tiles = -(-c.kv_lora_rank // SCALE_TILE)
    scale = zeros((pages, page_size, tiles), torch.float32, device) if fp8 else None
    return PagedLatents(latent, k_rope, scale)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.zeros, but on a CPU the memory is taken as it is first written: most of a large cache never is."""
    if device.type != "cpu" or not math.prod(shape):
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)


def pool_bytes_per_token(c: ModelConfig, dtype: torch.dtype, fp8: bool, layers: int) -> int:
    """Bytes of cache for one token over `layers` layers."""
    latent = c.kv_lora_rank + 4 * -(-c.kv_lora_rank // SCALE_TILE) if fp8 else c.kv_lora_rank * dtype.itemsize
    return layers * (latent + c.qk_rope_head_dim * dtype.itemsize)


def write_latents(pool: PagedLatents, slots: Tensor, latent_TC: Tensor, k_rope_TR: Tensor) -> None:
    """Store new tokens at their slots."""
    pool.k_rope.flatten(0, 1)[slots] = k_rope_TR.to(pool.k_rope.dtype)
    if pool.scale is None:
        pool.latent.flatten(0, 1)[slots] = latent_TC.to(pool.latent.dtype)
        return
    scale = torch.stack([scales_from_amax(t.abs().amax(-1), None) for t in latent_TC.split(SCALE_TILE, -1)], -1)
    spread = scale.repeat_interleave(SCALE_TILE, -1)[:, : latent_TC.shape[-1]]
    quantised = (latent_TC.float() / spread).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    pool.latent.flatten(0, 1).view(torch.uint8)[slots] = quantised.view(torch.uint8)
    pool.scale.flatten(0, 1)[slots] = scale


def read_latents(pool: PagedLatents, pages: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pages [..., M] -> latents [..., M * G, C] and rotated keys [..., M * G, R]."""
    k_rope = pool.k_rope[pages].flatten(-3, -2).to(dtype)
    if pool.scale is None:
        return pool.latent[pages].flatten(-3, -2).to(dtype), k_rope
    latent = pool.latent.view(torch.uint8)[pages].view(FP8).flatten(-3, -2)
    spread = pool.scale[pages].flatten(-3, -2).repeat_interleave(SCALE_TILE, -1)[..., : latent.shape[-1]]
    return (latent.float() * spread).to(dtype), k_rope


def paged_attention(
    attention: MultiHeadLatentAttention, q_nope: Tensor, q_rope: Tensor, step: Step, pool: PagedLatents
) -> Tensor:
    """q [T, H, N], [T, H, R] over the pages of each token's sequence -> [T, H, V]."""
    batch, c = step.batch, attention.config
    out = q_nope.new_empty(*q_nope.shape[:2], c.v_head_dim)
    page_size = pool.latent.shape[1]
    ordered = sorted(step.segments, key=lambda s: s.new)
    few = [s for s in ordered if s.new <= FEW]
    for _, group in groupby(few, key=lambda s: s.new):
        members = list(group)
        index = torch.tensor([range(s.begin, s.end) for s in members], device=out.device)  # [S, new]
        longest = max(s.keys for s in members)
        pages = batch.page_table[torch.tensor([s.row for s in members]), : -(-longest // page_size)].long()
        latent, k_rope = read_latents(pool, pages, q_nope.dtype)
        slot = torch.arange(latent.shape[1], device=out.device)
        mask = (slot >= batch.first_key) & (slot < batch.last_key[index][..., None])  # [S, new, keys]
        out[index] = attention.absorbed(q_nope[index], q_rope[index], latent, k_rope, mask)
    for s in ordered[len(few) :]:
        pages = batch.page_table[s.row, : -(-s.keys // page_size)].long()
        latent, k_rope = (x[: s.keys][None] for x in read_latents(pool, pages, q_nope.dtype))
        chunk_mask: Tensor | None = None
        if s.keys != s.new or batch.first_key:
            slot = torch.arange(s.keys, device=out.device)
            chunk_mask = ((slot >= batch.first_key) & (slot < batch.last_key[s.begin : s.end, None]))[None]
        attend = attention.naive if cheaper_form(c, s.new, s.keys) == "naive" else attention.absorbed
        out[s.begin : s.end] = attend(
            q_nope[None, s.begin : s.end], q_rope[None, s.begin : s.end], latent, k_rope, chunk_mask
        )[0]
    return out


class PlainBlock:
    """One block of the model, serving."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def __call__(self, x_TD: Tensor, step: Step, pool: PagedLatents) -> tuple[Tensor, Tensor | None]:
        """[T, D] -> [T, D], and the experts chosen [T, K] (None for a dense block)."""
        block, attention = self.block, self.block.self_attn
        rope = (step.batch.cos[None], step.batch.sin[None])
        h = block.input_layernorm(x_TD[None])
        q_nope, q_rope = attention.queries(h, rope)
        latent, k_rope = attention.latents(h, rope)
        write_latents(pool, step.batch.slots, latent[0], k_rope[0])
        attended = paged_attention(attention, q_nope[0], q_rope[0], step, pool)
        x = x_TD + attention.o_proj(attended.flatten(1))
        h = block.post_attention_layernorm(x)[None]
        record: list[Routing] = []
        y = block.mlp(h, record) if isinstance(block.mlp, MoE) else block.mlp(h)
        return x + y[0], record[0].indices[0] if record else None

    def write(self, x_TD: Tensor, step: Step, pool: PagedLatents) -> None:
        """Only what the cache keeps of these tokens."""
        rope = (step.batch.cos[None], step.batch.sin[None])
        latent, k_rope = self.block.self_attn.latents(self.block.input_layernorm(x_TD[None]), rope)
        write_latents(pool, step.batch.slots, latent[0], k_rope[0])


class PagedModel:
    """The model with its page pool. `pages` pages of `page_size` tokens in every layer, MTP's included if it drafts."""

    kernels = "torch"
    cache_dtype: torch.dtype | None = None  # with cache "auto"; None: the model's

    def __init__(
        self,
        model: DeepseekV3,
        *,
        pages: int,
        page_size: int,
        mtp: bool,
        cache: str = "auto",
    ) -> None:
        self.model, self.config = model, model.config
        weight = model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        own_dtype = self.cache_dtype or self.dtype
        self.pages, self.page_size = pages, page_size
        self.blocks = [PlainBlock(layer) for layer in model.layers]  # type: ignore[arg-type]
        self.mtp_block = PlainBlock(model.mtp[0].block) if mtp else None  # type: ignore[arg-type]

        def pool() -> PagedLatents:
            return new_pool(self.config, pages, page_size, *cache_format(cache, own_dtype), self.device)

        self.pools = [pool() for _ in self.blocks]
        self.mtp_pool = pool() if mtp else None
        self.page_hidden = zeros((pages, self.config.hidden_size), self.dtype, self.device) if mtp else None
        positions = torch.arange(self.config.max_position_embeddings, device=self.device)
        self._cos, self._sin = rotation(self.config, positions)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [T, R / 2] of positions [T]."""
        return self._cos[positions], self._sin[positions]

    @torch.inference_mode()
    def hidden(self, tokens: Tensor, step: Step, record: list[Tensor] | None = None) -> Tensor:
        """Tokens [T] -> hidden states [T, D] after the final norm; `record` gets the experts [T, K] per MoE layer."""
        x = self.model.embed_tokens(tokens)
        for block, pool in zip(self.blocks, self.pools, strict=True):
            x, experts = block(x, step, pool)
            if record is not None and experts is not None:
                record.append(experts)
        out: Tensor = self.model.norm(x)
        return out

    @torch.inference_mode()
    def draft_hidden(self, h: Tensor, tokens: Tensor, step: Step) -> Tensor:
        """MTP: hidden states [T, D] and the tokens [T] that follow -> the module's hidden states, normed."""
        assert self.mtp_block is not None and self.mtp_pool is not None
        x, _ = self.mtp_block(self._mtp_input(h, tokens), step, self.mtp_pool)
        out: Tensor = self.model.mtp[0].norm(x)  # type: ignore[operator]
        return out

    @torch.inference_mode()
    def fill_mtp(self, h: Tensor, tokens: Tensor, step: Step) -> None:
        """Only the latents of the MTP layer, for tokens from which nothing is drafted."""
        assert self.mtp_block is not None and self.mtp_pool is not None
        self.mtp_block.write(self._mtp_input(h, tokens), step, self.mtp_pool)

    def _mtp_input(self, h: Tensor, tokens: Tensor) -> Tensor:
        module = self.model.mtp[0]
        joined = torch.cat((module.enorm(self.model.embed_tokens(tokens)), module.hnorm(h)), dim=-1)  # type: ignore[operator]
        out: Tensor = module.eh_proj(joined)  # type: ignore[operator]
        return out

    @torch.inference_mode()
    def logits(self, h: Tensor) -> Tensor:
        """[..., D] -> FP32 [..., V]."""
        return self.model.logits(h)
