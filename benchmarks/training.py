"""Training speed against transformers' own DeepseekV3ForCausalLM in a plain loop: same config, batch and precision.

    python benchmarks/training.py [--preset minnow] [--rows 8] [--length 512] [--repeats 5] [--quick]

Both sides do a whole step: forward, loss, backward, clipping at norm 1, AdamW. transformers gets the best of its expert
and attention implementations; it has no MTP, so Fathom trains without it here. torchtitan's deepseek_v3 joins where it
is installed (rivals/torchtitan_model.py says how). Contenders take turns within one process, a step each, so that a
busy machine slows all of them; figures are medians. The floor is the FLOPs of a step (three forwards, model/cost.py) at
the matmul peak measured in the same run. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from statistics import median

import torch
import transformers
from rivals import torchtitan_model
from torch import Tensor

from fathom.config import ModelConfig
from fathom.model.cost import training_flops_per_token
from fathom.model.transformer import DeepseekV3
from fathom.parallel.mesh import single
from fathom.runtime import keep_freed_memory
from fathom.text.dataset import Batch
from fathom.train.config import TrainConfig
from fathom.train.objective import Weights
from fathom.train.parts import Parts
from fathom.train.watch import matmul_peak

Step = Callable[[], float]
CPU = torch.device("cpu")


def fathom_step(model: ModelConfig, batch: Batch, gemm: str, fields: dict[str, object]) -> Step:
    """One optimizer step through the trainer's own parts."""
    rows, length = batch.tokens.shape
    config = TrainConfig.from_dict({
        "model": fields, "precision": {"gemm": gemm},
        "data": {"batch_rows": rows, "micro_rows": rows, "sequence_length": length},
    })  # fmt: skip
    parts = Parts(config, DeepseekV3(model).init_weights(torch.Generator().manual_seed(0)), single(CPU))
    weights = Weights(batch.labels.numel(), len(batch.tokens), 0.0, 1e-4)

    def step() -> float:
        totals = parts.forward_backward(batch, weights)
        parts.zero.reduce()
        norm = float(parts.zero.square_sum()) ** 0.5
        parts.zero.step(lr=1e-4, scale=min(1.0, 1.0 / norm))
        return float(totals.main)

    return step


def transformers_step(model: ModelConfig, batch: Batch, experts: str, attention: str, bf16: bool) -> Step:
    """The model from transformers."""
    config = transformers.DeepseekV3Config(**{k: v for k, v in model.to_dict().items() if k != "architectures"})
    config._experts_implementation, config._attn_implementation = experts, attention
    other = transformers.DeepseekV3ForCausalLM(config).float().train()
    other.set_experts_implementation(experts)
    other.set_attn_implementation(attention)
    return plain_loop(other, lambda: other(batch.tokens, use_cache=False).logits, batch, bf16)


def torchtitan_step(model: ModelConfig, batch: Batch, bf16: bool) -> Step:
    """The model from torchtitan."""
    other, positions = torchtitan_model.build(model), torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)
    return plain_loop(other, lambda: other(batch.tokens, positions=positions), batch, bf16)


def plain_loop(other: torch.nn.Module, forward: Callable[[], Tensor], batch: Batch, bf16: bool) -> Step:
    """What somebody writes who takes a model from elsewhere: autocast for BF16, fused AdamW."""
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = forward()
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def contenders(model: ModelConfig, batch: Batch, quick: bool, fields: dict[str, object]) -> dict[str, Step]:
    """All of them, by name."""
    out = {f"fathom {g}": fathom_step(model, batch, g, fields) for g in ("fp32", "bf16", "fp8")}
    ways = itertools.product(("grouped_mm", "eager"), ("sdpa",) if quick else ("sdpa", "eager"))
    precisions = (False,) if quick else (False, True)
    for bf16 in precisions if torchtitan_model.installed() else ():
        out[f"torchtitan {'bf16' if bf16 else 'fp32, experts bf16'}"] = torchtitan_step(model, batch, bf16)
    for experts, attention in ways:
        for bf16 in precisions:
            name = f"transformers {'bf16' if bf16 else 'fp32'} {experts} {attention}"
            out[name] = transformers_step(model, batch, experts, attention, bf16)
    return out


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="minnow")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only transformers' likely best variants, FP32")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_flush_denormal(True)
    fields: dict[str, object] = {"num_nextn_predict_layers": 0, "initializer_range": 0.02}
    model = ModelConfig.preset(args.preset).replace(quantization=None, **fields)
    ids = torch.randint(model.vocab_size, (args.rows, args.length + 1), generator=torch.Generator().manual_seed(1))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    steps = contenders(model, batch, args.quick, fields)
    peaks: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.repeats + 1):  # the first turn warms up
        peaks.append(matmul_peak(CPU, torch.float32))
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    tokens, peak = batch.tokens.numel(), max(peaks)
    flops = training_flops_per_token(model, args.length, mtp=False) * tokens
    rates = {name: tokens / median(s) for name, s in seconds.items()}
    rival = max((n for n in rates if n.startswith("transformers")), key=rates.__getitem__)
    print(f"{args.preset}, {args.rows} x {args.length} tokens a step, {torch.get_num_threads()} threads")
    print(
        f"medians of {args.repeats}; FP32 matmul peak {peak / 1e9:.0f} GFLOP/s: {peak / flops * tokens:,.0f} tokens/s"
    )
    for name, rate in rates.items():
        share = rate / tokens * flops / peak
        print(
            f"  {name:<38} {rate:8,.0f} tokens/s   {100 * share:4.0f} % of peak   {rate / rates[rival]:5.2f} x {rival}"
        )
    print(json.dumps({
        "preset": args.preset, "peak_flops": peak, "flops_per_step": flops, "tokens_per_second": rates, "rival": rival,
        "times_rival": {n: r / rates[rival] for n, r in rates.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
