"""Memory against hand counts, against the schedules themselves, and against what a real forward pass leaves behind."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fathom.config import ModelConfig
from fathom.model.transformer import DeepseekV3
from fathom.parallel.schedules import schedule
from fathom.parallel.timeline import peaks
from fathom.plan.job import Job
from fathom.plan.layout import held, holding, stages
from fathom.plan.memory import ACTIVATION_BYTES, in_flight, kept_per_token, linear_parameters, memory, stage_activations
from fathom.train.precision import arithmetic, prepare
from fathom.train.recompute import recompute

MINNOW = ModelConfig.preset("minnow").replace(quantization=None)
SMALL = Job(MINNOW, 10**6, 8, length=64, gemm="fp32", dispatch="fp32")


def test_state_of_one_device_by_hand() -> None:
    job = dataclasses.replace(SMALL, pipeline=2, data=4, expert=2, moment_bytes=2, ema=True)
    have, items = holding(job, 1), memory(job, 1)
    assert items["weights (FP32)"] == items["gradients (FP32)"] == 4 * (have.plain + have.routed)
    assert items["AdamW moments"] == 2 * 2 * (have.plain / 4 + have.routed / 2)
    muon = memory(dataclasses.replace(job, muon=True), 1)
    blocks = [b for stage in held(job, 1) for b in stage.blocks(job)]
    experts = sum(3 * 256 * 128 * 32 for b in blocks if MINNOW.is_moe_layer(b)) // 2
    others = sum(linear_parameters(job, b) for b in blocks) - experts
    assert muon["Muon and AdamW moments"] == items["AdamW moments"] - 2 * (others / 4 + experts / 2)
    assert items["weight average (EMA)"] == 4 * (have.plain / 4 + have.routed / 2)
    sharded = memory(dataclasses.replace(job, sharding="fsdp2"), 1)
    assert sharded["weights (FP32)"] == 4 * (have.plain / 4 + have.routed / 2) and sharded["gathered layer"] > 0


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb1p", "dualpipev"])
@pytest.mark.parametrize(("ranks", "micro"), [(2, 4), (2, 12), (4, 8), (4, 20)])
def test_micro_batches_in_flight_are_those_of_the_schedule(name: str, ranks: int, micro: int) -> None:
    job = dataclasses.replace(SMALL, pipeline=ranks, batch_rows=micro, schedule=name)
    real = peaks(schedule(name, ranks, micro))
    planned = [in_flight(job, rank) for rank in range(ranks)]
    assert max(planned) == max(real)
    assert all(p >= r for p, r in zip(planned, real, strict=True))


def test_linear_parameters_are_the_matrices_that_change_precision() -> None:
    model = prepare(DeepseekV3(MINNOW, device="meta"), arithmetic("fp8", torch.device("cpu")))
    outside = ("embed_tokens", "lm_head", "gate.weight")
    found = sum(p.numel() for n, p in model.named_parameters() if p.dim() >= 2 and not any(o in n for o in outside))
    assert found == sum(linear_parameters(SMALL, b) for b in range(MINNOW.num_hidden_layers + 1))


@pytest.mark.parametrize("what", ["none", "report", "block"])
@pytest.mark.parametrize("gemm", ["fp32", "fp8"])
def test_activations_are_about_what_autograd_keeps(gemm: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula against a count of the storages that a forward pass saves (embedding and MTP left out).

    On a CPU BF16 results travel in FP32 registers, so the count is set against the formula with 4-byte activations.
    """
    monkeypatch.setitem(ACTIVATION_BYTES, "fp8", 4.0)
    config = MINNOW.replace(num_nextn_predict_layers=0)
    model = prepare(
        DeepseekV3(config).init_weights(torch.Generator().manual_seed(0)), arithmetic(gemm, torch.device("cpu"))
    )
    recompute(model, what)
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    tokens = torch.randint(0, config.vocab_size, (2, 256))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model.hidden(tokens)
    found = sum(seen.values()) + out.numel() * 4  # the head keeps as much as its input (the gradient, in fact)
    if what == "report":  # the core's results are kept by the checkpoint itself, not by autograd
        heads, layers = config.num_attention_heads, config.num_hidden_layers
        found += layers * tokens.numel() * heads * 4 * (config.v_head_dim + 1)
    job = Job(config, 1, 2, micro_rows=2, length=256, gemm=gemm, recompute=what, dispatch="fp32")
    planned = stage_activations(job, stages(job)[0])
    assert out.requires_grad
    least = 0.72 if what == "none" else 0.95
    assert least < planned / found < 1.05, (planned, found)


def test_fp8_and_recompute_save_memory_in_that_order() -> None:
    block = 5
    plain = sum(kept_per_token(dataclasses.replace(SMALL, gemm="bf16"), block).values())
    fp8 = sum(kept_per_token(dataclasses.replace(SMALL, gemm="fp8"), block).values())
    report = sum(kept_per_token(dataclasses.replace(SMALL, gemm="fp8", recompute="report"), block).values())
    assert plain > fp8 > report


def test_what_the_report_keeps_of_one_v3_token_and_block() -> None:
    """By hand: FP8 inputs of experts (1 + 1/32 bytes), FP32 stream and normed values, attention's results in BF16."""
    job = Job(ModelConfig.preset("v3-671b"), 1, 64, gemm="fp8", recompute="report", expert=64, data=64, dispatch="fp8")
    q, found = 1 + 1 / 32, kept_per_token(job, 10)
    assert found["stream"] == 2 * 7168 * 4
    assert found["attention"] == 7168 * 4 + 128 * 128 * 2 + 128 * 4
    # chosen: 4 of 8 groups, so 32 of 64 ranks of 4 experts; 8 of 128 experts miss a rank with C(124, 8) / C(128, 8)
    miss = 1.0
    for i in range(8):
        miss *= (124 - i) / (128 - i)
    experts = q * 7168 * 32 * (1 - miss) + q * 2 * 2048 * 8 + 4 * (256 + 8)
    assert found["feed-forward"] == pytest.approx(7168 * 4 + experts)
