"""Bytes that one device sends in one optimizer step, by kind (report sections 3.2.2 and 3.3.3).

    all-to-all   per MoE block and token:  dispatch (FP8: D + D/128) and combine (BF16: 2 D), and the same again in the
                 backward pass, to every OTHER rank (or node) that holds one of the token's experts
    pipeline     hidden states to the next stage, their gradients back, per micro-batch
    ZeRO-1       gradients reduce-scattered, weights all-gathered, FP32: 2 x 4 bytes x parameters x (N - 1)/N
    fsdp2        weights gathered for forward and for backward of every micro-batch, gradients reduce-scattered once

How many ranks or nodes a token reaches is an expectation for balanced routing: g of G groups, then K of the experts in
them, all equally likely. With groups = nodes (V3: 4 of 8) that is below 4 of 8 nodes, the token's own among them half
of the time. The report's kernels send over the network once per node and then on inside it (two hops); Fathom sends
once per rank (parallel/expert.py, deviation 1). Both are given.
"""

from __future__ import annotations

from math import ceil, comb

from fathom.config import ModelConfig
from fathom.plan.job import Job
from fathom.plan.layout import held, holding


def expected_places(c: ModelConfig, places: int) -> float:
    """Of `places` equal slices of the experts (ranks, nodes): how many hold at least one of a token's K experts."""
    experts, top_k = c.n_routed_experts, c.num_experts_per_tok
    if not experts or places <= 1:
        return 1.0
    groups, kept = (c.n_group, c.topk_group) if c.limits_groups else (1, 1)
    if groups % places and places % groups:  # slices cut across groups: as if there were none
        groups, kept = 1, 1
    pool, own = kept * experts // groups, experts // places
    if places >= groups:  # a slice lies inside one group, which is kept with probability kept / groups
        return places * kept / groups * _touched(pool, own, top_k)
    per_place, per_group = groups // places, experts // groups
    chance = sum(
        comb(per_place, j)
        * comb(groups - per_place, kept - j)
        / comb(groups, kept)
        * _touched(pool, j * per_group, top_k)
        for j in range(max(0, kept - (groups - per_place)), min(per_place, kept) + 1)
    )
    return places * chance


def _touched(pool: int, own: int, top_k: int) -> float:
    """Chance that K of `pool` experts include one of `own`."""
    return 1 - comb(pool - own, top_k) / comb(pool, top_k)


def row_bytes(job: Job, wire: str) -> int:
    """One token's hidden state on the wire."""
    dim = job.model.hidden_size
    return dim + ceil(dim / 128) if wire == "fp8" else dim * (2 if wire == "bf16" else 4)


def all_to_all(job: Job, places: int, blocks: int) -> float:
    """Bytes sent to other places by one device, forward and backward, in a step with `blocks` MoE blocks on it."""
    if places <= 1:
        return 0.0
    others = expected_places(job.model, places) * (places - 1) / places
    both = row_bytes(job, job.dispatch) + row_bytes(job, "fp32" if job.dispatch == "fp32" else "bf16")
    return 2.0 * others * both * blocks * job.micro_tokens * job.micro_batches


def traffic(job: Job, rank: int, devices_per_node: int) -> dict[str, float]:
    """Bytes sent per step by one device of pipeline rank `rank`."""
    c, mine, have = job.model, held(job, rank), holding(job, rank)
    moe = sum(c.is_moe_layer(b) for stage in mine for b in stage.blocks(job))
    nodes = -(-job.expert // devices_per_node)
    out = {
        "all-to-all, once per rank": all_to_all(job, job.expert, moe),
        "all-to-all between nodes, two hops": all_to_all(job, nodes, moe) if job.expert > 1 else 0.0,
    }
    message = 4.0 * c.hidden_size * job.micro_tokens * job.micro_batches  # the residual stream is FP32
    down = sum(not s.last and not _neighbour(job, s.index, 1) for s in mine)
    up = sum(not s.first and not _neighbour(job, s.index, -1) for s in mine)
    out["pipeline messages"] = message * (down + up)
    parts = ((have.plain, job.data), (have.routed, job.expert_copies))
    once = sum(4.0 * size * (ranks - 1) / ranks for size, ranks in parts)
    if job.sharding == "zero1":
        out["gradients and weights (ZeRO-1)"] = 2 * once
    else:
        out["weights and gradients (fsdp2)"] = once * (2 * job.micro_batches + 1)
    return out


def _neighbour(job: Job, stage: int, step: int) -> bool:
    """Whether the stage next to `stage` is on the same rank (the fold of a V)."""
    return job.stages == 2 * job.pipeline and {stage, stage + step} == {job.pipeline - 1, job.pipeline}
