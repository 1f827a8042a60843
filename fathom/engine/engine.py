"""The engine: requests in, deltas out, one step at a time.

    schedule   which tokens of which sequences run            scheduler.py, cache.py (no tensors)
    run        all of them through the model                  runner.py, paged.py
    choose     the next token of each, drafts verified        choose.py, speculative.py, sampling.py
    keep       latents that stay, drafts for the next step    runner.py
    emit       text, ends, logprobs                           answer.py

It has no thread and no clock of its own: LLM drives it in place, service.py in a thread. Greedy answers equal those of
naive.py token for token, whatever runs beside them and whether drafts are made or not, but where two tokens are as
likely to the last bits: how a prompt is cut into chunks, and so the order of sums, depends on what runs beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from torch import Tensor

from fathom.engine.answer import Answer
from fathom.engine.cache import PagePool
from fathom.engine.choose import best_tokens, choose, draw_draft
from fathom.engine.grammar import GrammarCompiler
from fathom.engine.naive import check_prompt
from fathom.engine.outputs import Delta, Metrics, Stopwatch
from fathom.engine.paged import PagedModel
from fathom.engine.params import SamplingParams
from fathom.engine.request import Request, SequenceState, State
from fathom.engine.runner import Result, Runner
from fathom.engine.sampling import TokenLogprob, derive_seed, make_generator, token_logprob
from fathom.engine.scheduler import Scheduler, Work
from fathom.engine.speculative import MIN_ACCEPTANCE, MIN_DRAFTS, Pace
from fathom.runtime import UserError
from fathom.text.chat_tokens import END_THINK
from fathom.text.tokenizer import Tokenizer

LOGPROB_ROWS = 64  # prompt rows that meet the head at once


@dataclass(frozen=True)
class EngineStats:
    """Now: running, waiting, pages in use. Since the start: the totals."""

    running: int
    waiting: int
    cache_tokens: int
    cache_tokens_used: int
    prompt_tokens: int
    generated_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    drafted: int
    accepted: int
    speculation: str


@dataclass
class Group:
    """The sequences of one request."""

    request: Request
    watch: Stopwatch
    sequences: list[SequenceState]
    answers: list[Answer]
    open: int
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])


class Engine:
    """`depth`: drafts per step, 0 for none; `always`: also where it was measured not to pay."""

    def __init__(
        self,
        paged: PagedModel,
        tokenizer: Tokenizer,
        *,
        eos_ids: Collection[int],
        max_model_len: int,
        max_running: int = 64,
        step_tokens: int = 512,
        depth: int = 0,
        always: bool = False,
    ) -> None:
        assert depth == 0 or paged.mtp_pool is not None
        self.runner, self.tokenizer = Runner(paged), tokenizer
        self.vocab_size = paged.config.vocab_size
        self.eos_ids = frozenset(eos_ids)
        self.pool = PagePool(paged.pages, paged.page_size)
        self.cache_tokens = paged.pages * paged.page_size
        self.max_model_len = min(max_model_len, self.cache_tokens)
        self.scheduler = Scheduler(self.pool, max_running=max_running, step_tokens=step_tokens)
        self.depth, self.always, self.pace = depth, always, Pace()
        self._pays = True
        self.lost: list[str] = []
        self._touched: set[str] = set()  # requests of the step that is being made
        self.failed: dict[str, UserError] = {}  # requests that the last step could not go on with
        self._groups: dict[str, Group] = {}
        self._arrivals = 0
        self._compiler: GrammarCompiler | None = None
        self._prompt_tokens = self._generated = self._drafted = self._accepted = 0

    # ---- requests --------------------------------------------------------------------------------------------------

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """A UserError if the prompt cannot be answered."""
        check_prompt(prompt, self.max_model_len, self.vocab_size)
        for name, tokens in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            outside = [t for t in tokens if t >= self.vocab_size]
            if outside:
                raise UserError(f"{name} has the token id {outside[0]}; the vocabulary ends at {self.vocab_size - 1}")

    def add(self, request: Request) -> None:
        """Queue a request; a UserError if it cannot be answered or its grammar does not compile."""
        params = request.params
        self.check(request.prompt, params)
        if request.id in self._groups:
            raise UserError(f"request id {request.id!r} is in use; give each request its own")
        seed = params.seed if params.seed is not None else request.seed
        room = min(params.max_tokens or self.max_model_len, self.max_model_len - len(request.prompt))
        self._arrivals += 1
        sequences: list[SequenceState] = []
        for index in range(params.n):
            sequence = SequenceState(
                request, index, self._arrivals, list(request.prompt), room, make_generator(seed, index),
                seed=derive_seed(seed, index, 1), leader=sequences[0] if sequences else None,
            )  # fmt: skip
            if params.grammar is not None:
                after = END_THINK if request.thinking_open else None
                sequence.matcher = self.compiler.matcher(params.grammar, after=after)
            sequences.append(sequence)
        answers = [Answer(self.tokenizer, params, self.eos_ids, room) for _ in sequences]
        watch = Stopwatch(perf_counter(), len(request.prompt))
        self._groups[request.id] = Group(request, watch, sequences, answers, len(sequences))
        self._prompt_tokens += len(request.prompt)
        for sequence in sequences:
            self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Drop a request, wherever it is; one that is unknown or has ended is no error."""
        group = self._groups.pop(request_id, None)
        for sequence in group.sequences if group else []:
            if sequence.state is not State.FINISHED:
                self.scheduler.finish(sequence)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len({s.request.id for s in self.scheduler.waiting})

    @property
    def compiler(self) -> GrammarCompiler:
        """Made when the first grammar comes: reading a large vocabulary takes a moment."""
        if self._compiler is None:
            self._compiler = GrammarCompiler(self.tokenizer, self.vocab_size, self.eos_ids)
        return self._compiler

    def stats(self) -> EngineStats:
        """See EngineStats."""
        if not self.depth:
            speculation = "off"
        else:
            speculation = f"always, {self.depth} drafts a step" if self.always else self.pace.state()
        return EngineStats(
            len(self.scheduler.running), self.waiting, self.cache_tokens, self.pool.held * self.pool.page_size,
            self._prompt_tokens, self._generated, self.scheduler.prefix_hits, self.scheduler.preemptions,
            self._drafted, self._accepted, speculation,
        )  # fmt: skip

    # ---- one step --------------------------------------------------------------------------------------------------

    def step(self) -> list[tuple[str, Delta]]:
        """Run one step; (request id, delta) for every new token. A request that cannot go on is dropped and stands in
        `failed`; on any other error all running requests, and those that ended in this step, are dropped and stand in
        `lost`: what the step had made for them is lost too."""
        try:
            return self._step()
        except BaseException:
            self.lost = sorted({s.request.id for s in self.scheduler.running} | self._touched)
            for request_id in self.lost:
                self.abort(request_id)
            raise

    def _step(self) -> list[tuple[str, Delta]]:
        begun = perf_counter()
        self.failed, self._touched = {}, set()
        work = self.scheduler.schedule()
        self._touched = {item.sequence.request.id for item in work}
        if not work:
            return []
        for item in work:
            self._groups[item.sequence.request.id].watch.step(begun)
        result = self.runner.run(work, record=any(item.sequence.request.params.inside for item in work))
        self._score_prompts(work, result)
        deltas, accepted = self._choose(work, result)
        computed = [item.start + item.count + kept for item, kept in zip(work, accepted, strict=True)]
        drafting = self._drafting(work, computed)
        self.runner.remember(work, result, computed, drafting)
        self._keep(work, computed)
        for request_id in self.failed:
            self.abort(request_id)
        self._draft(drafting)
        if all(item.count == 1 for item in work):  # a step without prefill
            self.pace.add(len(work), any(item.drafts for item in work), perf_counter() - begun, len(deltas))
        return deltas

    def _choose(self, work: Sequence[Work], result: Result) -> tuple[list[tuple[str, Delta]], list[int]]:
        """The next tokens of every sequence that is due, and how many drafts of each work item stay."""
        due = [(i, begin + item.count - 1) for i, (item, begin) in enumerate(zip(work, result.begins, strict=True))
               if item.samples]  # fmt: skip
        deltas: list[tuple[str, Delta]] = []
        accepted = [0] * len(work)
        if not due:
            return deltas, accepted
        index = [row + k for i, row in due for k in range(1 + len(work[i].drafts))]
        hidden = result.hidden if len(index) == len(result.hidden) else result.hidden[index]
        logits = self.runner.logits(hidden).cpu()
        best = best_tokens(logits)
        at = 0
        for i, row in due:
            rows = 1 + len(work[i].drafts)
            experts = result.experts[:, row : row + rows] if result.experts is not None else None
            request_id = work[i].sequence.request.id
            try:
                new = self._extend(work[i].sequence, logits[at : at + rows], best[at : at + rows], experts)
            except UserError as error:  # a grammar that ran into its limits: this request ends, the others go on
                self.failed[request_id] = error
                new = []
            deltas += [(request_id, delta) for delta in new]
            accepted[i] = sum(delta.drafted for delta in new)
            at += rows
        return deltas, accepted

    def _extend(
        self, sequence: SequenceState, logits: Tensor, best: Sequence[int], experts: Tensor | None
    ) -> list[Delta]:
        """Take tokens from the rows of one sequence until one is not its draft, or the answer ends."""
        group = self._groups[sequence.request.id]
        params, answer = sequence.request.params, group.answers[sequence.index]
        deltas: list[Delta] = []
        sequence.drafted += len(sequence.drafts)
        self._drafted += len(sequence.drafts)
        for k in range(len(best)):
            token, drafted = choose(logits[k:], sequence, best[k:])
            logprob = token_logprob(logits[k], token, params.logprobs)
            sequence.tokens.append(token)
            if sequence.matcher is not None:
                sequence.matcher.advance(token)
            text = answer.push(token, complete=sequence.matcher is not None and sequence.matcher.finished)
            sequence.accepted += drafted
            self._accepted += drafted
            group.watch.token(perf_counter(), sequence.index)
            chosen = None if experts is None or not params.inside else tuple(map(tuple, experts[:, k].tolist()))
            group.open -= answer.finish is not None
            metrics = None if group.open else self._metrics(group)
            delta = Delta(
                sequence.index, text, token, logprob, answer.finish, metrics, drafted, chosen, answer.stop_string
            )
            if group.watch.tokens == 1 and params.prompt_logprobs is not None:
                delta = replace(delta, prompt_logprobs=group.prompt_logprobs)
            deltas.append(delta)
            if not drafted or answer.finish is not None:
                break
            del sequence.drafts[0]
            del sequence.draft_probs[:1]
        sequence.drafts, sequence.draft_probs = [], []
        self._generated += len(deltas)
        if not self.always and sequence.drafted >= MIN_DRAFTS:
            sequence.speculate = sequence.accepted >= MIN_ACCEPTANCE * sequence.drafted
        return deltas

    def _keep(self, work: Sequence[Work], computed: Sequence[int]) -> None:
        """Latents that stay are sealed into pages; what has ended gives its pages back."""
        for item, end in zip(work, computed, strict=True):
            sequence = item.sequence
            if sequence.state is State.RUNNING:  # else preempted for another one's draft a moment ago
                self.scheduler.advance(sequence, end)
            group = self._groups[sequence.request.id]
            if group.answers[sequence.index].finish is not None:
                self.scheduler.finish(sequence)
        for request_id in {item.sequence.request.id for item in work}:
            if not self._groups[request_id].open:
                del self._groups[request_id]

    def _drafting(self, work: Sequence[Work], computed: Sequence[int]) -> list[SequenceState]:
        """The sequences for which to guess what follows their newest token; they have pages for it."""
        if not self.depth:
            return []
        decoding = [
            item.sequence
            for item, end in zip(work, computed, strict=True)
            if len(item.sequence.tokens) == end + 1 > item.sequence.prompt_length
            and self._groups[item.sequence.request.id].answers[item.sequence.index].finish is None
            and item.sequence.request.id not in self.failed
        ]
        if not decoding:
            return []
        self._pays = self.always or self.pace.wants_drafts(len(decoding))
        due = [s for s in decoding if self._drafts_for(s)]
        due = [s for s in due if self.scheduler.reserve(s, len(s.tokens) + self._drafts_for(s) - 1, must=s.must_draft)]
        return [s for s in due if s.state is State.RUNNING]  # reserving may have preempted one

    def _draft(self, due: list[SequenceState]) -> None:
        """Guess what follows the newest token of each."""
        hidden: Tensor | None = None
        for depth in range(self.depth):
            if not due:
                return
            hidden, logits = self.runner.draft(due, hidden, depth)
            best = best_tokens(logits)
            stay: list[int] = []
            for row, sequence in enumerate(due):
                point = derive_seed(sequence.seed, len(sequence.tokens), depth) / 2**63
                try:
                    token, probs = draw_draft(logits[row].cpu(), sequence, best[row], point)
                except UserError:  # a grammar that ran into its limits: `_choose` will meet it too, and end the request
                    continue
                sequence.drafts.append(token)
                sequence.draft_probs += [probs] if probs is not None else []
                if depth + 1 < self._drafts_for(sequence):
                    stay.append(row)
            if len(stay) < len(due):
                due, hidden = [due[row] for row in stay], hidden[stay]

    def _drafts_for(self, sequence: SequenceState) -> int:
        """How many drafts a sequence gets now. The answer's last token needs none."""
        if not sequence.speculate or not (self._pays or sequence.must_draft):
            return 0
        return min(self.depth, sequence.room - (len(sequence.tokens) - sequence.prompt_length) - 1)

    # ---- statistics ------------------------------------------------------------------------------------------------

    def _metrics(self, group: Group) -> Metrics:
        drafted, accepted = sum(s.drafted for s in group.sequences), sum(s.accepted for s in group.sequences)
        return group.watch.metrics(cached=group.sequences[0].cached, drafted=drafted, accepted=accepted)

    def _score_prompts(self, work: Sequence[Work], result: Result) -> None:
        """Log-probabilities of prompt tokens, for requests that ask for them."""
        for item, begin in zip(work, result.begins, strict=True):
            sequence, wanted = item.sequence, item.sequence.request.params.prompt_logprobs
            if wanted is None or sequence.index:
                continue
            scored = self._groups[sequence.request.id].prompt_logprobs
            prompt = sequence.request.prompt
            known = len(scored) - 1  # logits of this many tokens have been read; a preempted prompt starts over
            for at in range(max(item.start, known), min(item.start + item.count, len(prompt) - 1), LOGPROB_ROWS):
                end = min(at + LOGPROB_ROWS, item.start + item.count, len(prompt) - 1)
                rows = self.runner.logits(result.hidden[begin + at - item.start : begin + end - item.start]).cpu()
                scored += [token_logprob(row, prompt[at + k + 1], wanted) for k, row in enumerate(rows)]
