"""Who gets the blame: ranks as threads of one process around one store, with short times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from torch._C._distributed_c10d import HashStore

from fathom.parallel.watch import LostRank, Watch

INTERVAL, SILENCE, DOUBT = 0.02, 3.0, 0.6


class Ranks:
    """`size` watches on one store; what each concluded is in `lost`."""

    def __init__(self, size: int, silence: float = SILENCE) -> None:
        store = HashStore()
        self.lost: dict[int, LostRank] = {}
        self.watches = [
            Watch(store, r, size, on_lost=self._noted(r), interval=INTERVAL, silence=silence, doubt=DOUBT)
            for r in range(size)
        ]
        for watch in self.watches:
            watch.start()
        until(lambda: all(len(watch.seen) == size for watch in self.watches))

    def _noted(self, rank: int) -> Callable[[LostRank], None]:
        return lambda error: self.lost.__setitem__(rank, error)

    def die(self, rank: int) -> None:
        """No more beats, and no last word."""
        self.watches[rank]._stop.set()

    def fails_collective(self, *ranks: int) -> None:
        for rank in ranks:
            threading.Thread(target=self.watches[rank].alarm, args=("connection closed",), daemon=True).start()

    def close(self) -> None:
        for watch in self.watches:
            watch.close()


def until(done: Callable[[], bool], limit: float = 20.0) -> None:
    end = time.monotonic() + limit
    while not done():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def blamed(ranks: Ranks, by: tuple[int, ...], who: str, why: str) -> None:
    """All of `by` leave with the same reason, and exactly the lowest of them says it."""
    until(lambda: set(by) <= set(ranks.lost))
    for rank in by:
        assert str(ranks.lost[rank]).startswith(who) and why in str(ranks.lost[rank])
        assert ranks.lost[rank].speaks == (rank == min(by))
    ranks.close()


def test_a_silent_rank_is_named_without_any_collective() -> None:
    ranks = Ranks(3, silence=1.0)
    ranks.die(1)
    blamed(ranks, (0, 2), "rank 1 (process ", "no sign of life")


def test_an_alarm_shortens_the_wait() -> None:
    ranks = Ranks(4)
    began = time.monotonic()
    ranks.die(0)
    ranks.fails_collective(2)  # the others are still inside a collective with rank 2
    blamed(ranks, (1, 2, 3), "rank 0 (process ", "died or froze")
    assert time.monotonic() - began < SILENCE


def test_among_the_living_the_one_without_an_alarm_is_to_blame() -> None:
    ranks = Ranks(3)
    ranks.fails_collective(0, 1)
    until(lambda: {0, 1} <= set(ranks.lost))
    assert "rank 2 (process " in str(ranks.lost[0]) and "connection closed" in str(ranks.lost[0])
    until(lambda: 2 in ranks.lost)
    assert not ranks.lost[2].speaks, "the stuck rank leaves too, with the others' verdict"
    blamed(ranks, (0, 1), "rank 2 (process ", "did not take part")


def test_when_all_raise_the_alarm_it_is_the_network() -> None:
    ranks = Ranks(2)
    ranks.fails_collective(0, 1)
    blamed(ranks, (0, 1), "the ranks lost the connection", "connection closed")


def test_a_rank_that_fails_by_itself_leaves_its_reason() -> None:
    ranks = Ranks(2)
    ranks.watches[0].close("failed", "OutOfMemoryError: 3 GB")
    blamed(ranks, (1,), "rank 0 (process ", "failed: OutOfMemoryError: 3 GB")


def test_leaving_with_a_word_is_no_crime() -> None:
    ranks = Ranks(2, silence=0.3)
    ranks.watches[1].close()
    time.sleep(0.8)
    assert not ranks.lost
    ranks.close()


def test_progress_is_not_the_same_as_life() -> None:
    ranks = Ranks(2)
    time.sleep(0.3)
    until(lambda: (ranks.watches[1].tick(), ranks.watches[0].still(1) < 0.2)[1])
    time.sleep(0.3)
    assert ranks.watches[0].still(1) > 0.2 and not ranks.lost
    ranks.close()


def test_a_store_that_is_gone_is_an_error() -> None:
    class Gone(HashStore):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            raise RuntimeError("broken pipe")

    lost: list[LostRank] = []
    watch = Watch(Gone(), 1, 2, on_lost=lost.append, interval=INTERVAL)
    watch.start()
    until(lambda: bool(lost))
    assert lost[0].speaks and "rank 0" in str(lost[0])


def test_verdict_is_said_by_the_lowest_that_is_left() -> None:
    store = HashStore()
    with pytest.raises(LostRank, match="nobody came") as caught:
        raise Watch(store, 2, 4).verdict({0, 1}, "nobody came")
    assert caught.value.speaks
    assert not Watch(store, 3, 4).verdict({0, 1}, "nobody came").speaks
