"""RoPE and YaRN: published check values, pair order, and what only relative position may change."""

from __future__ import annotations

import pytest
import torch
from small_models import CONFIGS
from torch import Tensor

from fathom.config import ModelConfig
from fathom.kernels.pointwise import rotate
from fathom.model.rope import inverse_frequencies, rotation

V3 = ModelConfig.preset("v3-671b")
CHECK = {
    0: 1.0,
    10: 0.0562341325,
    11: 0.0390069266,
    16: 0.0055,
    22: 1.77827941e-4,
    23: 3.33380358e-5,
    31: 3.33380358e-6,
}


def test_yarn_check_values() -> None:
    inv_freq = inverse_frequencies(V3)
    assert inv_freq.shape == (32,) and inv_freq.dtype == torch.float32
    for pair, wanted in CHECK.items():
        assert inv_freq[pair].item() == pytest.approx(wanted, rel=2e-7), pair


def test_without_yarn_the_plain_powers() -> None:
    plain = inverse_frequencies(V3.replace(rope_scaling=None)).double()
    torch.testing.assert_close(plain, 10000.0 ** (-torch.arange(0, 64, 2).double() / 64), rtol=1e-7, atol=0)
    yarn = inverse_frequencies(V3).double()
    torch.testing.assert_close(yarn[:11], plain[:11], rtol=1e-7, atol=0)  # kept
    torch.testing.assert_close(yarn[23:], plain[23:] / 40, rtol=1e-6, atol=0)  # slowed by the factor
    assert (yarn[11:23] < plain[11:23]).all() and (yarn[11:23] > plain[11:23] / 40).all()


def vectors() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(50, 1, 64, generator=g), torch.randn(50, 1, 64, generator=g)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The other layout: pair i is (x[i], x[i + 32])."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("qhd,khd->hqk", q, k)


def test_interleaved_equals_deinterleaved_and_raw_halves_do_not() -> None:
    q, k = vectors()
    rope = rotation(V3, torch.arange(50) * 100)
    wanted = scores(rotate(q, *rope), rotate(k, *rope))

    def deinterleave(x: Tensor) -> Tensor:
        return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)

    same = scores(rotate_halves(deinterleave(q), *rope), rotate_halves(deinterleave(k), *rope))
    wrong = scores(rotate_halves(q, *rope), rotate_halves(k, *rope))
    torch.testing.assert_close(same, wanted, rtol=0, atol=1e-4)
    assert (wrong - wanted).abs().max() > 1


def test_only_distances_matter() -> None:
    q, k = vectors()
    far, near = (rotation(V3, torch.arange(50) + start) for start in (5000, 0))
    torch.testing.assert_close(
        scores(rotate(q, *far), rotate(k, *far)), scores(rotate(q, *near), rotate(k, *near)), rtol=0, atol=2e-2
    )  # fmt: skip  (FP32 angles of thousands of radians)


def test_rotation_keeps_lengths_and_position_zero() -> None:
    q, _ = vectors()
    out = rotate(q, *rotation(V3, torch.arange(50)))
    torch.testing.assert_close(out.norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(out[0], q[0])


def test_uneven_mscale_scales_cos_and_sin() -> None:
    config = CONFIGS["uneven mscale"]
    cos, sin = rotation(config, torch.arange(3))
    assert config.rope_scaling is not None
    torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full_like(cos, config.rope_scaling.rope_amplitude))
    assert config.rope_scaling.rope_amplitude == pytest.approx((0.08 * 1.3862944 + 1) / (0.12 * 1.3862944 + 1))


def test_bf16_is_rotated_in_fp32_and_rounded_once() -> None:
    q, _ = vectors()
    rope = rotation(V3, torch.arange(50) * 1000)
    out = rotate(q.bfloat16(), *rope)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rotate(q.bfloat16().float(), *rope).bfloat16())
