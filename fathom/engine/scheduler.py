"""Continuous batching: which tokens of which sequences run in the next step. No tensors here.

A step mixes decoding and prefill:

  1. every running sequence whose prompt is done gets its newest token, and its drafts to verify
  2. what is left of `step_tokens` goes to prompts, in chunks: the oldest unfinished prompt gets at least half, so that
     short newcomers cannot starve a long prompt; the others follow in order
  3. waiting sequences are admitted in order of (priority, arrival) while `max_running` and the pages allow

When pages run out, the last running sequence in that order gives all of its pages back and waits; its tokens are
computed again later (preemption by recompute), mostly from cached pages. Drafts are dropped before anybody is
preempted, except where a seed has to give the same text whatever else runs.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from fathom.engine.cache import ROOT, PagePool
from fathom.engine.request import SequenceState, State


@dataclass(frozen=True)
class Work:
    """Tokens of one sequence to run: `count` of its own from `computed` on, then its drafts."""

    sequence: SequenceState
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        return self.sequence.computed

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.start + self.count], *self.drafts]

    @property
    def samples(self) -> bool:
        """Whether the next token can be chosen after this step."""
        return self.start + self.count == len(self.sequence.tokens)


class Scheduler:
    """`pool` is owned by the scheduler: nobody else takes or gives back pages."""

    def __init__(self, pool: PagePool, *, max_running: int, step_tokens: int) -> None:
        assert max_running >= 1 and step_tokens >= 1
        self.pool, self.max_running, self.step_tokens = pool, max_running, step_tokens
        self.waiting: list[SequenceState] = []  # sorted by order
        self.running: list[SequenceState] = []  # sorted by order
        self.preemptions = 0
        self.prefix_hits = 0

    def add(self, sequence: SequenceState) -> None:
        """A new sequence waits for its turn."""
        insort(self.waiting, sequence, key=lambda s: s.order)

    def finish(self, sequence: SequenceState) -> None:
        """A sequence ended or was aborted, wherever it is: its pages are given back."""
        if sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self._release(sequence)
        sequence.state = State.FINISHED

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    # ---- one step --------------------------------------------------------------------------------------------------

    def schedule(self) -> list[Work]:
        """The work of the next step; every sequence in it has pages for all of its tokens."""
        preemptions = self.preemptions
        work: list[Work | None] = [self._decode(s) for s in list(self.running) if not s.in_prefill]
        decoding = sum(1 + len(item.drafts) for item in work if item is not None)
        budget = max(self.step_tokens - decoding, self.step_tokens // 4, 1)
        prompts = [s for s in self.running if s.in_prefill]
        for place, sequence in enumerate(prompts):
            others = len(prompts) > 1 or bool(self.waiting)
            share = budget - budget // 2 if place == 0 and others else budget
            work.append(item := self._prefill(sequence, share))
            budget -= item.count if item is not None else 0
        # who was preempted after its work was listed is out of this step, and may not come back within it
        ready = [item for item in work if item is not None and item.sequence.state is State.RUNNING]
        if self.preemptions == preemptions:
            while budget > 0 and len(self.running) < self.max_running and (item := self._admit(budget)) is not None:
                ready.append(item)
                budget -= item.count
        return ready

    def _decode(self, sequence: SequenceState) -> Work | None:
        if sequence.state is not State.RUNNING:  # preempted for an earlier one a moment ago
            return None
        total = len(sequence.tokens)
        if not self._grow(sequence, total + len(sequence.drafts), preempt=sequence.must_draft):
            if sequence.state is not State.RUNNING:
                return None
            sequence.drafts, sequence.draft_probs = [], []
            if not self._grow(sequence, total, preempt=True):
                return None
        return Work(sequence, total - sequence.computed, tuple(sequence.drafts))

    def _prefill(self, sequence: SequenceState, budget: int) -> Work | None:
        if budget <= 0 or sequence.state is not State.RUNNING:
            return None
        count = min(sequence.prefill_end - sequence.computed, budget)
        if not self._grow(sequence, sequence.computed + count, preempt=True):
            return None
        return Work(sequence, count)

    def _admit(self, budget: int) -> Work | None:
        """The first waiting sequence that may start, if it fits without preempting anybody."""
        sequence = next((s for s in self.waiting if not s.waits_for_leader), None)
        if sequence is None:
            return None
        wants_all = sequence.request.params.prompt_logprobs is not None
        reusable = 0 if wants_all else sequence.prefill_end - 1  # one token at least is computed, for its logits
        pages, keys = self.pool.match(sequence.tokens, reusable)
        hit = len(pages) * self.pool.page_size
        count = min(sequence.prefill_end - hit, budget)
        more = self.pool.take(self.pool.pages_for(hit + count) - len(pages))
        if more is None:
            self.pool.release(pages)
            return None
        self.waiting.remove(sequence)
        sequence.state = State.RUNNING
        sequence.pages, sequence.keys = pages + more, keys
        sequence.computed = sequence.mtp_filled = hit
        if not sequence.preemptions:
            sequence.cached = min(hit, sequence.prompt_length)
            self.prefix_hits += sequence.cached
        insort(self.running, sequence, key=lambda s: s.order)
        return Work(sequence, count)

    # ---- pages -----------------------------------------------------------------------------------------------------

    def reserve(self, sequence: SequenceState, tokens: int, *, must: bool) -> bool:
        """Pages for the slots that drafting writes; `must`: at the expense of later sequences. False: no draft."""
        return sequence.state is State.RUNNING and self._grow(sequence, tokens, preempt=must)

    def _grow(self, sequence: SequenceState, tokens: int, *, preempt: bool) -> bool:
        """Pages for `tokens` tokens; with `preempt`, at the expense of sequences that come later, itself included."""
        missing = self.pool.pages_for(tokens) - len(sequence.pages)
        if missing <= 0:
            return True
        while (pages := self.pool.take(missing)) is None:
            if not preempt:
                return False
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages += pages
        return True

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.state = State.WAITING
        sequence.preemptions += 1
        self.preemptions += 1
        self.add(sequence)

    def _release(self, sequence: SequenceState) -> None:
        self.pool.release(sequence.pages)
        sequence.pages, sequence.keys = [], []
        sequence.computed = sequence.mtp_filled = 0
        sequence.drafts, sequence.draft_probs = [], []
        sequence.last_hidden, sequence.pending = None, []

    def advance(self, sequence: SequenceState, computed: int) -> None:
        """The first `computed` tokens now have their latents: seal the pages that became full."""
        sequence.computed = computed
        size = self.pool.page_size
        while (len(sequence.keys) + 1) * size <= computed:
            at = len(sequence.keys)
            parent = sequence.keys[-1] if sequence.keys else ROOT
            tokens = sequence.tokens[at * size : (at + 1) * size]
            sequence.keys.append(self.pool.seal(sequence.pages[at], parent, tokens))
