"""Who is still there: every rank says so twice a second in the shared store, and listens to the others.

A collective whose partner died or hangs says "connection closed" at best and nothing at all at worst; it never says
who. So each rank has a thread that writes one small note (a beat) and reads everybody else's:

    n      counts up: a rank whose n stands still is dead or frozen
    moved  counts the main thread's progress (chunks read, tokens made): a rank can be alive and get nowhere
    says   ""         all is well
           "alarm"    a collective failed here, so the fault lies with another rank
           "failed"   this rank fails by itself, `why` holds the reason
           "verdict"  this rank has found out who is `lost`, and leaves
           "bye"      this rank is done

Without an alarm a silence of 30 s is death; with one, 5 s are enough, and among the living those are to blame who did
not raise it too: they never came to the collective. All ranks then leave, the lowest that is left says why, once.

Nothing here touches tensors, so it works the same for gloo and NCCL. The store is a clone: the main thread may wait in
the original.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch._C._distributed_c10d import Store

INTERVAL, SILENCE, DOUBT, FAREWELL = 0.5, 30.0, 5.0, 8.0  # seconds


class LostRank(RuntimeError):
    """Another rank is missing, dead or stuck. `speaks`: whether this rank is the one to say so."""

    def __init__(self, message: str, speaks: bool) -> None:
        super().__init__(message)
        self.speaks = speaks


@dataclass(frozen=True)
class Beat:
    """One note of one rank."""

    n: int = 0
    moved: int = 0
    says: str = ""
    why: str = ""
    lost: tuple[int, ...] = ()
    who: str = ""


@dataclass
class Seen:
    """A rank as seen from here: its last beat, and when (by our clock) it last changed and last moved."""

    beat: Beat
    changed: float
    moved: float


def leave(error: LostRank) -> None:
    """End this process from the watching thread: the main thread may never come back from a collective."""
    sys.stdout.flush()
    if error.speaks:
        print(f"fathom: error: {error}", file=sys.stderr, flush=True)
    os._exit(1)


class Watch:
    """The beats of one rank. `start` it once all are expected; `close` it with the last word."""

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        hosts_store: bool = False,
        on_lost: Callable[[LostRank], None] = leave,
        interval: float = INTERVAL,
        silence: float = SILENCE,
        doubt: float = DOUBT,
    ) -> None:
        self.store, self.rank, self.size, self.hosts_store = store, rank, size, hosts_store
        self.on_lost, self.interval, self.silence, self.doubt = on_lost, interval, silence, doubt
        self.began = time.monotonic()
        self.seen: dict[int, Seen] = {}
        self._mine = Beat(who=f"process {os.getpid()} on {socket.gethostname()}")
        self._alarmed: float | None = None  # when the first alarm was raised, here or elsewhere
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    # ---- the main thread's side --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to beat."""
        self._say()
        self._thread.start()

    def tick(self) -> None:
        """The main thread got something done."""
        self._mine = replace(self._mine, moved=self._mine.moved + 1)

    def still(self, rank: int) -> float:
        """Seconds for which `rank` has made no progress; since the start if it was never heard."""
        seen = self.seen.get(rank)
        return time.monotonic() - (self.began if seen is None else seen.moved)

    def alarm(self, why: str) -> None:
        """A collective failed here. Waits until the thread knows whose fault it was; `on_lost` then ends all."""
        self._mine = replace(self._mine, says="alarm", why=why)
        self._thread.join(timeout=2 * (self.doubt + self.silence))

    def verdict(self, lost: set[int], message: str) -> LostRank:
        """Tell the others who is lost and why this rank leaves."""
        self._mine = replace(self._mine, says="verdict", why=message, lost=tuple(sorted(lost)))
        self._say()
        return LostRank(message, self.rank == min(set(range(self.size)) - lost, default=self.rank))

    def close(self, says: str = "bye", why: str = "") -> None:
        """The last word, unless a verdict was it already."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        if self._mine.says != "verdict":
            self._mine = replace(self._mine, says=says, why=why)
        self._say()
        self._see_off()

    def _see_off(self) -> None:
        """If the store ends with this process: stay until the others have had their last word, for a few seconds."""
        end = time.monotonic() + FAREWELL
        while self.hosts_store and time.monotonic() < end:
            self._listen()
            others = set(self.seen) - {self.rank, *self._mine.lost}
            if all(self.seen[r].beat.says in ("bye", "failed", "verdict") for r in others):
                return
            time.sleep(0.05)

    # ---- the thread's side -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self._say()
                self._listen()
            except RuntimeError:  # the store's process is gone, rank 0's or torchrun's own
                message = "rank 0, or torchrun on its host, is gone: the store it kept cannot be reached any more"
                self.on_lost(LostRank(message, self.rank == 1))
                return
            found = self._judge(time.monotonic())
            if found is not None and not self._stop.is_set():
                error = self.verdict(*found)
                self._see_off()
                self.on_lost(error)
                return

    def _say(self) -> None:
        with self._lock:
            self._mine = replace(self._mine, n=self._mine.n + 1)
            self.store.set(f"beat/{self.rank}", json.dumps(self._mine.__dict__))

    def _listen(self) -> None:
        ranks = [r for r in range(self.size) if r in self.seen or self.store.check([f"beat/{r}"])]
        now = time.monotonic()
        for rank, raw in zip(ranks, self.store.multi_get([f"beat/{r}" for r in ranks]), strict=True):
            beat = Beat(**json.loads(raw))
            before = self.seen.get(rank)
            if before is None:
                self.seen[rank] = Seen(beat, now, now)
                continue
            changed = now if beat.n != before.beat.n else before.changed
            moved = now if beat.moved != before.beat.moved else before.moved
            self.seen[rank] = Seen(beat, changed, moved)
            if beat.says == "alarm" and self._alarmed is None:
                self._alarmed = now

    def _judge(self, now: float) -> tuple[set[int], str] | None:
        """(ranks to blame, the sentence for the person), or None while there is nothing to say."""
        others = {rank: seen for rank, seen in self.seen.items() if rank != self.rank}
        for seen in others.values():
            if seen.beat.says == "verdict":
                return set(seen.beat.lost), seen.beat.why
        failed = {r: s for r, s in others.items() if s.beat.says == "failed" and now - s.changed > self.doubt}
        if failed:
            return set(failed), _sentence(failed, "failed: " + next(iter(failed.values())).beat.why)
        patience = self.silence if self._alarmed is None else self.doubt
        silent = {r: s for r, s in others.items() if s.beat.says in ("", "alarm") and now - s.changed > patience}
        if silent:
            return set(silent), _sentence(silent, f"died or froze (no sign of life for {patience:.0f} s)")
        if self._alarmed is None or now - self._alarmed <= self.doubt or self._mine.says != "alarm":
            return None  # a rank that did not raise the alarm may be the one to blame: it waits for the others' verdict
        raised = {r: s for r, s in self.seen.items() if s.beat.says == "alarm"}
        absent = {r: s for r, s in others.items() if r not in raised}
        reason = next(iter(raised.values())).beat.why
        if absent:
            return set(absent), _sentence(absent, f"did not take part in a step; the others gave up ({reason})")
        return set(), f"the ranks lost the connection between them ({reason}); check the network and start again"


def _sentence(ranks: dict[int, Seen], what: str) -> str:
    return ", ".join(f"rank {rank} ({seen.beat.who})" for rank, seen in sorted(ranks.items())) + f" {what}"
