"""Experts spread over ranks are the same layer: against one process, against the slow form, and byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel.distributed import run
from parallel.expert_bodies import (
    ROWS,
    TOKENS,
    V2,
    V3,
    WIDE,
    Case,
    PretendedRanks,
    expert_runs,
    fp8_layer,
    fp8_layer_alone,
    layer_inputs,
    make_layer,
    norm_and_pieces,
    rounded,
    run_layer,
    whole_run,
    with_zero,
)  # fmt: skip
from small_models import make_model, relative
from torch import Tensor

from fathom.parallel.all_to_all import collect, decode, encode, spread, width
from fathom.parallel.expert import expert_blocks, expert_parallel, is_routed
from fathom.parallel.group import Group
from fathom.parallel.mesh import Layout, Mesh, single
from fathom.runtime import UserError

CPU = torch.device("cpu")
PAIR, FOUR, COPIES = Layout(data=2, expert=2), Layout(data=4, expert=4), Layout(data=4, expert=2)


@pytest.mark.parametrize(
    "cases",
    [
        [Case(PAIR), Case(PAIR, V2), Case(PAIR, crowded=True), Case(PAIR, crowded=True, recompute=True)],
        [Case(FOUR), Case(FOUR, V3.replace(topk_group=1), crowded=True, recompute=True)],
        [Case(COPIES, by_hand=True)],
    ],
    ids=["2 ranks", "4 ranks", "2 copies on 2 ranks each"],
)
def test_ranks_equal_one_process(cases: list[Case], tmp_path: Path) -> None:
    layout = cases[0].layout
    ended = run(layout.world, expert_runs, cases, folder=tmp_path, limit=240.0)
    assert [rank.code for rank in ended.values()] == [0] * layout.world, ended
    for number, case in enumerate(cases):
        expected = whole_run(case)
        for rank, finished in ended.items():
            fast, *more = finished.value[number]
            for found in (fast, *more[1:]):
                assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
                assert relative(found["logits"], expected["logits"][rank :: layout.data]) < 1e-5
                for name, whole in expected["gradients"].items():
                    own = whole.chunk(layout.expert)[rank % layout.expert] if is_routed(name) else whole
                    limit = 1e-5 * float(whole.abs().max())
                    assert float((found["gradients"][name] - own).abs().max()) <= limit, name
            for again in more[:1]:
                same = (torch.equal(gradient, again["gradients"][n]) for n, gradient in fast["gradients"].items())
                assert all(same), "the same bits every time"
            assert bool(fast["silent"]) == (case.crowded and rank % layout.expert > 0), "who had no token"
            for name, (shape, start) in fast["ranges"].items():
                assert shape == expected["gradients"][name].shape
                assert start == rank % layout.expert * (shape.numel() // layout.expert)


@pytest.fixture(scope="module")
def fp8_runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    ended = run(4, fp8_layer, FOUR, folder=tmp_path_factory.mktemp("fp8"), limit=240.0)
    assert [rank.code for rank in ended.values()] == [0] * 4, ended
    return [rank.value for rank in ended.values()]


@pytest.fixture
def fp8_ranks(fp8_runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    return [fp32_products for fp32_products, _ in fp8_runs]


def test_fp8_rounds_what_travels_and_nothing_else(fp8_ranks: list[dict[str, Any]]) -> None:
    mlp = make_layer()
    plain = run_layer(make_layer(), *layer_inputs())
    mlp.experts = PretendedRanks(mlp.experts, 4)  # type: ignore[assignment]
    expected = run_layer(mlp, *layer_inputs())

    def joined(name: str) -> Tensor:
        out = torch.empty_like(expected[name])
        for rank, value in enumerate(fp8_ranks):
            out[:, rank::4] = value[name]
        return out

    assert torch.equal(joined("indices"), expected["indices"])
    pairs = {name: (joined(name), expected[name], plain[name]) for name in ("y", "x")}
    for name in ("experts.gate_up", "experts.down"):
        got = torch.cat([value["gradients"][name] for value in fp8_ranks])
        pairs[name] = got, expected["gradients"][name], plain["gradients"][name]
    for name in ("gate.weight", "shared_experts.down_proj.weight"):
        pairs[name] = fp8_ranks[0]["gradients"][name], expected["gradients"][name], plain["gradients"][name]
    for name, (got, wanted, unrounded) in pairs.items():
        # a last bit may tip a rounding to BF16; without the roundings all would be elsewhere
        off = (got - wanted).abs() > 1e-5 * wanted.abs().max()
        assert relative(got, wanted) < 5e-3 and off.float().mean() < 0.02, name
        if not name.startswith("shared"):
            assert relative(unrounded, wanted) > 5e-3, name


def test_fp8_dispatch_is_what_fp8_experts_see_anyway(fp8_runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    expected = fp8_layer_alone()
    got = [fp8_products for _, fp8_products in fp8_runs]
    gate_up = torch.cat([value["gradients"]["experts.gate_up"] for value in got])
    assert relative(gate_up, expected["gradients"]["experts.gate_up"]) < 1e-6
    assert relative(got[0]["gradients"]["gate.weight"], expected["gradients"]["gate.weight"]) < 1e-6
    down = torch.cat([value["gradients"]["experts.down"] for value in got])
    assert 1e-3 < relative(down, expected["gradients"]["experts.down"]) < 0.1, "what wgrad sees has travelled in FP8"
    for rank, value in enumerate(got):  # a BF16 row per rank
        assert relative(value["y"], expected["y"][:, rank::4]) < 2**-7
        assert relative(value["x"], expected["x"][:, rank::4]) < 2**-7


def test_bytes_are_what_the_routing_asks_for(fp8_ranks: list[dict[str, Any]]) -> None:
    dim, top_k, per_rank = WIDE.hidden_size, WIDE.num_experts_per_tok, WIDE.n_routed_experts // 4
    fp8, bf16 = dim + 2, 2 * dim  # two tiles, two scales
    back = torch.zeros(4, 4, dtype=torch.int64)
    for rank, value in enumerate(fp8_ranks):
        counted = value["traffic"]
        visited = [{int(e) // per_rank for e in chosen} for chosen in value["indices"][0]]
        rows = [sum(to in ranks for ranks in visited) for to in range(4)]
        away = [0 if to == rank else n for to, n in enumerate(rows)]
        back[:, rank] = torch.tensor(away)
        assert counted.tokens == TOKENS // 4 and counted.rows == sum(rows)
        assert counted.bytes["dispatch"] == [n * (fp8 + 6 * top_k) for n in away]
        assert counted.bytes["gradient_dispatch"] == [n * fp8 for n in away]
        # a rank is a group of experts here: the gate's limit is a limit on bytes
        assert counted.nodes == counted.rows <= WIDE.topk_group * counted.tokens < top_k * counted.tokens
        assert counted.total("dispatch") <= WIDE.topk_group * counted.tokens * (fp8 + 6 * top_k)
    for rank, value in enumerate(fp8_ranks):
        assert value["traffic"].bytes["combine"] == [int(n) * bf16 for n in back[rank]]
        assert value["traffic"].bytes["gradient_combine"] == [int(n) * (bf16 + 4 * top_k) for n in back[rank]]
        value["traffic"].clear()
        assert value["traffic"].total("dispatch") == 0


def test_with_zero_everything_counts_once(tmp_path: Path) -> None:
    expected = norm_and_pieces(single(CPU))
    ended = run(4, with_zero, COPIES, folder=tmp_path, limit=240.0)
    weights = dict(make_model(V3).named_parameters())
    covered = {name: torch.zeros(p.numel(), dtype=torch.int64) for name, p in weights.items()}
    for rank in ended.values():
        assert rank.code == 0, rank.err
        assert rank.value["square"] == pytest.approx(expected["square"], rel=1e-5)
        for name, shape, start, data in rank.value["pieces"]:
            whole = weights[name.removeprefix("model.")]
            assert shape == whole.shape and torch.equal(data, whole.flatten()[start : start + len(data)])
            covered[name.removeprefix("model.")][start : start + len(data)] += 1
    assert all((count == 1).all() for count in covered.values())


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("dim", [8, 128, 200])
def test_wires(rows: int, dim: int) -> None:
    x = (
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(dim))
        * 10.0 ** torch.arange(-3, rows - 3)[:, None]
    )
    for wire in ("fp32", "bf16", "fp8"):
        sent = encode(x, wire)
        assert sent.shape == (rows, width(dim, wire)) and sent.dtype == torch.uint8
        assert torch.equal(decode(sent, wire, dim), x if wire == "fp32" else rounded(x, wire))


def test_spread_and_collect_are_each_other_s_gradient() -> None:
    index, chunks = torch.tensor([0, 2, 3, 2, 0]), [3, 0, 2]
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(spread(x, index, chunks), x[index])
    assert torch.equal(collect(rows, index, chunks, 4), torch.zeros(4, 3).double().index_add(0, index, rows))
    assert torch.autograd.gradcheck(lambda t: spread(t, index, chunks), (x,))
    assert torch.autograd.gradcheck(lambda t: collect(t, index, chunks, 4), (rows,))


def far_mesh(ranks: int) -> Mesh:
    """A mesh whose ranks never talk."""
    group = Group(1, ranks, None, CPU)
    return Mesh(Layout(data=ranks, expert=ranks), 1, group, group, group, Group(0, 1, None, CPU), group)


@pytest.mark.parametrize(
    ("ranks", "dispatch", "message"),
    [
        (5, "fp32", "parallel.expert is 5, which does not divide the model's n_routed_experts 12"),
        (2, "fp16", "dispatch 'fp16' is not known; use one of fp32, bf16, fp8"),
    ],
)
def test_mistakes(ranks: int, dispatch: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        expert_parallel(make_model(V3), far_mesh(ranks), dispatch=dispatch)


def test_names_stay_and_memory_goes() -> None:
    model = make_model(V3)
    before = {name: p.shape for name, p in model.named_parameters()}
    expert_parallel(model, far_mesh(4), dispatch="fp8")
    for name, parameter in model.named_parameters():
        assert parameter.numel() * (4 if is_routed(name) else 1) == before[name].numel()
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4
    assert [n for n, _ in model.named_parameters()] == list(before)
    assert len(expert_blocks(model)) == 4


def test_one_rank_changes_nothing() -> None:
    model = make_model(V3)
    kinds = [type(m) for m in model.modules()]
    assert [type(m) for m in expert_parallel(model, single(CPU), dispatch="fp8").modules()] == kinds
    assert ROWS % 4 == 0
