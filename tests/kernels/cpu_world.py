"""Random blocks, ways of storing them, and sequences over a pool of pages: what the tests of the C++ step share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels import cpu
from fathom.kernels.ops import pick
from fathom.kernels.reference import FP8, quantize_blocks
from fathom.kernels.step import (
    AttentionWeights,
    BlockWeights,
    FeedForwardWeights,
    Matrix,
    PagedLatents,
    RouterWeights,
    StepBatch,
)
from fathom.model.block import Block
from fathom.model.mla import LATENT_NORM_EPS
from fathom.model.moe import MoE, Routing
from fathom.model.rope import rotation

# Odd widths: no multiple of a vector anywhere, heads that do not fill a block of four, more than one chunk of units.
ODD = ModelConfig(
    vocab_size=50, hidden_size=52, intermediate_size=75, moe_intermediate_size=67, num_hidden_layers=2,
    num_nextn_predict_layers=0, num_attention_heads=5, n_routed_experts=12, num_experts_per_tok=3, n_group=4,
    topk_group=2, first_k_dense_replace=1, q_lora_rank=19, kv_lora_rank=23, qk_nope_head_dim=7, qk_rope_head_dim=6,
    v_head_dim=11, max_position_embeddings=512,
)  # fmt: skip
EVEN = ODD.replace(
    hidden_size=256, intermediate_size=192, moe_intermediate_size=128, num_attention_heads=4, q_lora_rank=128,
    kv_lora_rank=256, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=64, n_routed_experts=8,
)  # fmt: skip
CONFIGS = {
    "odd": ODD,
    "even": EVEN,
    "no q compression, biases": ODD.replace(q_lora_rank=None, attention_bias=True),
    "biases, no groups": ODD.replace(attention_bias=True, n_group=1, topk_group=1, n_shared_experts=0),
    "v2": ODD.replace(model_type="deepseek_v2", scoring_func="softmax", topk_method="group_limited_greedy",
                      norm_topk_prob=False, n_shared_experts=2, routed_scaling_factor=16.0),
    "one head": ODD.replace(num_attention_heads=1, hidden_size=33),
}  # fmt: skip
PAGE_SIZES = {"odd": 5, "even": 16}


def make_block(config: ModelConfig, index: int) -> Block:
    """FP32 block in which nothing is trivial."""
    g = torch.Generator().manual_seed(index + config.hidden_size)
    block = Block(config, index, pick("reference"))
    with torch.no_grad():
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=g)
            one = 0.0 if "bias" in name else 1.0
            tensor.copy_(0.2 * noise + one if tensor.dim() == 1 else noise * tensor.shape[-1] ** -0.5)
    return block.eval()


def stored(w: Tensor, kind: str, block: tuple[int, int] = (128, 128)) -> Matrix:
    """`w` as FP32, BF16 or FP8."""
    w = w.detach()
    if kind != "fp8":
        return Matrix(w.to({"fp32": torch.float32, "bf16": torch.bfloat16}[kind]).contiguous())
    if w.dim() == 2:
        return Matrix(*quantize_blocks(w, block), block)
    parts = [quantize_blocks(part, block) for part in w]
    return Matrix(torch.stack([q for q, _ in parts]), torch.stack([s for _, s in parts]), block)


def weights_of(block: Block, kind: str, fp8_block: tuple[int, int] = (128, 128)) -> BlockWeights:
    """BlockWeights of a module; the module's own matrices become the rounded ones, so that both compute the same."""

    def take(parameter: nn.Parameter) -> Matrix:
        matrix = stored(parameter, kind, fp8_block)
        with torch.no_grad():
            parameter.copy_(matrix.dense())
        return matrix

    a, c = block.self_attn, block.self_attn.config
    compressed = c.q_lora_rank is not None
    q_a_bias = a.q_a_proj.bias if compressed else None
    attention = AttentionWeights(
        heads=c.num_attention_heads, nope=c.qk_nope_head_dim, rope=c.qk_rope_head_dim, value=c.v_head_dim,
        latent=c.kv_lora_rank, scale=c.softmax_scale, norm_eps=LATENT_NORM_EPS,
        q_a=take(a.q_a_proj.weight) if compressed else None,
        q_a_norm=a.q_a_layernorm.weight if compressed else None,
        q_b=take(a.q_b_proj.weight if compressed else a.q_proj.weight),
        kv_a=take(a.kv_a_proj_with_mqa.weight), kv_a_norm=a.kv_a_layernorm.weight, kv_b=take(a.kv_b_proj.weight),
        o=take(a.o_proj.weight), q_a_bias=q_a_bias, kv_a_bias=a.kv_a_proj_with_mqa.bias, o_bias=a.o_proj.bias,
    )  # fmt: skip
    out = BlockWeights(c.rms_norm_eps, block.input_layernorm.weight, attention, block.post_attention_layernorm.weight)

    def swiglu(m: nn.Module) -> FeedForwardWeights:
        return FeedForwardWeights(take(m.gate_proj.weight), take(m.up_proj.weight), take(m.down_proj.weight))

    if not isinstance(block.mlp, MoE):
        return dataclasses.replace(out, dense=swiglu(block.mlp))
    gate, groups = block.mlp.gate, c.n_group if c.limits_groups else 1
    router = RouterWeights(
        gate.weight, gate.e_score_correction_bias if c.has_router_bias else None, c.num_experts_per_tok, groups,
        c.topk_group if c.limits_groups else 1, c.scoring_func == "sigmoid", c.norm_topk_prob, c.routed_scaling_factor,
    )  # fmt: skip
    shared = block.mlp.shared_experts
    return dataclasses.replace(
        out,
        router=router,
        gate_up=take(block.mlp.experts.gate_up),
        down=take(block.mlp.experts.down),
        shared=None if shared is None else swiglu(shared),
    )


