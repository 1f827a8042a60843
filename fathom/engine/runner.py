"""The only place where lists become tensors: work of the scheduler in, rows of hidden states out, drafts made.

`run` packs the tokens of all sequences side by side and gives back the hidden state of each. `remember` is called when
it is known which tokens stay: it fills the MTP layer's latents for them and keeps what later steps go on from. `draft`
runs the MTP module from the newest token on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.engine.paged import PagedModel, Segment, Step
from fathom.engine.request import SequenceState, State
from fathom.engine.scheduler import Work
from fathom.kernels.step import StepBatch

Span = tuple[SequenceState, int, int]  # slots begin .. end of a sequence
MANY = 32  # tokens whose hidden states may wait for MTP


@dataclass(frozen=True)
class Result:
    """Hidden states [T, D] of a step; those of work item i begin at begins[i]. experts [L, T, K] when recorded."""

    hidden: Tensor
    begins: list[int]
    experts: Tensor | None


class Runner:
    """One model, one page pool."""

    def __init__(self, paged: PagedModel) -> None:
        self.paged = paged
        self.device = paged.device

    def run(self, work: Sequence[Work], *, record: bool = False) -> Result:
        """All tokens of `work` through the model."""
        tokens: list[int] = []
        begins: list[int] = []
        spans: list[Span] = []
        for item in work:
            begins.append(len(tokens))
            new = item.tokens
            spans.append((item.sequence, item.start, item.start + len(new)))
            tokens += new
        experts: list[Tensor] | None = [] if record else None
        hidden = self.paged.hidden(self._ids(tokens), self._step(spans, first_key=0), experts)
        return Result(hidden, begins, torch.stack(experts) if experts else None)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] -> FP32 [R, V]."""
        return self.paged.logits(hidden)

    # ---- multi-token prediction ------------------------------------------------------------------------------------

    def remember(
        self, work: Sequence[Work], result: Result, computed: Sequence[int], drafting: Collection[SequenceState]
    ) -> None:
        """Work item i has `computed[i]` tokens for good: keep what MTP goes on from.

        MTP's latents are filled page by page: until a page is full, and may be shared, hidden states of single tokens
        wait in `pending`, for the next draft or the end of the page. Chunks of prompts are filled at once.
        """
        if self.paged.mtp_pool is None:
            return
        rows: list[Tensor] = []
        tokens: list[int] = []
        spans: list[Span] = []
        for item, begin, end in zip(work, result.begins, computed, strict=True):
            sequence, start = item.sequence, item.start
            if sequence.state is not State.RUNNING:
                continue
            own = result.hidden[begin : begin + end - start]  # of tokens start .. end - 1
            filled = max(sequence.mtp_filled, 1)
            pending = self._pending(sequence, filled, start, own)
            sequence.last_hidden = own[-1].clone() if end - start > MANY else own[-1]
            self._keep_page_ends(sequence, own, start, end)
            page_goes_on = end // self.paged.page_size == filled // self.paged.page_size
            if end - filled <= MANY and (sequence in drafting or page_goes_on):
                sequence.pending = pending
                continue
            sequence.mtp_filled, sequence.pending = max(sequence.mtp_filled, end), []
            if filled < end:
                rows += pending
                tokens += sequence.tokens[filled:end]
                spans.append((sequence, filled, end))
        if spans:
            self.paged.fill_mtp(torch.cat(rows), self._ids(tokens), self._step(spans, first_key=1))

    def _pending(self, sequence: SequenceState, filled: int, start: int, own: Tensor) -> list[Tensor]:
        """Hidden states, in pieces, for the slots from `filled` on; slot j wants that of token j - 1. `own` begins at
        `start`, and what waits already ends there."""
        if filled > start:
            return [own[filled - 1 - start : -1]]
        return [*sequence.pending, self._hidden_before(sequence, start)[None], *([own[:-1]] if len(own) > 1 else [])]

    def _hidden_before(self, sequence: SequenceState, start: int) -> Tensor:
        """The hidden state of token start - 1: from the last step, or kept with the page found in the cache."""
        if sequence.last_hidden is not None:
            return sequence.last_hidden
        assert self.paged.page_hidden is not None
        return self.paged.page_hidden[sequence.pages[start // self.paged.page_size - 1]]

    def _keep_page_ends(self, sequence: SequenceState, own: Tensor, start: int, end: int) -> None:
        assert self.paged.page_hidden is not None
        size = self.paged.page_size
        for page in range(start // size, end // size):
            self.paged.page_hidden[sequence.pages[page]] = own[(page + 1) * size - 1 - start]

    def draft(
        self, sequences: Sequence[SequenceState], hidden: Tensor | None = None, depth: int = 0
    ) -> tuple[Tensor, Tensor]:
        """One more draft for each: MTP's hidden states [S, D] and FP32 logits [S, V] of what follows the newest token
        (depth 0), or the draft number `depth`, from the hidden states of the draft before."""
        if depth:
            assert hidden is not None
            tokens = [s.drafts[depth - 1] for s in sequences]
            spans = [(s, len(s.tokens) - 1 + depth, len(s.tokens) + depth) for s in sequences]
            hidden = self.paged.draft_hidden(hidden, self._ids(tokens), self._step(spans, first_key=1))
            return hidden, self.paged.logits(hidden)
        rows: list[Tensor] = []
        tokens, spans, ends = [], [], []
        for sequence in sequences:
            assert sequence.last_hidden is not None
            rows += [*sequence.pending, sequence.last_hidden[None]]
            first, newest = max(sequence.mtp_filled, 1), len(sequence.tokens)
            tokens += sequence.tokens[first:newest]
            spans.append((sequence, first, newest))
            ends.append(len(tokens) - 1)
            sequence.pending, sequence.mtp_filled = [], newest
        hidden = self.paged.draft_hidden(torch.cat(rows), self._ids(tokens), self._step(spans, first_key=1))
        if len(ends) < len(tokens):
            hidden = hidden[ends]
        return hidden, self.paged.logits(hidden)

    # ---- tensors ---------------------------------------------------------------------------------------------------

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.int64, device=self.device)

    def _step(self, spans: Sequence[Span], *, first_key: int) -> Step:
        """Slots begin .. end of each sequence. MTP's position is one less than its slot (first_key 1)."""
        size = self.paged.page_size
        rows: list[int] = []
        places: list[int] = []
        slots: list[int] = []
        segments: list[Segment] = []
        longest = max(len(sequence.pages) for sequence, _, _ in spans)
        table = [sequence.pages + [0] * (longest - len(sequence.pages)) for sequence, _, _ in spans]
        for row, (sequence, begin, end) in enumerate(spans):
            segments.append(Segment(len(rows), len(rows) + end - begin, row, end))
            rows += [row] * (end - begin)
            places += range(begin, end)
            pages = sequence.pages
            slots += [pages[at // size] * size + at % size for at in range(begin, end)]
        cos, sin = self.paged.rope(torch.tensor([at - first_key for at in places], device=self.device))
        batch = StepBatch(
            rows=torch.tensor(rows, dtype=torch.int32, device=self.device),
            slots=torch.tensor(slots, dtype=torch.int64, device=self.device),
            last_key=torch.tensor([at + 1 for at in places], dtype=torch.int32, device=self.device),
            page_table=torch.tensor(table, dtype=torch.int32, device=self.device),
            cos=cos,
            sin=sin,
            first_key=first_key,
        )
        return Step(batch, segments)
