"""The C++ serving step against the model's own modules, in FP64, on ragged shapes and every way of storage."""

from __future__ import annotations

import dataclasses
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels import cpu
from fathom.kernels.cpu import build
from fathom.kernels.ops import pick
from fathom.kernels.reference import FP8, dequantize_blocks, quantize_blocks
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
from fathom.runtime import UserError

pytestmark = pytest.mark.skipif(build.os.name != "posix", reason="the C++ step is built by a POSIX compiler")

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


def test_available() -> None:
    assert cpu.available() is None


@pytest.mark.parametrize("index", [0, 1], ids=["dense", "moe"])
@pytest.mark.parametrize("name", CONFIGS)
def test_block_in_fp32(name: str, index: int) -> None:
    block = make_block(CONFIGS[name], index)
    steps = [[7, 2, 1], [1, 1, 1], [0, 3, 1], [33, 16, 16], [1, 0, 0], [1, 1, 0]]
    assert_equals_module(block, weights_of(block, "fp32"), steps)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 16, 33, 65])
def test_any_number_of_tokens(tokens: int) -> None:
    """Of one sequence in one step: each sees those before it and itself."""
    block = make_block(ODD, 1)
    assert_equals_module(block, weights_of(block, "fp32"), [[9], [tokens], [2]])


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads(threads: int) -> None:
    block = make_block(ODD, 1)
    weights = weights_of(block, "fp32")
    torch.set_num_threads(threads)
    assert_equals_module(block, weights, [[150, 1], [1, 1], [1, 0], [0, 1], [7, 5], [1, 1]], page_size=4)


@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("first_key", [0, 1])
def test_pages(page_size: int, first_key: int) -> None:
    """Long enough for several blocks of keys; with first_key 1 slot 0 is NaN and must not be read."""
    block = make_block(EVEN, 0)
    steps = [[140, 20], [1, 1], [3, 4]]
    assert_equals_module(block, weights_of(block, "fp32"), steps, page_size=page_size, first_key=first_key)


@pytest.mark.parametrize("index", [0, 1], ids=["dense", "moe"])
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize("name", ["odd", "even", "no q compression, biases"])
def test_stored_weights(name: str, kind: str, index: int) -> None:
    block = make_block(CONFIGS[name], index)
    weights = weights_of(block, kind)
    assert_equals_module(block, weights, [[6, 2], [1, 0], [1, 1], [1, 2], [2, 2], [20, 17]])


@pytest.mark.parametrize("fp8_block", [(64, 64), (3, 128), (16, 16), (5, 7)], ids=str)
def test_any_fp8_block(fp8_block: tuple[int, int]) -> None:
    block = make_block(EVEN, 1)
    assert_equals_module(block, weights_of(block, "fp8", fp8_block), [[6, 2], [1, 0], [9, 5]])


def test_kinds_side_by_side() -> None:
    """Each matrix in its own dtype."""
    block = make_block(EVEN, 1)
    w, bf16, fp32 = (weights_of(block, kind) for kind in ("fp8", "bf16", "fp32"))  # each rounds what is there already
    assert w.shared is not None and bf16.shared is not None and fp32.shared is not None
    attention = dataclasses.replace(w.attention, q_a=bf16.attention.q_a, kv_b=bf16.attention.kv_b, o=fp32.attention.o)
    shared = FeedForwardWeights(fp32.shared.gate, bf16.shared.up, bf16.shared.down)
    mixed = dataclasses.replace(fp32, attention=attention, shared=shared, gate_up=bf16.gate_up, down=w.down)
    matrices = [attention.kv_a, attention.q_b, w.down]
    parameters = [block.self_attn.kv_a_proj_with_mqa, block.self_attn.q_b_proj]
    with torch.no_grad():
        for module, matrix in zip(parameters, matrices, strict=False):
            module.weight.copy_(matrix.dense())
        assert isinstance(block.mlp, MoE)
        block.mlp.experts.down.copy_(w.down.dense())  # type: ignore[union-attr]
    assert_equals_module(block, mixed, [[6, 2], [1, 0], [9, 5]])


