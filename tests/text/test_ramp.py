"""The batch-size ramp, against its recursion; and threads that make batches early."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.runtime import UserError
from fathom.text.batch import Batch
from fathom.text.prefetch import Prefetched
from fathom.text.ramp import Ramp


@given(st.integers(1, 8), st.integers(0, 40), st.integers(0, 20_000), st.integers(1, 64), st.sampled_from([1, 2, 8]))
def test_the_ramp_follows_the_tokens(start: int, more: int, over: int, length: int, multiple: int) -> None:
    start, end = start * multiple, (start + more) * multiple
    ramp = Ramp(end, start=start, over=over, length=length, multiple=multiple)
    before = last = 0
    for step in range(ramp.steps + 3):
        assert ramp.first_row(step) == before
        rows = ramp.rows(step)
        wanted = end if before * length >= over else start + (end - start) * before * length / over
        assert wanted - multiple < rows <= wanted and rows % multiple == 0 and rows >= max(last, start)
        before, last = before + rows, rows
    assert last == end
    far = ramp.steps + 10**9
    assert ramp.rows(far) == end and ramp.first_row(far) == ramp.first_row(ramp.steps) + 10**9 * end


def test_the_reports_ramp() -> None:
    """3072 to 15360 rows of 4096 tokens over 469B tokens; d rows / d step is proportional to the rows: a logarithm."""
    ramp = Ramp(15360, start=3072, over=469 * 10**9, length=4096)
    assert ramp.rows(0) == 3072 and ramp.rows(ramp.steps) == 15360
    assert ramp.steps == pytest.approx(469e9 / 4096 / (15360 - 3072) * math.log(15360 / 3072), rel=1e-3)
    assert abs(ramp.first_row(ramp.steps) * 4096 / 469e9 - 1) < 1e-3


def test_no_ramp() -> None:
    for ramp in (Ramp(12), Ramp(12, start=4), Ramp(12, over=100)):
        assert [ramp.rows(s) for s in (0, 1, 99)] == [12] * 3 and ramp.first_row(7) == 84


@pytest.mark.parametrize(
    ("end", "rest"), [(4, {"start": 8, "over": 10}), (0, {}), (10, {"start": 5, "over": 9, "multiple": 2}),
                      (9, {"start": 4, "over": 9, "multiple": 2})],
)  # fmt: skip
def test_wrong_ramps(end: int, rest: dict[str, int]) -> None:
    with pytest.raises(UserError, match="rows"):
        Ramp(end, **rest)


# ---- prefetching


class Counting:
    """Batches that say their step; remembers who asked for what."""

    def __init__(self, fail: int = -1, wait: float = 0.0) -> None:
        self.fail, self.wait, self.made = fail, wait, []  # type: ignore[var-annotated]

    def batch(self, step: int) -> Batch:
        self.made.append(step)
        time.sleep(self.wait * (step % 3))  # later steps may be done first
        if step == self.fail:
            raise UserError(f"step {step} is broken")
        return Batch(torch.full((1, 1), step), torch.full((1, 1), step))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetched_batches_come_by_step_and_from_any_step_on(workers: int) -> None:
    with Prefetched(Counting(wait=0.002), workers, 3) as data:
        for step in [0, 1, 2, 3, 3, 50, 51, 2, 4, 5, 1000]:
            assert data.batch(step).tokens.item() == step


def test_it_works_ahead_and_makes_each_step_once() -> None:
    source = Counting()
    with Prefetched(source, 2, 4) as data:
        for step in range(20):
            data.batch(step)
    assert sorted(source.made) == list(range(max(source.made) + 1)) and 19 <= max(source.made) <= 23
    ahead = Counting()
    with Prefetched(ahead, 1, 4) as data:
        data.batch(0)
        deadline = time.monotonic() + 20
        while len(ahead.made) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert ahead.made == [0, 1, 2, 3, 4]


def test_errors_reach_the_caller_when_their_step_is_asked_for() -> None:
    with Prefetched(Counting(fail=3), 2, 4) as data:
        assert [data.batch(step).tokens.item() for step in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(UserError, match="step 3 is broken"):
                data.batch(3)
        assert data.batch(4).tokens.item() == 4


def test_shutdown_leaves_no_thread() -> None:
    before = threading.active_count()
    data = Prefetched(Counting(wait=0.01), 3, 10)
    data.batch(0)
    assert threading.active_count() > before
    data.close()
    assert threading.active_count() == before
    data.close()


@pytest.mark.parametrize(("workers", "ahead"), [(-1, 1), (1, 0)])
def test_wrong_numbers(workers: int, ahead: int) -> None:
    with pytest.raises(UserError, match="workers"):
        Prefetched(Counting(), workers, ahead)