def empty_pool(
    config: ModelConfig, pages: int, page_size: int, latent: torch.dtype, k_rope: torch.dtype
) -> PagedLatents:
    """NaN everywhere: a slot read before it is written shows."""
    c = config.kv_lora_rank
    scale = torch.full((pages, page_size, -(-c // 128)), float("nan")) if latent == FP8 else None
    data = torch.full((pages, page_size, c), float("nan")).to(latent)
    return PagedLatents(data, torch.full((pages, page_size, config.qk_rope_head_dim), float("nan")).to(k_rope), scale)


class World:
    """Sequences whose pages are dealt out of one pool in random order, fed step by step to the kernel."""

    def __init__(self, config: ModelConfig, lengths: list[int], page_size: int, first_key: int = 0) -> None:
        self.config, self.page_size, self.first_key = config, page_size, first_key
        self.done = [first_key] * len(lengths)  # slot 0 .. first_key stay unwritten
        per_row = [-(-length // page_size) for length in lengths]
        self.pages = sum(per_row) + 2
        order = torch.randperm(self.pages, generator=torch.Generator().manual_seed(7)).int()
        self.table = torch.zeros(len(lengths), max(per_row), dtype=torch.int32)
        taken = 0
        for row, count in enumerate(per_row):
            self.table[row, :count] = order[taken : taken + count]
            taken += count

    def batch(self, counts: list[int]) -> StepBatch:
        """The next `counts[i]` tokens of sequence i; positions count from first_key."""
        rows, keys = [], []
        for row, count in enumerate(counts):
            rows += [row] * count
            keys += range(self.done[row], self.done[row] + count)
            self.done[row] += count
        rows_T, keys_T = torch.tensor(rows, dtype=torch.int32), torch.tensor(keys)
        pages = self.table[rows_T.long(), keys_T // self.page_size].long()
        cos, sin = rotation(self.config, keys_T - self.first_key)
        return StepBatch(
            rows_T, pages * self.page_size + keys_T % self.page_size, (keys_T + 1).int(), self.table, cos, sin,
            self.first_key,
        )  # fmt: skip


def run_steps(
    block: Block, weights: BlockWeights, steps: list[list[int]], *, page_size: int = 5, first_key: int = 0,
    latent: torch.dtype = torch.float32, k_rope: torch.dtype = torch.float32,
) -> tuple[list[Tensor], list[Tensor | None], list[Tensor], World, PagedLatents]:  # fmt: skip
    """Runs the kernel over `steps` (tokens per sequence); outputs, experts and inputs per sequence, in order."""
    config = block.self_attn.config
    lengths = [sum(step[i] for step in steps) + first_key for i in range(len(steps[0]))]
    world = World(config, lengths, page_size, first_key)
    pool = empty_pool(config, world.pages, page_size, latent, k_rope)
    g = torch.Generator().manual_seed(3)
    inputs = [torch.randn(length - first_key, config.hidden_size, generator=g) for length in lengths]
    kernel, at = cpu.CpuBlock(weights), [0] * len(lengths)
    outputs: list[list[Tensor]] = [[] for _ in lengths]
    experts: list[list[Tensor]] = [[] for _ in lengths]
    for step in steps:
        x = torch.cat([inputs[i][at[i] : at[i] + n] for i, n in enumerate(step)])
        before = x.clone()
        out, chosen = kernel(x, world.batch(step), pool)
        assert torch.equal(x, before) and out.dtype == torch.float32
        assert (chosen is None) == (weights.router is None)
        for i, part in enumerate(out.split(step)):
            outputs[i].append(part)
            at[i] += step[i]
            if chosen is not None:
                experts[i].append(chosen.split(step)[i])
    joined = [torch.cat(e) if e else None for e in experts]
    return [torch.cat(o) for o in outputs], joined, inputs, world, pool


def assert_equals_module(
    block: Block, weights: BlockWeights, steps: list[list[int]], tolerance: float = 1e-5, **options: object
) -> None:
    """Kernel output and chosen experts against the FP64 module over whole sequences, both forms of attention."""
    outputs, experts, inputs, *_ = run_steps(block, weights, steps, **options)  # type: ignore[arg-type]
    exact = block.double()
    for out, chosen, x in zip(outputs, experts, inputs, strict=True):
        rope = rotation(block.self_attn.config, torch.arange(len(x)))
        rope = (rope[0].double(), rope[1].double())
        for form in ("naive", "absorbed"):
            record: list[Routing] = []
            wanted = exact(x[None].double(), rope, form=form, record=record)[0]
            assert (out - wanted).abs().max() <= tolerance * wanted.abs().max()
            if record:
                assert chosen is not None and torch.equal(chosen, record[0].indices[0])


def held(pool: PagedLatents, world: World, row: int, length: int) -> tuple[Tensor, Tensor]:
    """FP32 latents and rope keys of a sequence as the pool holds them."""
    slot = torch.arange(world.first_key, world.first_key + length)
    pages, offsets = world.table[row, slot // world.page_size].long(), slot % world.page_size
    latent = pool.latent[pages, offsets].float()
    if pool.scale is not None:
        latent = latent * pool.scale[pages, offsets].repeat_interleave(128, dim=-1)[:, : latent.shape[-1]]
    return latent, pool.k_rope[pages, offsets].float()


def assert_attends_to_what_is_held(
    block: Block,
    weights: BlockWeights,
    steps: list[list[int]],
    page_size: int,
    latent: torch.dtype,
    k_rope: torch.dtype,
) -> None:
    """The pool of a dense block holds the rounded latents, and attention over what it holds is exact."""
    outputs, _, inputs, world, pool = run_steps(
        block, weights, steps, page_size=page_size, latent=latent, k_rope=k_rope
    )
    exact, attention = block.double(), block.double().self_attn
    for row, (out, x) in enumerate(zip(outputs, inputs, strict=True)):
        rope = rotation(block.self_attn.config, torch.arange(len(x)))
        h = exact.input_layernorm(x[None].double())
        wanted_latent, wanted_rope = attention.latents(h, (rope[0].double(), rope[1].double()))
        held_latent, held_rope = held(pool, world, row, len(x))
        kept = {torch.float32: 0, torch.bfloat16: 2**-8, FP8: 2**-4}  # half a step of the last bit, relative
        for got, want, dtype in ((held_latent, wanted_latent[0], latent), (held_rope, wanted_rope[0], k_rope)):
            assert ((got - want).abs() <= kept[dtype] * want.abs() + 2e-6 * want.abs().max()).all()
        q = attention.queries(h, (rope[0].double(), rope[1].double()))
        mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()[None]
        o = attention.absorbed(*q, held_latent[None].double(), held_rope[None].double(), mask)
        y = x.double() + attention.o_proj(o.flatten(2))[0]
        wanted = y + exact.mlp(exact.post_attention_layernorm(y))
        assert (out - wanted).abs().max() <= 1e-5 * wanted.abs().max()
