"""The scheduler alone, with a runner that does nothing: who runs when, who is preempted, what every step may hold."""

from __future__ import annotations

import random

import pytest
import torch

from fathom.engine.cache import PagePool
from fathom.engine.params import SamplingParams
from fathom.engine.request import Request, SequenceState, State
from fathom.engine.scheduler import Scheduler


def sequence(name, prompt, room=5, *, arrival=0, priority=0):
    request = Request(name, list(prompt), SamplingParams(temperature=0), priority=priority)
    return SequenceState(request, 0, arrival, list(prompt), room, torch.Generator(), 0)


def run(scheduler, drafts=0, rng=None):
    """One step: tokens are computed, one is chosen where due, some drafts are right; the work that was done."""
    work = scheduler.schedule()
    assert sum(item.count for item in work if item.sequence.in_prefill) <= scheduler.step_tokens
    for item in work:
        s, right = item.sequence, 0
        assert len(s.pages) * scheduler.pool.page_size >= item.start + item.count + len(item.drafts)
        assert item.count >= 1
        if item.samples:
            right = rng.randrange(len(item.drafts) + 1) if item.drafts else 0
            s.tokens += [7] * (right + 1)
        s.drafts = []
        scheduler.advance(s, item.start + item.count + right)
        if len(s.generated) >= s.room:
            scheduler.finish(s)
        elif item.samples and scheduler.reserve(s, len(s.tokens) + drafts, must=False):
            s.drafts = [7] * drafts
    scheduler.pool.check([s.pages for s in scheduler.running])
    return work


@pytest.mark.parametrize("seed", range(6))
def test_everything_ends_and_every_page_comes_back(seed):
    rng = random.Random(seed)
    pool = PagePool(12, 4)
    scheduler = Scheduler(pool, max_running=rng.choice([2, 5]), step_tokens=rng.choice([1, 6, 40]))
    every = [sequence(f"{i}", [rng.randrange(3) for _ in range(rng.randrange(1, 30))], rng.randrange(1, 10),
                      arrival=i, priority=rng.randrange(2)) for i in range(30)]  # fmt: skip
    left, steps = list(every), 0
    while left or scheduler.has_work:
        if left and rng.random() < 0.5:
            scheduler.add(left.pop())
        if rng.random() < 0.05 and scheduler.running:
            scheduler.finish(rng.choice(scheduler.running + scheduler.waiting))
        run(scheduler, rng.randrange(3), rng)
        assert len(scheduler.running) <= scheduler.max_running
        steps += 1
        assert steps < 5000
    assert pool.held == 0 and all(s.state is State.FINISHED for s in every)
    assert scheduler.preemptions > 0 or seed


def test_the_last_in_order_is_preempted():
    pool = PagePool(4, 2)
    scheduler = Scheduler(pool, max_running=4, step_tokens=100)
    first, second = sequence("a", [1, 2, 3], arrival=0), sequence("b", [4, 5, 6], arrival=1)
    for s in (second, first):
        scheduler.add(s)
    run(scheduler)
    assert scheduler.running == [first, second]
    run(scheduler)  # both fill their second page
    run(scheduler)  # now one needs a third
    assert scheduler.running == [first] and scheduler.waiting == [second] and second.preemptions == 1
    assert second.computed == 0 and len(second.tokens) > 3  # its answer so far is kept


def test_drafts_are_dropped_before_anybody_is_preempted():
    pool = PagePool(4, 2)
    scheduler = Scheduler(pool, max_running=4, step_tokens=100)
    first, second = sequence("a", [1, 2, 3], arrival=0), sequence("b", [4, 5, 6], arrival=1)
    for s in (first, second):
        scheduler.add(s)
    run(scheduler)
    first.drafts = [7, 7, 7, 7]
    work = scheduler.schedule()
    assert [item.drafts for item in work] == [(), ()] and scheduler.preemptions == 0


def test_a_first_come_prompt_gets_half_of_each_step():
    scheduler = Scheduler(PagePool(100, 4), max_running=9, step_tokens=8)
    long = sequence("long", range(40), arrival=0)
    scheduler.add(long)
    run(scheduler)
    for i in range(1, 5):
        scheduler.add(sequence(f"{i}", range(100, 120), arrival=i))
    run(scheduler)
    shares = {item.sequence.request.id: item.count for item in run(scheduler)}
    assert shares["long"] >= 4 and sum(shares.values()) <= 8
