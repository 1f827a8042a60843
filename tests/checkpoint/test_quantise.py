"""Quantising what was quantised changes nothing: FP8 -> BF16 -> FP8 is byte-equal."""

from __future__ import annotations

import pytest
import torch

from fathom.checkpoint.names import TensorSpec
from fathom.checkpoint.recipes import StoredWeight, canonical, recipe
from fathom.checkpoint.sources import MemoryTensor
from fathom.config import QuantizationConfig
from fathom.kernels.reference import dequantize_blocks, quantize_blocks
from fathom.runtime import UserError

BLOCK = (128, 128)
FORMATS = [None, "ue8m0"]


def stored(w: torch.Tensor, scale: torch.Tensor | None = None) -> StoredWeight:
    spec = TensorSpec("w", "w", "attention", tuple(w.shape), "fp8", None, 0, None, False, None, None)
    return StoredWeight(spec, MemoryTensor(w), None if scale is None else MemoryTensor(scale))


def run(weight: StoredWeight, to: str, scale_fmt: str | None = None) -> dict[str, torch.Tensor]:
    made = recipe(weight, to, QuantizationConfig(scale_fmt=scale_fmt))  # type: ignore[arg-type]
    out = {e.name: torch.zeros(e.shape, dtype=e.dtype) for e in made.entries}
    for name, start, rows in made.run():
        out[name][start : start + len(rows)] = rows
    return out


def to_fp8(w: torch.Tensor, scale_fmt: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    out = run(stored(w), "fp8", scale_fmt)
    return out["w"], out["w_scale_inv"]


def to_bf16(q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return run(stored(q, scale), "bf16")["w"]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def awkward(seed: int, dtype: torch.dtype) -> torch.Tensor:
    """576 rows (partial last block), partial columns, blocks of all magnitudes, a zero block, outliers."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(576, 300, generator=g) * 0.006
    magnitude = 10.0 ** torch.empty(5, 3).uniform_(-7, 3, generator=g)
    w *= magnitude.repeat_interleave(128, 0)[:576].repeat_interleave(128, 1)[:, :300]
    w[128:256, :128] = 0
    w[300, 200] = 50.0
    return w.to(dtype)


@pytest.mark.parametrize("scale_fmt", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("seed", range(8))
def test_idempotent_on_awkward_weights(seed: int, dtype: torch.dtype, scale_fmt: str | None) -> None:
    q1, s1 = to_fp8(awkward(seed, dtype), scale_fmt)
    b1 = to_bf16(q1, s1)
    q2, s2 = to_fp8(b1, scale_fmt)
    assert same(q1, q2) and same(s1, s2)
    assert same(b1, to_bf16(q2, s2))


def block_with_largest(value: float, scale: float) -> torch.Tensor:
    w = torch.randn(128, 128, generator=torch.Generator().manual_seed(0)).bfloat16() * 0.1 * value * scale
    w = w.clamp(-0.5 * value * scale, 0.5 * value * scale)
    w[5, 7] = value * scale
    return w


def test_ue8m0_needs_the_canonical_form() -> None:
    """Largest value between 224 and 232 scales: rounded to 224, it asks for half the scale the second time."""
    w = block_with_largest(228.0, 2.0**-10)
    q1, s1 = quantize_blocks(w, BLOCK, "ue8m0")
    q2, s2 = quantize_blocks(dequantize_blocks(q1, s1, BLOCK, torch.bfloat16), BLOCK, "ue8m0")
    assert not same(s1, s2), "the plain rule would be enough; the canonical form can go"
    q3, s3 = canonical(q1, s1, BLOCK, "ue8m0")
    assert same(q3, q2) and same(s3, s2)
    assert torch.equal(dequantize_blocks(q1, s1, BLOCK), dequantize_blocks(q3, s3, BLOCK)), "values must not change"


def test_a_block_under_the_floor_needs_the_canonical_form() -> None:
    w = block_with_largest(447.0, 1e-4 / 448)
    q1, s1 = quantize_blocks(w, BLOCK)
    _, s2 = quantize_blocks(dequantize_blocks(q1, s1, BLOCK, torch.bfloat16), BLOCK)
    assert not same(s1, s2), "the plain rule would be enough; the canonical form can go"
    q3, s3 = to_fp8(w, None)
    q4, s4 = to_fp8(to_bf16(q3, s3), None)
    assert same(q3, q4) and same(s3, s4)


def test_a_foreign_checkpoint_keeps_its_codes_and_changes_scales_once() -> None:
    """Scales that are not BF16(amax)/448, as V3 has: the first trip may move a scale by 2^-8, the next none."""
    w = awkward(3, torch.float32)
    q0, s0 = quantize_blocks(w)
    q1, s1 = to_fp8(to_bf16(q0, s0), None)
    assert same(q0, q1)
    assert bool(((s1 / s0 - 1).abs() <= 2**-8).all()) and not same(s0, s1)
    q2, s2 = to_fp8(to_bf16(q1, s1), None)
    assert same(q1, q2) and same(s1, s2)


@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_arbitrary_fp8_is_stable_after_the_first_trip(scale_fmt: str | None) -> None:
    """Codes of any kind (no block need reach 448) with any scales."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (576, 300), generator=g, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0  # NaN
    codes[:128, :128] &= 0x8F  # a block of subnormals
    q0, s0 = codes.view(torch.float8_e4m3fn), torch.rand(5, 3, generator=g) * 1e-3
    q1, s1 = to_fp8(to_bf16(q0, s0), scale_fmt)
    q2, s2 = to_fp8(to_bf16(q1, s1), scale_fmt)
    assert same(q1, q2) and same(s1, s2)


def test_ue8m0_scales_are_powers_of_two() -> None:
    _, scale = to_fp8(awkward(0, torch.bfloat16), "ue8m0")
    assert bool((torch.frexp(scale).mantissa == 0.5).all())


@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_error_within_half_a_step(scale_fmt: str | None) -> None:
    w = torch.randn(576, 300, generator=torch.Generator().manual_seed(0)) * 0.02
    q, s = to_fp8(w, scale_fmt)
    scale = s.repeat_interleave(128, 0)[:576].repeat_interleave(128, 1)[:, :300]
    error = (dequantize_blocks(q, s) - w).abs()
    half_step = torch.maximum(w.abs() * 2**-4, scale * 2**-10)  # subnormal codes are 2^-9 apart
    assert bool((error <= half_step + w.abs() * 2**-8).all()), "the second term is the rounding to BF16"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_scales_are_named(bad: float) -> None:
    q, s = quantize_blocks(torch.randn(200, 200))
    s[1, 0] = bad
    for to in ("bf16", "fp8", "keep"):
        with pytest.raises(UserError, match=r"^w_scale_inv holds a NaN, infinite or negative scale"):
            run(stored(q, s), to)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_fp8_cannot_hold_are_named(bad: float) -> None:
    w = torch.randn(200, 200)
    w[150, 3] = bad
    with pytest.raises(UserError, match=r"^w holds NaN or infinite values"):
        to_fp8(w, None)
    w[150, 3] = 3.4e38  # BF16 rounds it up to infinity
    with pytest.raises(UserError, match=r"^w holds a value beyond the range of BF16"):
        to_fp8(w, None)
