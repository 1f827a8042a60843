"""QK-clip: the largest logits against a naive computation on every path, what is scaled, and that it acts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import make_config, make_data, make_trainer
from torch import Tensor

from fathom.config import ModelConfig
from fathom.kernels.attention import largest_logits
from fathom.model.mla import MultiHeadLatentAttention
from fathom.model.transformer import DeepseekV3, attention_mask
from fathom.parallel.mesh import single
from fathom.train.loop import Trainer
from fathom.train.qk_clip import QKClip, row_factors

WIDE: dict[str, Any] = dict(qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=32)  # the C++ kernel takes these


def naive(q: Tensor, k: Tensor, seen: Tensor, scale: float) -> Tensor:
    """[B, H, T, d], [B, H, S, d], seen [B, T, S] -> the largest allowed logit of each head, one number at a time."""
    out = torch.full((q.shape[1],), -math.inf, dtype=torch.float64)
    for b in range(q.shape[0]):
        for t, s in seen[b].nonzero().tolist():
            logits = scale * (q[b, :, t].double() * k[b, :, s].double()).sum(-1)
            out = torch.maximum(out, logits)
    return out


def calls_of(model: DeepseekV3) -> list[tuple[Any, ...]]:
    """Every call of attention's core from now on, by layer."""
    seen: list[tuple[Any, ...]] = []
    for layer, attention in enumerate(m for m in model.modules() if isinstance(m, MultiHeadLatentAttention)):
        core = attention.core

        def spy(*args: Any, layer: int = layer, core: Any = core) -> Tensor:
            seen.append((layer, *args))
            out: Tensor = core(*args)
            return out

        attention.core = spy
    return seen


@pytest.mark.parametrize(
    ("model", "changes", "packed"),
    [(WIDE, {}, False), ({}, {}, False), (WIDE, {}, True), (WIDE, {"precision.recompute": "report"}, False),
     (WIDE, {"precision.recompute": "block"}, False), ({"q_lora_rank": None}, {"precision.gemm": "bf16"}, False)],
    ids=["C++", "PyTorch", "packed", "recomputed", "blocks recomputed", "bf16"],
)  # fmt: skip
def test_the_largest_logit_of_a_step(
    model: dict[str, Any], changes: dict[str, Any], packed: bool, tmp_path: Path
) -> None:
    """Over micro-batches, padding and samples that must not see each other; evaluation does not count."""
    trainer = make_trainer(make_config(tmp_path, {"optim.qk_clip": 0.01} | changes, **model))
    clip = trainer.parts.clip
    assert clip is not None and len(clip.layers) == 4  # three blocks and the MTP module
    batch = make_data(trainer.config).batch(0)
    if packed:
        from parallel_bodies import PackedSamples

        batch = PackedSamples().batch(0)
    calls = calls_of(trainer.model)
    trainer.parts.nats(make_data(trainer.config).batch(5))
    assert calls and all(bool((layer.core.top_H == -math.inf).all()) for layer in clip.layers)
    calls.clear()
    trainer._update(batch, now())
    found: dict[int, Tensor] = {}
    for layer, q, k, _, mask, scale in calls:
        q, k = q.detach(), k.detach()
        seen = attention_mask(q.shape[2], 0, None, q.device) if mask is None else mask[:, 0]
        if seen is None:
            seen = torch.ones(1, q.shape[2], k.shape[2], dtype=torch.bool).tril()
        largest = naive(q, k, seen.expand(q.shape[0], -1, -1), scale)
        found[layer] = torch.maximum(found.get(layer, largest), largest)
    for layer, watched in enumerate(clip.layers):
        close = 2e-2 if "precision.gemm" in changes else 1e-5
        torch.testing.assert_close(watched.core.top_H.double(), found[layer], rtol=close, atol=close)


def now() -> Any:
    from fathom.train.schedules import Now

    return Now(8, 0.0, 0.0, 0.3)  # a learning rate of 0: only the clip changes weights


