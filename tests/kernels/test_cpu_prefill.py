"""Long chunks of prompts through the C++ step: panels of weights and expanded keys, against the modules in FP64."""

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
    make_block,
    run_steps,
    weights_of,
)

from fathom.kernels import cpu
from fathom.kernels.cpu import build
from fathom.kernels.reference import FP8

pytestmark = pytest.mark.skipif(build.os.name != "posix", reason="the C++ step is built by a POSIX compiler")

# Chunks from nothing and after others, two in a step, and beside single tokens.
STEPS = [[65, 50, 2], [130, 1, 1], [1, 70, 60], [3, 0, 1]]


@pytest.mark.parametrize("index", [0, 1], ids=["dense", "moe"])
@pytest.mark.parametrize("name", CONFIGS)
def test_block_in_fp32(name: str, index: int) -> None:
    block = make_block(CONFIGS[name], index)
    assert_equals_module(block, weights_of(block, "fp32"), STEPS)


@pytest.mark.parametrize("tokens", [47, 48, 49, 65, 96, 130, 300])
def test_any_number_of_tokens(tokens: int) -> None:
    block = make_block(ODD, 1)
    assert_equals_module(block, weights_of(block, "fp32"), [[9], [tokens], [2]])


@pytest.mark.parametrize("index", [0, 1], ids=["dense", "moe"])
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
@pytest.mark.parametrize("name", ["odd", "even", "no q compression, biases"])
def test_stored_weights(name: str, kind: str, index: int) -> None:
    block = make_block(CONFIGS[name], index)
    assert_equals_module(block, weights_of(block, kind), STEPS)


@pytest.mark.parametrize("fp8_block", [(64, 64), (3, 128), (5, 7)], ids=str)
def test_any_fp8_block(fp8_block: tuple[int, int]) -> None:
    block = make_block(EVEN, 1)
    assert_equals_module(block, weights_of(block, "fp8", fp8_block), [[70, 2], [1, 60]])


@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp8"])
def test_more_columns_than_a_panel_takes(kind: str) -> None:
    """Sums over several blocks of columns, the last one ragged."""
    wide = ODD.replace(hidden_size=540, intermediate_size=300, kv_lora_rank=270, q_lora_rank=None)
    for index in (0, 1):
        block = make_block(wide, index)
        assert_equals_module(block, weights_of(block, kind), [[70, 1], [5, 50]])


