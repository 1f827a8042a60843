"""Data, expert and pipeline parallelism train the same model: 20 steps of the tiny run against one process.

Ranks add up in another order than one process does, so the last bits of FP32 differ, and AdamW turns a last bit of a
small gradient into more. What must not differ at all: which experts tokens go to, and so the router biases.

In FP8 a last bit may turn a value to the next one that 8 bits have: a one-process run whose weights are off by 1e-6 at
the start has a loss that is off by up to 2e-2 within these steps, to either side. So there the first step is compared
closely, the rest of the curve as closely as that.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from parallel.distributed import run
from parallel_bodies import (
    EIGHT_BITS,
    EXHAUSTIVE,
    HALF,
    MUON,
    ONE,
    STEPS,
    SUITE,
    Case,
    Result,
    against,
    compare,
    start_from,
    stop_one,
    train,
    train_on_ranks,
)
from tiny_run import make_config, make_model

from fathom.checkpoint.store import Store, read_whole
from fathom.checkpoint.writer import save_model
from fathom.model.moe import Gate
from fathom.parallel.expert import is_routed
from fathom.parallel.mesh import Layout
from fathom.runtime import UserError
from fathom.train.parts import layout_of

FIRST, LOSS, NORM, WEIGHTS = 2e-7, 1e-6, 5e-5, 5e-4  # relative, over 20 steps in FP32
FIRST_FP8, FIRST_FP8_WIRE = 1e-6, 5e-3  # loss and norm of the first step; the wire rounds results to BF16
LOSS_FP8, MEAN_FP8 = 4e-2, 5e-3  # largest difference, and mean of all 20


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Result]:
    torch.set_num_threads(1)
    found = compare([*SUITE, *EIGHT_BITS], tmp_path_factory.mktemp("layouts"))
    return {result.case: result for result in found}


@pytest.mark.parametrize("case", SUITE, ids=str)
def test_fp32_trains_the_same_model(results: dict[Case, Result], case: Case) -> None:
    r = results[case]
    assert r.first < FIRST and max(r.loss, r.mtp, r.nats) < LOSS and r.norm < NORM and r.weights < WEIGHTS, str(r)
    assert r.loads_equal and r.biases_equal, str(r)


@pytest.mark.parametrize("case", EIGHT_BITS, ids=str)
def test_fp8_trains_nearly_the_same_model(results: dict[Case, Result], case: Case) -> None:
    r = results[case]
    assert r.first < (FIRST_FP8_WIRE if case.layout.expert > 1 else FIRST_FP8), str(r)
    assert max(r.loss, r.mtp, r.nats) < LOSS_FP8 and r.mean < MEAN_FP8, str(r)


def test_the_tolerance_catches_a_change(tmp_path: Path) -> None:
    """A curve of another weight decay leaves it within 20 steps."""
    curves = []
    for decay in (0.1, 0.101):
        case = Case(ONE, changes={"optim.weight_decay": decay})
        curves.append((train(case, tmp_path / str(decay), None), tmp_path / str(decay)))
    r = against(Case(ONE), *curves[0], *curves[1])
    assert r.loss > LOSS, str(r)


def test_each_rank_reads_its_part_of_the_checkpoint_it_starts_from(tmp_path: Path) -> None:
    """Together the ranks have its values; none has memory for more than its stage and its experts."""
    cases = [Case(Layout(pipeline=2, data=2, expert=2), "zb1p"), Case(Layout(data=4, expert=4)),
             Case(Layout(pipeline=4), "1f1b"), Case(Layout(data=4), sharding="fsdp2")]  # fmt: skip
    whole = make_model(cases[0].config(tmp_path))
    for number, gate in enumerate(m for m in whole.modules() if isinstance(m, Gate)):
        gate.e_score_correction_bias += torch.arange(8) * 0.01 + number
    save_model(whole, tmp_path / "start", dtype="fp32")
    ended = run(4, start_from, str(tmp_path / "start"), cases, str(tmp_path), folder=tmp_path, limit=300.0)
    assert all(rank.code == 0 for rank in ended.values()), ended
    wanted = {f"model.{name}": p for name, p in whole.named_parameters()}
    gates = [m for m in whole.modules() if isinstance(m, Gate)]
    wanted |= {f"router_bias.{i}": gate.e_score_correction_bias for i, gate in enumerate(gates)}
    for number in range(len(cases)):
        found = dict(read_whole(tmp_path / str(number) / "checkpoints/step-00000000"))
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items()), cases[number]
    total = sum(p.numel() for p in whole.parameters())
    experts = sum(p.numel() for n, p in whole.named_parameters() if is_routed(n))
    held = [rank.value for rank in ended.values()]
    assert all(rank[1][0] == total - experts * 3 // 4 for rank in held)
    assert all(rank[0][0] < 0.6 * total for rank in held) and max(rank[2][0] for rank in held) < 0.6 * total
    assert {name for rank in held for name in rank[2][1]} == {name for name, _ in whole.named_parameters()}


def until_half(run_folder: Path, to: Path) -> Path:
    """A copy of a finished run as it was when the first checkpoint was there."""
    shutil.copytree(run_folder, to)
    shutil.rmtree(to / f"checkpoints/step-{STEPS:08d}")
    return to


def test_a_checkpoint_goes_on_on_another_layout(tmp_path: Path) -> None:
    """One process -> 4 ranks of data and experts -> pipeline x data x experts; and from 4 ranks back to one process."""
    data, mixed = Layout(data=4, expert=2), Layout(pipeline=2, data=2, expert=2)
    curves, jobs = {}, []
    for kind, changes in (("adamw", {}), ("muon", MUON)):
        out = tmp_path / kind
        curves[kind] = train(Case(ONE, changes=changes), out / "whole", None)
        until_half(out / "whole", out / "spread")
        spread, piped = Case(data, changes=changes), Case(mixed, "zb1p", changes=changes)
        jobs += [(spread, f"{kind}/moved", HALF), (piped, f"{kind}/moved", STEPS), (spread, f"{kind}/spread", STEPS)]
    found = train_on_ranks(jobs, tmp_path)
    for kind, changes, (_, moved, spread_curve) in (("adamw", {}, found[:3]), ("muon", MUON, found[3:])):
        out, case = tmp_path / kind, Case(ONE, changes=changes)
        joined = train(case, until_half(out / "moved", out / "joined"), None)
        for name, records in (("moved", moved), ("spread", spread_curve), ("joined", joined)):
            assert [r["step"] for r in records] == list(range(HALF + 1, STEPS + 1))
            r = against(case, records, out / name, curves[kind][HALF:], out / "whole")
            assert max(r.loss, r.mtp, r.nats) < LOSS and r.norm < NORM and r.weights < WEIGHTS, f"{kind} {name}: {r}"
            assert r.loads_equal and r.biases_equal, f"{kind} {name}"
            log = [json.loads(line)["step"] for line in (out / name / "log.jsonl").read_text().splitlines()]
            assert log == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("moment", "last"), [("batch", 4), ("tick", 5)])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path, moment: str, last: int) -> None:
    """During step 4, or after it: when the ranks have spoken about it, the other may be in step 5 already."""
    case = Case(Layout(data=2))
    ended = run(2, stop_one, case, str(tmp_path), 1, 3, moment, folder=tmp_path, limit=300.0)
    assert [rank.value for rank in ended.values()] == [("stopped", last)] * 2, ended
    assert Store(tmp_path / "run/checkpoints", None, keep=2, best="heldout").latest() == last


# ---- layouts that do not fit


@pytest.mark.parametrize(
    ("changes", "world", "words"),
    [({"pipeline": 3}, 4, "pipeline 3.*4 processes"), ({"data": 3}, 4, "data 3.*needs 3.*4"),
     ({"data": 2, "pipeline": 4}, 4, "needs 8"), ({"expert": 3}, 4, "expert 3.*data 4")],
)  # fmt: skip
def test_wrong_layouts(tmp_path: Path, changes: dict[str, int], world: int, words: str) -> None:
    config = make_config(tmp_path, {f"parallel.{k}": v for k, v in changes.items()})
    with pytest.raises(UserError, match=words):
        layout_of(config, world)


def test_the_layout_of_a_recipe(tmp_path: Path) -> None:
    config = make_config(tmp_path, {"parallel.pipeline": 2, "parallel.expert": 2})
    assert layout_of(config, 8) == Layout(2, 4, 2) and layout_of(config, 4) == Layout(2, 2, 2)
    assert layout_of(make_config(tmp_path), 1) == ONE


def test_the_exhaustive_list_has_everything(tmp_path: Path) -> None:
    """Every schedule, every depth, every way to spread experts, and only what a config allows."""
    assert {c.schedule for c in EXHAUSTIVE} == {"gpipe", "1f1b", "zb1p", "dualpipev"}
    assert {c.layout.world for c in EXHAUSTIVE} == {2, 4} and {c.depths for c in EXHAUSTIVE} == {0, 1, 2}
    assert len({str(c) for c in EXHAUSTIVE}) == len(EXHAUSTIVE)
    for case in EXHAUSTIVE:
        assert layout_of(case.config(tmp_path), case.layout.world) == case.layout
