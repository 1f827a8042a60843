"""Schedules as data: sound and within memory; bubbles and peaks of the report's Table 2; messages in order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from torch.distributed.pipelining.schedules import ScheduleDualPipeV

from fathom.parallel.messages import gives, messages, takes
from fathom.parallel.schedules import Action, Pair, Schedule, Step, parts, schedule
from fathom.parallel.timeline import Costs, Stuck, check, draw, peak_bound, peaks, simulate
from fathom.runtime import UserError

NAMES = ["gpipe", "1f1b", "zb1p", "dualpipev", "forward"]
COSTS = [Costs(), Costs(1.0, 2.2, 0.9, 2.7), Costs(1.3, 2.3, 0.8, 3.6), Costs(2.0, 5.0, 1.5, 5.0)]


def grid(name: str, ranks: tuple[int, ...] = (1, 2, 3, 4, 5, 8), most: int = 20) -> list[Schedule]:
    return [
        schedule(name, r, m) for r in ranks for m in range(1, most) if name != "dualpipev" or m >= 2 * r
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_is_sound(name: str) -> None:
    for made in grid(name):
        assert check(made) == [], (name, made.ranks, made.micro)


def changed(made: Schedule, rank: int, steps: list[Step]) -> Schedule:
    rows = list(made.steps)
    rows[rank] = tuple(steps)
    return dataclasses.replace(made, steps=tuple(rows))


def test_check_finds_what_is_wrong() -> None:
    made = schedule("zb1p", 3, 4)
    steps = list(made.steps[1])
    lacking = check(changed(made, 1, [s for s in steps if s != Action("I", 1, 2)]))
    assert any("rank 1 lacks I of stage 1, micro-batch 2" in w for w in lacking) and any("stops" in w for w in lacking)
    assert check(changed(made, 1, [*steps, Action("W", 1, 0)]))[0].startswith("rank 1 has W of stage 1, micro-batch 0")
    assert "rank 1 has F of stage 0" in check(changed(made, 1, [*steps, Action("F", 0, 0)]))[0]
    first, second = steps.index(Action("W", 1, 0)), steps.index(Action("W", 1, 1))
    steps[first], steps[second] = steps[second], steps[first]
    assert any("weight gradients of stage 1 come in the order [1, 0" in w for w in check(changed(made, 1, steps)))
    greedy = dataclasses.replace(schedule("gpipe", 2, 5), name="1f1b")
    assert check(greedy) == [f"rank {r} holds 5 activations, the limit is {2 - r}" for r in range(2)]
    with pytest.raises(Stuck, match=r"\{0: 'I0@0', 1: 'F0@1', 2: 'F0@2'\}"):
        simulate(changed(made, 0, [Action("I", 0, 0), *made.steps[0]]))


@pytest.mark.parametrize("c", COSTS)
def test_bubbles_of_table_2(c: Costs) -> None:
    for made in grid("1f1b"):
        wanted = (made.ranks - 1) * (c.forward + c.backward)
        assert simulate(made, c).bubbles == pytest.approx([wanted] * made.ranks)
    for made in grid("zb1p"):  # c.weight is at most F and I
        missing = max(0, made.ranks - made.micro)  # micro-batches short of one per rank: a W each
        wanted = (made.ranks - 1) * (c.forward + c.backward - 2 * c.weight) + missing * c.weight
        assert simulate(made, c).bubbles == pytest.approx([wanted] * made.ranks)
    for made in grid("dualpipev"):
        formula = (made.stages / 2 - 1) * (c.pair + c.backward - 3 * c.weight)
        late = c.forward - (c.backward - c.weight)
        assert late >= 0 or max(simulate(made, c).bubbles) <= formula + 1e-9
        if late >= 0:
            wanted = formula + (made.ranks - 1) * late
            assert max(simulate(made, c).bubbles) == pytest.approx(wanted, abs=1e-9)


def test_dualpipev_idles_alike_where_pairs_save_nothing() -> None:
    for made in grid("dualpipev"):
        assert simulate(made).bubbles == pytest.approx([2.0 * (made.ranks - 1)] * made.ranks)


def test_a_long_weight_gradient_costs_zb1p_what_the_docs_say() -> None:
    c = Costs(1.0, 2.4, 1.3, 3.4)
    for ranks in (2, 4):
        wanted = (ranks - 1) * (1.0 + 2.4 - 2 * 1.3) + (ranks - 1) * (1.3 - 1.0)
        assert simulate(schedule("zb1p", ranks, 8), c).bubbles == pytest.approx([wanted] * ranks)


def test_bubbles_shrink_from_schedule_to_schedule() -> None:
    """The same model on 4 ranks: a dualpipev stage is half as large."""
    half = Costs(0.5, 1.0, 0.5, 1.5)
    spent = [max(simulate(schedule(name, 4, 8)).bubbles) for name in ("gpipe", "1f1b", "zb1p")]
    spent.append(max(simulate(schedule("dualpipev", 4, 8), half).bubbles))
    assert spent == pytest.approx([9.0, 9.0, 3.0, 3.0])


def test_peaks_of_table_2() -> None:
    for ranks in (2, 4, 8):
        assert max(peaks(schedule("1f1b", ranks, 20))) == ranks
        assert peaks(schedule("zb1p", ranks, 20)) == [ranks] * ranks
        made = schedule("dualpipev", ranks, 20)
        assert peaks(made) == [made.stages + 1] * ranks
        assert peaks(schedule("gpipe", ranks, 20)) == [20] * ranks
        assert [peak_bound(made, r) for r in range(ranks)] == peaks(made)


@pytest.mark.parametrize(
    ("name", "ranks", "micro", "message"),
    [
        ("zb2p", 2, 2, "'zb2p' is not known; use one of gpipe, 1f1b, zb1p, dualpipev, forward"),
        ("1f1b", 0, 2, "0 ranks with 2 micro-batches"),
        ("gpipe", 2, 0, "2 ranks with 0 micro-batches"),
        ("dualpipev", 4, 7, "at least 8 micro-batches a step .*, 7 were given; .* zb1p"),
    ],
)
def test_what_cannot_be(name: str, ranks: int, micro: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule(name, ranks, micro)


def test_dualpipev_is_torchs() -> None:
    """torch.distributed.pipelining lists the same steps in the same order."""
    for ranks, micro in ((1, 2), (2, 4), (2, 7), (4, 8), (4, 13), (8, 20)):
        oracle = object.__new__(ScheduleDualPipeV)
        oracle.pp_group_size, oracle._n_microbatches = ranks, micro
        for rank, mine in enumerate(schedule("dualpipev", ranks, micro).steps):
            theirs = [
                [(a.computation_type.value, a.stage_index, a.microbatch_index) for a in step.sub_actions or (step,)]
                for step in oracle._calculate_single_rank_operations(rank)
                if step is not None
            ]
            assert [[(a.kind, a.stage, a.micro) for a in parts(step)] for step in mine] == theirs
            assert [isinstance(step, Pair) for step in mine] == [len(step) == 2 for step in theirs]


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_messages_is_one_that_a_rank_can_keep(name: str) -> None:
    """Each message can be made when those before it in the order have arrived, and a rank makes its own in order."""
    for made in grid(name, (1, 2, 3, 4), 12):
        order = messages(made)
        assert len(order) == len(set(order))
        left = [[action for step in steps for action in parts(step)] for steps in made.steps]
        arrived = set()
        for message in order:
            while True:
                action = left[message.source].pop(0)
                wanted, product = takes(made, action), gives(made, action)
                assert wanted is None or wanted.source == wanted.target or wanted in arrived
                if product == message:
                    break
                assert product is None or product.source == product.target
            arrived.add(message)
        rest = [action for actions in left for action in actions]
        assert all((m := gives(made, action)) is None or m.source == m.target for action in rest)
        assert all((m := takes(made, a)) is None or m.source == m.target or m in arrived for a in rest)


def test_drawing(tmp_path: Path) -> None:
    draw(simulate(schedule("dualpipev", 2, 5)), tmp_path / "v.png", "dualpipev")
    assert (tmp_path / "v.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(UserError, match="another ending"):
        draw(simulate(schedule("1f1b", 2, 2)), tmp_path / "v.svg")