@pytest.mark.parametrize("k_rope", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("latent", [torch.float32, torch.bfloat16, FP8], ids=str)
@pytest.mark.parametrize("name", ["odd", "even"])
def test_cache_dtypes(name: str, latent: torch.dtype, k_rope: torch.dtype) -> None:
    block = make_block(CONFIGS[name], 0)
    weights = weights_of(block, "fp32")
    assert_attends_to_what_is_held(block, weights, [[90, 9], [70, 1], [5, 60]], PAGE_SIZES[name], latent, k_rope)


@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
@pytest.mark.parametrize("first_key", [0, 1])
def test_pages(page_size: int, first_key: int) -> None:
    block = make_block(EVEN, 0)
    steps = [[140, 50], [100, 4]]
    assert_equals_module(block, weights_of(block, "fp32"), steps, page_size=page_size, first_key=first_key)


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads(threads: int) -> None:
    """More threads than panels too: then the tokens of a panel are shared out."""
    block = make_block(ODD, 1)
    weights = weights_of(block, "fp32")
    torch.set_num_threads(threads)
    assert_equals_module(block, weights, [[150, 1], [1, 200], [60, 60]], page_size=4)


def test_more_keys_than_a_round_takes() -> None:
    """One sequence over several rounds, and one that shares a round with its end."""
    block = make_block(CONFIGS["one head"].replace(max_position_embeddings=4096), 0)
    assert_equals_module(block, weights_of(block, "fp32"), [[1300, 900], [1200, 60]], page_size=64)


@pytest.mark.parametrize("kind", ["fp32", "fp8"])
@pytest.mark.parametrize("name", ["odd", "even"])
def test_company_and_threads_change_no_bit(name: str, kind: str) -> None:
    """A chunk gives the same alone, beside single tokens, beside other chunks, and on any number of threads."""
    block = make_block(CONFIGS[name], 1)
    weights = weights_of(block, kind)
    runs = []
    for threads, steps in [
        (1, [[300, 0], [0, 60], [0, 1], [80, 0]]),
        (1, [[300, 60], [80, 1]]),
        (3, [[300, 60], [0, 1], [80, 0]]),
        (2, [[0, 60], [300, 1], [80, 0]]),
    ]:
        torch.set_num_threads(threads)
        outputs, *_ = run_steps(block, weights, steps)
        runs.append(outputs)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_cuts_change_the_last_bits_only() -> None:
    """A prompt in one chunk, in two, in pieces too short for panels: equal up to FP32's rounding."""
    block = make_block(EVEN, 0)
    weights = weights_of(block, "fp32")
    (whole,), *_ = run_steps(block, weights, [[300]])
    for steps in ([[151], [149]], [[30]] * 10):
        (out,), *_ = run_steps(block, weights, steps)
        assert (out - whole).abs().max() <= 1e-5 * whole.std() and (out - whole).std() <= 1e-6 * whole.std()
        if steps[0] == [30]:  # too short for panels: other roundings, so the panels did run before
            assert not torch.equal(out, whole)


def test_a_sequence_in_two_segments() -> None:
    """Its later tokens stand first: they see what the chunk after them writes in the same step."""
    block = make_block(ODD, 1)
    weights = weights_of(block, "fp32")
    (wanted, other), _, inputs, *_ = run_steps(block, weights, [[70, 5]])
    world = World(ODD, [70, 5], 5)
    batch = world.batch([70, 5])
    order = torch.cat((torch.arange(60, 70), torch.arange(70, 75), torch.arange(60)))
    names = ("rows", "slots", "last_key", "cos", "sin")
    batch = dataclasses.replace(batch, **{name: getattr(batch, name)[order].contiguous() for name in names})
    pool = empty_pool(ODD, world.pages, 5, torch.float32, torch.float32)
    out, chosen = cpu.CpuBlock(weights)(torch.cat(inputs)[order], batch, pool)
    joined = torch.cat((wanted, other))
    assert chosen is not None and (out - joined[order]).abs().max() <= 1e-5 * joined.abs().max()


def test_experts_come_back_in_the_order_of_the_step() -> None:
    """Single tokens on both sides of a chunk: outputs and experts stand where their tokens stood."""
    block = make_block(ODD, 1)
    weights = weights_of(block, "fp32")
    outputs, experts, inputs, *_ = run_steps(block, weights, [[1, 60, 1]])
    for out, chosen, x in zip(outputs, experts, inputs, strict=True):
        (alone,), (own,), *_ = run_steps_of(block, weights, x)
        assert torch.equal(out, alone) and chosen is not None and torch.equal(chosen, own)


def run_steps_of(block, weights, x):  # type: ignore[no-untyped-def]
    """One sequence, in one step."""
    world = World(ODD, [len(x)], 5)
    pool = empty_pool(ODD, world.pages, 5, torch.float32, torch.float32)
    out, chosen = cpu.CpuBlock(weights)(x, world.batch([len(x)]), pool)
    return [out], [chosen]


def test_nan_stays_in_its_sequence() -> None:
    block = make_block(ODD, 1)
    weights = weights_of(block, "fp32")
    world = World(ODD, [60, 60], 5)
    x = torch.randn(120, ODD.hidden_size, generator=torch.Generator().manual_seed(0))
    pools = [empty_pool(ODD, world.pages, 5, torch.float32, torch.float32) for _ in range(2)]
    batch = world.batch([60, 60])
    good, _ = cpu.CpuBlock(weights)(x, batch, pools[0])
    x[30, 3] = float("nan")
    out, chosen = cpu.CpuBlock(weights)(x, batch, pools[1])
    assert out[30:60].isnan().all() and torch.equal(out[60:], good[60:]) and torch.equal(out[:24], good[:24])
    assert chosen is not None and ((chosen >= 0) & (chosen < ODD.n_routed_experts)).all()
