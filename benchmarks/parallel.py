"""Every parallel layout against one process: loss curves, bytes sent, pipeline bubbles.

    python benchmarks/parallel.py [--steps 20] [--only 2|4]

1. Loss   A small DeepSeek-V3 (MTP, balance loss, biases) is trained for 20 steps by the real trainer on 2 and 4 gloo
          processes, in every layout, in FP32 and in FP8. Printed: the largest relative difference of the loss from one
          process's curve. FP32 differs in the order of sums only. FP8 quantises tokens in groups of 128 for weight
          gradients and what travels to experts, so its groups, and roundings, depend on the layout.
2. Bytes  What the ranks counted against the planner's formulas (fathom/plan/traffic.py). The formula's all-to-all is an
          expectation under balanced routing.
3. Bubble The executor with stages that sleep instead of computing (processes would share this machine's cores), against
          the report's Table 2 and against simulation.
The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from fathom.kernels.deferred import WeightGradients
from fathom.model.transformer import DeepseekV3
from fathom.parallel.expert import traffic
from fathom.parallel.group import Group
from fathom.parallel.mesh import Layout, make_mesh, single
from fathom.parallel.pipeline import StageFunction, run
from fathom.parallel.schedules import schedule
from fathom.parallel.timeline import Costs, simulate
from fathom.plan.layout import held
from fathom.plan.traffic import traffic as planned
from fathom.text.packed import PackedDataset
from fathom.train.config import TrainConfig
from fathom.train.dry_run import job_of
from fathom.train.loop import Trainer

MODEL: dict[str, Any] = dict(
    vocab_size=256, hidden_size=128, intermediate_size=128, moe_intermediate_size=128, num_hidden_layers=7,
    num_nextn_predict_layers=1, num_attention_heads=2, n_routed_experts=8, num_experts_per_tok=2, n_group=4,
    topk_group=2, first_k_dense_replace=1, q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=16, qk_rope_head_dim=16,
    v_head_dim=32, max_position_embeddings=64, initializer_range=0.05,
)  # fmt: skip
PIPELINES = ("gpipe", "1f1b", "zb1p", "dualpipev")
SECOND = 0.03  # of F, of I and of W in the sleeping stages


def layouts(world: int) -> list[dict[str, Any]]:
    """[parallel] tables for `world` processes."""
    out: list[dict[str, Any]] = [{}, {"sharding": "fsdp2"}]
    out += [{"expert": e} for e in (2, 4) if e <= world]
    out += [{"pipeline": p, "schedule": s} for p in (2, 4) if p <= world for s in PIPELINES]
    return out + [{"pipeline": 2, "schedule": s, "expert": 2} for s in PIPELINES if world == 4]


def config_of(parallel: dict[str, Any], gemm: str, steps: int, out: str, depths: int = 1) -> TrainConfig:
    """The run: 8 micro-batches of two rows over all data ranks."""
    return TrainConfig.from_dict({
        "model": MODEL | {"num_nextn_predict_layers": depths},
        "data": {"batch_rows": 16, "micro_rows": 2, "sequence_length": 32},
        "optim": {"peak_lr": 5e-4, "final_lr": 1e-4, "warmup_steps": 5},
        "balance": {"gamma": 0.001, "alpha": 0.001}, "precision": {"gemm": gemm}, "parallel": parallel,
        "run": {"steps": steps, "seed": 3, "out": out, "checkpoint_every": 10**6, "log_every": 10**6},
    })  # fmt: skip


def language(tokens: int) -> np.ndarray[Any, Any]:
    """Every token has four likely successors: something to learn."""
    random = np.random.Generator(np.random.PCG64(1))
    successors = random.integers(0, MODEL["vocab_size"], (MODEL["vocab_size"], 4))
    out = np.zeros(tokens, dtype=np.uint16)
    for i in range(1, tokens):
        out[i] = successors[out[i - 1], random.integers(4)]
    return out


def curve(config: TrainConfig, world: int) -> dict[str, Any]:
    """Losses of every step, and what this rank sent in the last one."""
    layout = Layout(config.parallel.pipeline, world // config.parallel.pipeline, config.parallel.expert)
    mesh = make_mesh(layout, torch.device("cpu")) if world > 1 else single(torch.device("cpu"))
    model = DeepseekV3(config.model_config()).init_weights(torch.Generator().manual_seed(3))
    data = PackedDataset({"text": language(40_000)}, rows=config.data.batch_rows, length=32, seed=3)
    trainer = Trainer(config, model, data, mesh=mesh)
    trainer.watch.writes = False
    losses = []
    for _ in range(config.run.steps):
        for counter in traffic(model):
            counter.clear()
        losses.append(trainer.step()["loss"])
    sent = [sum(sum(c.bytes[k]) for k in c.bytes) for c in traffic(model)]
    return {"loss": losses, "all_to_all": sum(sent)}


def rank_main(rank: int, world: int, port: int, steps: int, results: str) -> None:
    """One process: all layouts in turn."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    out = tempfile.mkdtemp()
    for gemm, depths in (("fp32", 1), ("fp32", 2), ("fp8", 1)):
        for parallel in layouts(world) if depths == 1 else layouts(world)[-1:]:
            found = curve(config_of(parallel, gemm, steps, out, depths), world)
            counted: list[Any] = [None] * world
            dist.all_gather_object(counted, found["all_to_all"])
            if rank == 0:
                say(results, ["loss", gemm, depths, parallel, found["loss"], counted])
    for name in PIPELINES:
        found_bubble = bubble(rank, world, name, micro=4 * world)
        idle: list[Any] = [None] * world
        dist.all_gather_object(idle, found_bubble)
        if rank == 0:
            say(results, ["bubble", name, world, 4 * world, max(idle)])
    dist.barrier()
    dist.destroy_process_group()


