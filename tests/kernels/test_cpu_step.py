"""The C++ serving step against the model's own modules, in FP64, on ragged shapes and every way of storage."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from kernels.cpu_world import (
    CONFIGS,
    EVEN,
    ODD,
    PAGE_SIZES,
    World,
    assert_attends_to_what_is_held,
    assert_equals_module,
    empty_pool,
    held,
    make_block,
    run_steps,
    stored,
    weights_of,
)
from torch import nn

from fathom.kernels import cpu
from fathom.kernels.cpu import build
from fathom.kernels.reference import FP8, dequantize_blocks, quantize_blocks
from fathom.kernels.step import FeedForwardWeights, Matrix
from fathom.model.moe import MoE
from fathom.runtime import UserError

pytestmark = pytest.mark.skipif(build.os.name != "posix", reason="the C++ step is built by a POSIX compiler")


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
    block = make_block(CONFIGS[name], 0)
    steps = [[40, 9], [1, 1], [5, 3], [1, 0]]
    assert_attends_to_what_is_held(block, weights_of(block, "fp32"), steps, PAGE_SIZES[name], latent, k_rope)


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
    """A token's result is the same alone, among a few of its own sequence, beside others, beside the long chunk of
    another sequence, and on any number of threads."""
    block = make_block(CONFIGS[name], 1)
    weights = weights_of(block, kind)
    runs = []
    for threads, steps in [
        (1, [[200, 0], [0, 40], [40, 3], [9, 4]]),
        (1, [[200, 0], [40, 40], [1, 3], [7, 0], [1, 4]]),
        (3, [[200, 39], [39, 1], [10, 7]]),
        (2, [[200, 37], [46, 10], [3, 0]]),
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
