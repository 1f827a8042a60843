"""Expected destinations against every possible routing; volumes by hand."""

from __future__ import annotations

import dataclasses
import itertools
from statistics import mean

import pytest

from fathom.config import ModelConfig
from fathom.plan.job import Job
from fathom.plan.traffic import all_to_all, expected_places, traffic

V3 = ModelConfig.preset("v3-671b")


def counted(experts: int, groups: int, kept: int, top_k: int, places: int) -> float:
    """The mean over all equally likely choices: groups first, then experts in them."""
    per_group, own = experts // groups, experts // places
    found = []
    for chosen in itertools.combinations(range(groups), kept):
        pool = [g * per_group + i for g in chosen for i in range(per_group)]
        found += [len({e // own for e in picked}) for picked in itertools.combinations(pool, top_k)]
    return mean(found)


@pytest.mark.parametrize(("groups", "kept"), [(4, 2), (2, 1), (4, 3), (1, 1), (6, 2)])
@pytest.mark.parametrize("places", [1, 2, 3, 4, 6, 12])
def test_expected_places(groups: int, kept: int, places: int) -> None:
    c = V3.replace(n_routed_experts=12, n_group=groups, topk_group=kept, num_experts_per_tok=2, moe_intermediate_size=8)
    if groups % places and places % groups:
        groups, kept = 1, 1  # slices across groups: the formula leaves groups out
    assert expected_places(c, places) == pytest.approx(counted(12, groups, kept, 2, places))


def test_v3_reaches_less_than_four_nodes() -> None:
    assert 3.6 < expected_places(V3, 8) < 4  # report 3.2.2: at most 4; 8 random picks can miss one
    assert 7 < expected_places(V3, 64) < 8  # 8 experts, seldom two on one rank of 4


def test_volume_of_one_moe_block_by_hand() -> None:
    """FP8 out, BF16 back, forward and backward, to the 7 of 8 nodes that are not the own one."""
    job = Job(V3, 1, 64 * 4, micro_rows=2, data=64, expert=64, gemm="fp8", dispatch="fp8")
    bytes_per_token = 2 * (7168 + 56 + 2 * 7168) * expected_places(V3, 8) * 7 / 8
    assert all_to_all(job, 8, 1) == pytest.approx(bytes_per_token * 4 * 4096)
    plain = dataclasses.replace(job, dispatch="fp32")
    assert all_to_all(plain, 8, 1) / all_to_all(job, 8, 1) == pytest.approx(8 * 7168 / (3 * 7168 + 56))


def test_zero_pipeline_and_fsdp() -> None:
    minnow = ModelConfig.preset("minnow")
    job = Job(minnow, 1, 16, length=128, micro_rows=1, pipeline=2, data=4, expert=2, gemm="bf16", dispatch="bf16")
    from fathom.plan.layout import holding

    have, sent = holding(job, 0), traffic(job, 0, 8)
    once = 4 * (have.plain * 3 / 4 + have.routed * 1 / 2)
    assert sent["gradients and weights (ZeRO-1)"] == 2 * once
    assert sent["pipeline messages"] == 4 * 256 * 128 * 4  # 4 micro-batches of 128 tokens, one neighbour
    assert sent["all-to-all between nodes, two hops"] == 0  # two ranks of one node
    sharded = traffic(dataclasses.replace(job, sharding="fsdp2"), 0, 8)
    assert sharded["weights and gradients (fsdp2)"] == once * (2 * 4 + 1)
    folded = dataclasses.replace(job, schedule="dualpipev", batch_rows=32)
    messages = [traffic(folded, rank, 8)["pipeline messages"] for rank in (0, 1)]
    assert messages == [2 * 4 * 256 * 128 * 8] * 2  # stages 0|3 and 1|2: two crossings each, the fold is free
