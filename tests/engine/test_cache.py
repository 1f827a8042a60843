"""The page pool: invariants under random use, and what a prefix hit means."""

from __future__ import annotations

import random

import pytest

from fathom.engine.cache import ROOT, PagePool


def fill(pool, tokens):
    """A sequence that computed all of `tokens`: its pages, full ones sealed."""
    pages, keys = pool.match(tokens, len(tokens))
    pages += pool.take(pool.pages_for(len(tokens)) - len(pages))
    while (len(keys) + 1) * pool.page_size <= len(tokens):
        at = len(keys) * pool.page_size
        parent = keys[-1] if keys else ROOT
        keys.append(pool.seal(pages[len(keys)], parent, tokens[at : at + pool.page_size]))
    return pages


@pytest.mark.parametrize("seed", range(5))
def test_invariants_hold_under_random_use(seed):
    rng = random.Random(seed)
    pool, held = PagePool(rng.choice([3, 8, 20]), rng.choice([1, 2, 4])), []
    for _ in range(600):
        if held and rng.random() < 0.45:
            pool.release(held.pop(rng.randrange(len(held))))
        else:
            tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 14))]
            if pool.pages_for(len(tokens)) <= pool.available:
                held.append(fill(pool, tokens))
        pool.check(held)
    for pages in held:
        pool.release(pages)
    pool.check()
    assert pool.held == 0 and pool.available == pool.pages


def test_a_prefix_is_found_page_by_page():
    pool = PagePool(10, 2)
    first = fill(pool, [1, 2, 3, 4, 5])
    pages, keys = pool.match([1, 2, 3, 4, 9, 9], 6)
    assert pages == first[:2] and len(keys) == 2
    assert pool.match([1, 2, 3, 4], 3)[0] == first[:1]  # within the limit only
    assert pool.match([3, 4], 2)[0] == []  # the same tokens after another beginning are another prefix
    assert pool.match([2, 1], 2)[0] == []


def test_a_hit_is_believed_only_after_comparing_tokens(monkeypatch):
    """With a hash that always collides nothing wrong is ever found."""
    monkeypatch.setattr("fathom.engine.cache.page_key", lambda parent, tokens: b"same")
    pool = PagePool(10, 2)
    fill(pool, [1, 2])
    assert len(pool.match([1, 2], 2)[0]) == 1
    assert pool.match([1, 3], 2)[0] == []


def test_the_longest_unused_prefix_goes_first_and_its_end_before_its_beginning():
    pool = PagePool(4, 1)
    for tokens in ([1, 2], [3, 4]):
        pool.release(fill(pool, tokens))
    assert pool.take(1) is not None  # takes [1, 2]'s last page
    assert len(pool.match([1, 2], 2)[0]) == 1 and len(pool.match([3, 4], 2)[0]) == 2


def test_nothing_is_taken_when_there_is_not_enough():
    pool = PagePool(3, 4)
    assert pool.take(4) is None
    pool.check()
    assert pool.take(3) is not None and pool.take(1) is None


def test_clear_forgets_prefixes_but_keeps_held_pages():
    pool = PagePool(4, 1)
    held = fill(pool, [1])
    pool.release(fill(pool, [5, 6]))
    pool.clear()
    assert pool.match([5], 1)[0] == []
    pool.check([held])