def test_in_chunks() -> None:
    q, k = (torch.randn(2, 3, 21, 8, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    causal = torch.ones(1, 21, 21, dtype=torch.bool).tril()
    wanted = naive(q, k, causal.expand(2, -1, -1), 0.3)
    for rows in (1, 4, 21, 100):
        torch.testing.assert_close(largest_logits(q, k, None, 0.3, rows).double(), wanted)
        torch.testing.assert_close(largest_logits(q, k, causal[:, None], 0.3, rows).double(), wanted)


def heads_of(trainer: Trainer) -> list[list[float]]:
    clip = trainer.parts.clip
    assert clip is not None
    return [layer.core.top_H.tolist() for layer in clip.layers]


@pytest.mark.parametrize("rank", [16, None])
def test_it_scales_logits_of_heads_above_the_limit_and_no_others(rank: int | None, tmp_path: Path) -> None:
    """Without another update the same batch then has logits of at most tau; heads below keep their bits."""
    plain = make_trainer(make_config(tmp_path / "0", {"optim.qk_clip": 1e9}, q_lora_rank=rank))
    batch = plain.data.batch(0)
    plain._update(batch, now())
    before = {n: p.detach().clone() for n, p in plain.model.named_parameters()}
    tops = heads_of(plain)
    tau = sorted(x for head in tops[:1] for x in head)[0] * 1.0001  # between the heads of the first layer
    trainer = make_trainer(make_config(tmp_path / "1", {"optim.qk_clip": tau}, q_lora_rank=rank))
    record = trainer._update(batch, now())
    assert record["max_logit"] == pytest.approx(max(x for head in tops for x in head), abs=1e-3)
    c = trainer.model.config
    gammas = [min(1.0, tau / top) for top in tops[0]]
    assert sorted(gammas)[-1] == 1.0 and min(gammas) < 1.0
    attention = "layers.0.self_attn"
    query = before[f"{attention}.{'q_b_proj' if rank else 'q_proj'}.weight"].unflatten(0, (c.num_attention_heads, -1))
    key = before[f"{attention}.kv_b_proj.weight"].unflatten(0, (c.num_attention_heads, -1))
    for head, gamma in enumerate(gammas):
        query[head, : c.qk_nope_head_dim] *= math.sqrt(gamma)
        query[head, c.qk_nope_head_dim :] *= gamma
        key[head, : c.qk_nope_head_dim] *= math.sqrt(gamma)
    after = dict(trainer.model.named_parameters())
    for name, wanted in before.items():
        if "self_attn" not in name or name.startswith(attention):
            assert torch.allclose(after[name], wanted, rtol=1e-6, atol=0), name
        if not name.endswith(("q_b_proj.weight", "q_proj.weight", "kv_b_proj.weight")):
            assert torch.equal(after[name], wanted), name
    trainer._update(batch, now())
    assert max(heads_of(trainer)[0]) <= tau * 1.0001


def test_row_factors() -> None:
    c = ModelConfig.preset("minnow").replace(quantization=None, num_attention_heads=3)
    query, key = row_factors(c, torch.tensor([0.25, 1.0, -0.0]))
    nope, rope, value = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
    assert query.tolist() == [0.5] * nope + [0.25] * rope + [1.0] * 2 * (nope + rope)
    assert key.tolist() == [0.5] * nope + [1.0] * (value + 2 * (nope + value))


def test_frozen_layers_are_left_alone() -> None:
    model = DeepseekV3(ModelConfig.preset("minnow").replace(quantization=None, num_hidden_layers=2), device="meta")
    model.layers[0].self_attn.q_b_proj.weight.requires_grad_(False)
    clip = QKClip(model, dict(model.named_parameters()), 1.0, single(torch.device("cpu")).data)
    assert [layer.query for layer in clip.layers] == [
        "layers.1.self_attn.q_b_proj.weight", "mtp.0.block.self_attn.q_b_proj.weight",
    ]  # fmt: skip
    assert clip.rows() == ({}, -math.inf)  # before any step


def test_the_average_sees_the_clip_of_its_step(tmp_path: Path) -> None:
    """And a skipped step clips nothing."""
    trainer = make_trainer(make_config(tmp_path, {"optim.qk_clip": 0.2, "optim.ema_decay": 0.9}))
    name = "layers.0.self_attn.q_b_proj.weight"
    start = dict(trainer.model.named_parameters())[name].detach().clone()
    trainer._update(trainer.data.batch(0), now())
    weight = dict(trainer.model.named_parameters())[name].detach().clone()
    assert not torch.equal(start, weight)
    with trainer.zero.ema_weights():
        averaged = dict(trainer.model.named_parameters())[name]
        torch.testing.assert_close(averaged, 0.1 * start + 0.9 * weight)  # its first memory is 1 / 10
    trainer.guard.is_spike = lambda *_: True  # type: ignore[method-assign]
    trainer._update(trainer.data.batch(1), now())
    assert torch.equal(dict(trainer.model.named_parameters())[name], weight)