@pytest.mark.parametrize("k_rope", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("latent", [torch.float32, torch.bfloat16, FP8], ids=str)
@pytest.mark.parametrize("name", ["odd", "even"])
def test_cache_dtypes(name: str, latent: torch.dtype, k_rope: torch.dtype) -> None:
    """The pool holds the rounded latents, and attention over what it holds is exact."""
    block = make_block(CONFIGS[name], 0)
    weights = weights_of(block, "fp32")
    steps, size = [[40, 9], [1, 1], [5, 3], [1, 0]], PAGE_SIZES[name]
    outputs, _, inputs, world, pool = run_steps(block, weights, steps, page_size=size, latent=latent, k_rope=k_rope)
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


def held(pool: PagedLatents, world: World, row: int, length: int) -> tuple[Tensor, Tensor]:
    """FP32 latents and rope keys of a sequence as the pool holds them."""
    slot = torch.arange(world.first_key, world.first_key + length)
    pages, offsets = world.table[row, slot // world.page_size].long(), slot % world.page_size
    latent = pool.latent[pages, offsets].float()
    if pool.scale is not None:
        latent = latent * pool.scale[pages, offsets].repeat_interleave(128, dim=-1)[:, : latent.shape[-1]]
    return latent, pool.k_rope[pages, offsets].float()


def test_fp8_latents_are_rounded_to_nearest() -> None:
    """Code for code what PyTorch's own conversion gives, subnormals and the largest value included."""
    block = make_block(EVEN, 0)
    weights = weights_of(block, "fp32")
    outputs, _, inputs, world, pool = run_steps(block, weights, [[200]], page_size=16, latent=FP8)
    exact, _, _, exact_world, exact_pool = run_steps(block, weights, [[200]], page_size=16)
    values, _ = held(exact_pool, exact_world, 0, 200)
    tiles = values.unflatten(-1, (-1, 128))
    scale = tiles.abs().amax(-1) / 448
    got_scale = pool.scale[world.table[0, torch.arange(200) // 16].long(), torch.arange(200) % 16]  # type: ignore[index]
    assert torch.equal(got_scale, scale)
    codes = (tiles / scale[..., None]).to(FP8).flatten(-2)
    got = pool.latent[world.table[0, torch.arange(200) // 16].long(), torch.arange(200) % 16]
    assert torch.equal(got.view(torch.uint8), codes.view(torch.uint8))
    assert (codes.view(torch.uint8) & 0x78 == 0).any() and len(exact) == len(outputs) == len(inputs)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp8"])
def test_every_code_of_a_stored_matrix(kind: str) -> None:
    """A matrix that holds all finite values of its kind (of BF16: all exponents) is read without an error in any."""
    if kind == "fp8":
        codes = torch.arange(256, dtype=torch.uint8)
        codes = codes[(codes & 0x7F) != 0x7F].repeat(6)[: 127 * 11].view(11, 127)
        matrix = Matrix(codes.view(FP8), torch.full((1, 1), 0.5))
    else:
        w = torch.randn(11, 127, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 20, 127)
        matrix = Matrix(w if kind == "fp32" else w.bfloat16())
    dense = matrix.dense()
    assert torch.equal(cpu.linear(torch.eye(127), matrix), dense.T)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("shape", [(1, 1), (8, 64), (13, 37), (200, 300)], ids=str)
def test_linear(shape: tuple[int, int], kind: str) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    matrix = stored(torch.randn(shape, generator=g), kind)
    gain = torch.randn(shape[1], generator=g)
    head = cpu.CpuLinear(matrix, gain, 1e-3)
    for tokens in (0, 1, 2, 3, 6, 41):
        x = torch.randn(tokens, shape[1], generator=g)
        dense = matrix.dense().double()
        wanted = x.double() @ dense.T
        # relative to the sum of magnitudes: with few columns the values cancel
        bound = x.double().abs() @ dense.abs().T
        assert ((cpu.linear(x, matrix) - wanted).abs() <= 1e-6 * bound).all()
        normed = nn.functional.rms_norm(x.double(), (shape[1],), gain.double(), 1e-3)
        assert ((head(x) - normed @ dense.T).abs() <= 2e-6 * (normed.abs() @ dense.abs().T)).all()


def test_write_latents() -> None:
    """The same cache as the whole block writes, and nothing else of it."""
    block = make_block(ODD, 1)
    weights = weights_of(block, "bf16")
    *_, inputs, world, pool = run_steps(block, weights, [[9, 4]])
    again = World(ODD, [9, 4], 5)
    other = empty_pool(ODD, again.pages, 5, torch.float32, torch.float32)
    cpu.write_latents(torch.cat(inputs), weights, again.batch([9, 4]), other)
    assert torch.equal(pool.latent.nan_to_num(-1), other.latent.nan_to_num(-1))
    assert torch.equal(pool.k_rope.nan_to_num(-1), other.k_rope.nan_to_num(-1))
    assert other.latent.isnan().any() and world.pages == again.pages


def test_several_blocks_in_one_call() -> None:
    """Equal, bit for bit, to one call per block."""
    blocks = [make_block(ODD, index) for index in (0, 1)]
    weights = [weights_of(block, "fp32") for block in blocks]
    x = torch.randn(9, ODD.hidden_size, generator=torch.Generator().manual_seed(0))
    outs = []
    for whole in (True, False):
        world = World(ODD, [9], 5)
        pools = [empty_pool(ODD, world.pages, 5, torch.float32, torch.float32) for _ in blocks]
        batch = world.batch([9])
        if whole:
            y, chosen = cpu.CpuBlocks(weights)(x, batch, pools)
            assert chosen[0] is None
        else:
            y, _ = cpu.CpuBlock(weights[0])(x, batch, pools[0])
            y, experts = cpu.CpuBlock(weights[1])(y, batch, pools[1])
            assert torch.equal(experts, chosen[1])  # type: ignore[arg-type]
        outs.append(y)
    assert torch.equal(*outs)


@pytest.mark.parametrize("kind", ["fp32", "fp8"])
@pytest.mark.parametrize("name", ["odd", "even"])
def test_company_and_threads_change_no_bit(name: str, kind: str) -> None:
    """A token's result is the same alone, in a chunk, beside others, and on any number of threads."""
    block = make_block(CONFIGS[name], 1)
    weights = weights_of(block, kind)
    runs = []
    for threads, steps in [
        (1, [[300, 7]]),
        (1, [[290, 0], [1, 5], [9, 1], [0, 1]]),
        (3, [[299, 6], [1, 1]]),
        (2, [[296, 6], [4, 1]]),
    ]:
        torch.set_num_threads(threads)
        outputs, *_ = run_steps(block, weights, steps)
        runs.append(outputs)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_equal_scores_go_to_the_lowest_expert() -> None:
    block = make_block(ODD.replace(n_group=1, topk_group=1), 1)
    with torch.no_grad():
        assert isinstance(block.mlp, MoE)
        block.mlp.gate.weight.zero_()
        block.mlp.gate.e_score_correction_bias.zero_()
    _, experts, *_ = run_steps(block, weights_of(block, "fp32"), [[3]])
    assert experts[0] is not None and experts[0].tolist() == [[0, 1, 2]] * 3


def test_nan_stays_in_its_sequence() -> None:
    """A broken input shows in its own output, touches no other sequence, and routes somewhere valid."""
    block = make_block(ODD, 1)
    weights = weights_of(block, "fp32")
    world = World(ODD, [4, 4], 5)
    x = torch.randn(8, ODD.hidden_size, generator=torch.Generator().manual_seed(0))
    pools = [empty_pool(ODD, world.pages, 5, torch.float32, torch.float32) for _ in range(2)]
    batch = world.batch([4, 4])
    good, _ = cpu.CpuBlock(weights)(x, batch, pools[0])
    x[1, 3] = float("nan")
    out, chosen = cpu.CpuBlock(weights)(x, batch, pools[1])
    assert out[1:4].isnan().all() and torch.equal(out[4:], good[4:]) and torch.equal(out[0], good[0])
    assert chosen is not None and ((chosen >= 0) & (chosen < ODD.n_routed_experts)).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("slots", 10_000), ("slots", -1), ("rows", 1), ("rows", -1), ("last_key", 1_000), ("last_key", -1),
     ("page_table", 99), ("page_table", -1)],
)  # fmt: skip
def test_indices_outside_the_cache_are_refused(field: str, value: int) -> None:
    world = World(ODD, [8], 5)
    batch = world.batch([8])
    getattr(batch, field).view(-1)[1] = value
    pool = empty_pool(ODD, world.pages, 5, torch.float32, torch.float32)
    with pytest.raises(UserError, match="outside the cache"):
        cpu.CpuBlock(weights_of(make_block(ODD, 0), "fp32"))(torch.zeros(8, ODD.hidden_size), batch, pool)


def test_matrices_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(UserError, match="float16 is not known"):
        cpu.CpuLinear(Matrix(torch.zeros(4, 4, dtype=torch.float16)))
    with pytest.raises(UserError, match="without its scales"):
        cpu.CpuLinear(Matrix(torch.zeros(4, 4).to(FP8)))
    with pytest.raises(UserError, match="contiguous"):
        cpu.CpuLinear(Matrix(torch.zeros(4, 8)[:, ::2]))
    with pytest.raises(UserError, match=r"scales of shape \(1, 1\)"):
        cpu.CpuLinear(Matrix(torch.zeros(200, 4).to(FP8), torch.ones(1, 1)))


def test_fp8_values_are_those_of_the_definition() -> None:
    w = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    q, scale = quantize_blocks(w)
    got = cpu.linear(torch.eye(200), Matrix(q, scale))
    wanted = dequantize_blocks(q, scale).T
    assert (got - wanted).abs().max() <= 1e-6 * wanted.abs().max()


# ---- the build cache ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of one line instead of the real one, and an empty cache."""
    source = tmp_path / "source"
    source.mkdir()
    (source / build.MAIN).write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return source


def test_second_build_is_the_first(small_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.library()
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(build, "_compile", None)  # would fail if it were called
    assert build.library() == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    monkeypatch.undo()


def test_other_source_is_another_library(small_source: Path) -> None:
    first = build.library()
    (small_source / build.MAIN).write_text('extern "C" int answer() { return 43; }\n')
    second = build.library()
    assert second != first and first.exists() and second.exists()


@pytest.mark.usefixtures("small_source")
def test_broken_compiler_gives_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "block.cpp:1: error: no such thing" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(build.BuildError, match=r"cannot compile.*no such thing"):
        build.library()
    assert not list((tmp_path / "cache" / "fathom" / "kernels").iterdir())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"no-such-compiler.*unset CXX"):
        build.library()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.library()


@pytest.mark.usefixtures("small_source")
def test_reason_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.kernels.cpu import step

    monkeypatch.setenv("CXX", "no-such-compiler")
    step._load.cache_clear()
    try:
        assert "no-such-compiler" in str(cpu.available())
        with pytest.raises(UserError, match=r"not available.*no-such-compiler"):
            cpu.CpuLinear(Matrix(torch.zeros(2, 2)))
    finally:
        monkeypatch.undo()
        step._load.cache_clear()


@pytest.mark.usefixtures("small_source")
def test_cache_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build.cache_folder()
    folder.chmod(0o777)
    assert stat.S_IMODE(build.cache_folder().stat().st_mode) == 0o700
    monkeypatch.setattr(build.os, "getuid", lambda: 12345)
    with pytest.raises(build.BuildError, match="belongs to another user"):
        build.library()


@pytest.mark.parametrize("flags", ["-mno-avx512f -mno-avx2 -mno-avx -mno-fma"])
def test_without_wide_vectors(flags: str, tmp_path: Path) -> None:
    """The portable form compiles; the library of the widest one is what the other tests run."""
    command = [*build.find_compiler(), *build.FLAGS, *flags.split(), "-O0", "-fsyntax-only"]
    done = subprocess.run([*command, str(build.SOURCE / build.MAIN)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