class _Sleep(torch.autograd.Function):
    """x, later; in backward the input's gradient takes as long, and the weight's goes to the queue."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, queue: WeightGradients) -> torch.Tensor:
        ctx.queue = queue
        time.sleep(SECOND)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(SECOND)
        ctx.queue.add(lambda: time.sleep(SECOND))
        return grads[0], None


def bubble(rank: int, world: int, name: str, micro: int) -> float:
    """Idle seconds of this rank."""
    plan, weights = schedule(name, world, micro), WeightGradients()
    assert dist.group.WORLD is not None
    group = Group(rank, world, dist.group.WORLD, torch.device("cpu"))

    def function(stage: int) -> StageFunction:
        def compute(m: int, x: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
            y = _Sleep.apply(torch.zeros(1, 1, 1, requires_grad=True) if x is None else x, weights)
            return (None, y.sum()) if stage == plan.stages - 1 else (y, None)

        return compute

    dist.barrier()
    report = run(plan, {s: function(s) for s in plan.held(rank)}, group, [(1, 1, 1)] * micro, weights)
    return report.idle


def table2(name: str, ranks: int) -> float:
    """The report's bubble, in units of F = I = W = 1, so B = 2 and a pair F&B = 3."""
    stages = 2 * ranks  # PP of the formula for a V of `ranks` ranks
    return {"gpipe": 3.0 * (ranks - 1), "1f1b": 3.0 * (ranks - 1), "zb1p": 1.0 * (ranks - 1),
            "dualpipev": (stages / 2 - 1) * (3 + 2 - 3)}[name]  # fmt: skip


def on_ranks(world: int, steps: int) -> list[Any]:
    """All results of `world` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = Path(tempfile.mkdtemp()) / "results.jsonl"
    results.touch()
    spawn(rank_main, (world, port, steps, str(results)), nprocs=world)
    return [json.loads(line) for line in results.read_text().splitlines()]


def say(results: str, what: list[Any]) -> None:
    """Keep one result for the parent, and show that something happens."""
    with open(results, "a") as out:
        out.write(json.dumps(what) + "\n")
    print(".", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Run all, print three tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", type=int, choices=(2, 4), help="this number of processes alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = tempfile.mkdtemp()
    alone = {
        (gemm, depths): np.array(curve(config_of({}, gemm, args.steps, out, depths), 1)["loss"])
        for gemm, depths in (("fp32", 1), ("fp32", 2), ("fp8", 1))
    }
    rows: list[dict[str, Any]] = []
    for world in (args.only,) if args.only else (2, 4):
        for result in on_ranks(world, args.steps):
            if result[0] == "loss":
                _, gemm, depths, parallel, loss, counted = result
                worst = float(np.abs(np.array(loss) / alone[gemm, depths] - 1).max())
                row = {"world": world, "gemm": gemm, "mtp": depths, "parallel": parallel, "worst": worst}
                name = " ".join(f"{k}={v}" for k, v in parallel.items()) or "data"
                line = f"{world} processes  {gemm}  MTP {depths}  {name:<42} loss differs by at most {worst:.1e}"
                if parallel.get("expert"):
                    pipeline = parallel.get("pipeline", 1)
                    config = config_of(parallel | {"data": world // pipeline}, gemm, args.steps, out, depths)
                    job = dataclasses.replace(job_of(config), dispatch=gemm)
                    formula = sum(planned(job, r // job.data, 1)["all-to-all, once per rank"] for r in range(world))
                    row |= {"all_to_all": sum(counted), "formula": formula}
                    line += f"; all-to-all {sum(counted) / 1e6:.2f} MB a step, formula {formula / 1e6:.2f}"
                    assert len(held(job, 0)) == job.stages // job.pipeline
            else:
                _, name, ranks, micro, idle = result
                formula, simulated = table2(name, ranks), max(simulate(schedule(name, ranks, micro), Costs()).bubbles)
                row = {"bubble": name, "ranks": ranks, "micro": micro, "units": idle / SECOND, "table2": formula}
                line = (f"{ranks} ranks  {name:<10} {micro} micro-batches: bubble {idle / SECOND:.2f} F, "
                        f"Table 2 {formula:.2f}, simulated {simulated:.2f}")  # fmt: skip
            rows.append(row)
            print(line, flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
