"""Who belongs to which group, and the collectives of training against what they must deliver."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from parallel.distributed import run
from parallel.training_bodies import messages, sums_of_groups, wrong_layout

from fathom.parallel.group import CollectiveError, Group, Pending
from fathom.parallel.mesh import Layout, make_mesh, single
from fathom.runtime import UserError

CPU = torch.device("cpu")


def test_groups_of_the_example() -> None:
    groups = Layout(pipeline=2, data=4, expert=2).groups()
    assert groups["data"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert groups["expert"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert groups["expert_data"] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert groups["pipeline"] == [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize("layout", [Layout(), Layout(3, 4, 4), Layout(2, 6, 3), Layout(4, 2, 1)])
def test_every_kind_of_group_covers_every_rank_once(layout: Layout) -> None:
    for kind, lists in layout.groups().items():
        assert sorted(rank for ranks in lists for rank in ranks) == list(range(layout.world)), kind


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"data": 0}, "parallel.data is 0, it must be at least 1"),
        ({"data": 4, "expert": 3}, "parallel.expert 3 does not divide parallel.data 4"),
    ],
)
def test_layouts_that_cannot_be(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Layout(**numbers)


def test_number_of_processes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 process was started, .* data 2 needs 2; start that many"):
        make_mesh(Layout(data=2), CPU)
    ended = run(2, wrong_layout, Layout(pipeline=3), folder=tmp_path)
    assert all("2 processes were started, the layout pipeline 3 x data 1 needs 3" in r.value for r in ended.values())


@pytest.mark.parametrize("layout", [Layout(2, 2, 2), Layout(1, 4, 2)])
def test_groups_meet(layout: Layout, tmp_path: Path) -> None:
    ended = run(4, sums_of_groups, layout, folder=tmp_path)
    for kind, lists in layout.groups().items():
        for ranks in lists:
            for place, rank in enumerate(ranks):
                assert ended[rank].value is not None, ended[rank].err
                assert ended[rank].value[kind] == (place, len(ranks), sum(ranks))


def test_messages(tmp_path: Path) -> None:
    ended = run(3, messages, folder=tmp_path)
    for me, rank in ended.items():
        assert rank.code == 0, rank.err
        value = rank.value
        assert value["scattered"] == [111 * (2 * me), 111 * (2 * me + 1)]
        assert value["gathered"] == [1, 1, 2, 2, 3, 3]
        assert value["largest"] == [2, 0, -math.inf]
        assert value["left"] == [(me - 1) % 3] * 2 and value["right"] == [(me + 1) % 3 + 0.5] * 4
    assert ended[0].value["rows"] == [10] * 3 + [20] * 6
    assert ended[1].value["rows"] == []
    assert ended[2].value["rows"] == [12] * 5 + [22] * 8


def test_one_rank_needs_nobody() -> None:
    assert not dist.is_initialized()
    group = single(CPU).data
    x = torch.arange(4.0)
    out = torch.empty(4)
    group.all_to_all(out, x, [4], [4]).wait()
    assert torch.equal(out, x) and group.agree(3)
    assert group.sum(x) is x and group.largest(x) is x and group.join(x) is x and group.reduce_scatter(x) is x
    group.all_gather(out.zero_(), x)
    assert torch.equal(out, x)
    group.exchange([], []).wait()


def test_a_failure_while_waiting_is_named() -> None:
    class Broken:
        def wait(self) -> None:
            raise RuntimeError("peer closed\nlong trace")

    with pytest.raises(CollectiveError, match=r"^peer closed$"):
        Pending((Broken(),)).wait()
    assert Group(0, 1, None, CPU).size == 1
