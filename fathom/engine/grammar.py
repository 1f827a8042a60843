r"""Constrained output: at every step, which tokens keep the answer inside a grammar.

    compiler = GrammarCompiler(tokenizer, vocab_size, eos_ids)           # one per model
    matcher = compiler.matcher(Grammar("json_schema", schema_text))      # one per sample; UserError: does not compile
    logits[~matcher.mask()] = -inf ; matcher.advance(token) ; ...        # until matcher.finished or an end token

The library `llguidance` walks the whole vocabulary through a lexer and an Earley parser, about 0.02-0.2 ms a step for
129,280 tokens once its lexer is warm. Copies of one compiled grammar share that lexer, so compiled grammars are kept.

What a grammar means here
    end        EOS is in the mask exactly when the text so far is complete, whatever the grammar says of EOS; every
               EOS id counts. The library is never shown one: a rollback over the end is then only bookkeeping.
    rows       ids without a token (a model's padding rows) are never allowed, nor are control tokens inside text.
    `after`    nothing is constrained until the generated text holds this string ("</think>"), as one control token or
               spelled by several; the next token is the first that counts.
    JSON       at most one white space per place: up to two spaces, or a newline and up to 32 spaces. Compact, spaced
               and indented JSON all fit, and a small model cannot write blanks for ever. None before or after.
    schemas    properties come in the schema's order, multiples of a decimal with all of its decimals (0.50). Keys
               that only `additionalProperties` or `patternProperties` allow may repeat (readers keep the last).
               `format` is enforced. What cannot be enforced (`not`, `if`, `uniqueItems`, `contains`, overlapping
               `oneOf`, remote references, ...) is an error, never ignored.
    regex      Rust's syntax, without look-around and back-references; the whole answer must match.
    Lark       llguidance's dialect: <control_token>, %json {...}, lazy rules. A rule's `temperature` has no effect.

Limits: texts have a size and `multipleOf` a largest value (grammar_source.py), the library's lexer and parser have
budgets (`_LIMITS`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from functools import cached_property

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray
from torch import Tensor

from fathom.engine.grammar_source import Grammar as Grammar
from fathom.engine.grammar_source import library_text, reason_of, refused
from fathom.runtime import UserError
from fathom.text.tokenizer import Tokenizer

MAX_COMPILED = 32
"""Compiled grammars kept; the least recently used one goes first."""
_LIMITS = LLParserLimits(
    initial_lexer_fuel=400_000,  # the regular expressions of the whole grammar
    step_lexer_fuel=200_000,  # of one mask: about 14 ms
    step_max_items=50_000,  # Earley items of one mask: about 3 ms
    max_lexer_states=50_000,  # kept for all requests with this grammar: 1-2 kB each
    max_grammar_size=200_000,
    verbose_errors=False,  # the long ones print the schema
)


class GrammarCompiler:
    """Compiles grammars for one tokenizer. `vocab_size`: rows of the model, at least those of the tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Collection[int]) -> None:
        if not eos_ids:
            raise UserError("this model has no end token, so a constrained answer could not end; give it an EOS id")
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.eos_ids = tuple(sorted(set(eos_ids)))
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.RLock()

    def matcher(self, grammar: Grammar, *, after: str | None = None) -> Matcher:
        """A fresh matcher; UserError (one line) for a grammar that does not compile or that no text can satisfy."""
        with self._lock:  # callers are a server's threads and the engine's
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
            else:
                self._compiled[grammar] = self._compile(grammar)
                if len(self._compiled) > MAX_COMPILED:
                    self._compiled.popitem(last=False)
            core = self._compiled[grammar].deep_copy()
        return Matcher(self, grammar, core, after)

    def forget(self, grammar: Grammar) -> None:
        """Drop a compiled grammar whose shared lexer has used up its budget."""
        with self._lock:
            self._compiled.pop(grammar, None)

    @cached_property
    def library_tokenizer(self) -> LLTokenizer:
        """Built at first use: about a second for a vocabulary of V3's size."""
        try:
            spec = self.tokenizer.to_json()
            eos = [i for i in self.eos_ids if i < self.tokenizer.vocab_size]
            return LLTokenizer(spec, n_vocab=self.tokenizer.vocab_size, eos_token=eos or None)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"this tokenizer cannot be used for constrained output ({reason_of(str(error))}); "
                "it must be a byte-level or byte-fallback tokenizer"
            ) from None

    def _compile(self, grammar: Grammar) -> LLMatcher:
        try:
            core = LLMatcher(self.library_tokenizer, library_text(grammar), log_level=0, limits=_LIMITS)
        except UserError:
            raise
        except ValueError as error:  # a str that UTF-8 cannot write, a schema that is no JSON for the library
            raise refused(grammar, str(error)) from None
        if core.is_error():
            raise refused(grammar, core.get_error())
        if not Matcher(self, grammar, core.deep_copy(), None).can_go_on():
            raise refused(grammar, "no text can satisfy it")
        return core


class Matcher:
    """Where one answer is in its grammar. Not for several threads at once."""

    def __init__(self, compiler: GrammarCompiler, grammar: Grammar, core: LLMatcher, after: str | None) -> None:
        self._compiler, self._grammar, self._core = compiler, grammar, core
        self._eos = compiler.eos_ids
        self._after = (after or "").encode()
        # The tokens advanced so far, in their three phases: before the start (for each the end of the text that may
        # become `after`), inside the grammar, and end tokens.
        self._tails: list[bytes] = []
        self._started = not self._after
        self._taken = 0
        self._ends = 0
        self._mask: Tensor | None = None  # of the current state

    @property
    def finished(self) -> bool:
        """Nothing but EOS can follow."""
        if not self._started or not self._may_end():
            return False
        return self._core.is_stopped() or int(self._current_mask().numpy().sum()) == len(self._eos)

    def mask(self) -> Tensor | None:
        """Bool [V], True where allowed, None while everything is. Do not write into it: it is kept for this state."""
        return self._current_mask() if self._started else None

    def allows(self, token: int) -> bool:
        """Whether `token` may come next; cheaper than a mask."""
        if not self._started:
            return True
        if token in self._eos:
            return self._may_end()
        if self._ends or not 0 <= token < self._compiler.tokenizer.vocab_size:
            return False
        return self._core.validate_tokens([token]) == 1

    def advance(self, token: int) -> None:
        """Take `token`, which must be allowed (ValueError). UserError: the grammar needs more than the limits."""
        if not self._started:
            self._watch(token)
        elif token in self._eos:
            if not self._may_end():
                raise ValueError(f"token {token} ends the text, but the {self._grammar.name} is not complete")
            self._ends += 1
        else:
            known = 0 <= token < self._compiler.tokenizer.vocab_size
            if self._ends or not known or self._core.try_consume_tokens([token]) != 1:
                self._check()
                raise ValueError(f"token {token} is not allowed by the {self._grammar.name}")
            self._taken += 1
        self._mask = None

    def rollback(self, n: int) -> None:
        """Forget the last `n` tokens advanced; all is then as it was before them."""
        if not 0 <= n <= len(self._tails) + self._taken + self._ends:
            raise ValueError(f"cannot roll back {n} tokens; fewer were advanced")
        ends = min(n, self._ends)
        taken = min(n - ends, self._taken)
        waited = n - ends - taken
        self._ends -= ends
        if taken:
            self._core.rollback(taken)
            self._check()
            self._taken -= taken
        if waited:
            del self._tails[len(self._tails) - waited :]
            self._started = False
        self._mask = None

    def can_go_on(self) -> bool:
        """Whether any token, EOS included, can follow; a grammar without any finite text may find that out late."""
        return bool(self._allowed().any())

    def _watch(self, token: int) -> None:
        """Before the start: look for `after` in the bytes written so far. Only an end that could still grow is kept."""
        library = self._compiler.library_tokenizer
        known = 0 <= token < self._compiler.tokenizer.vocab_size
        seen = (self._tails[-1] if self._tails else b"") + (library.decode_bytes([token]) if known else b"")
        self._started = self._after in seen
        longest = min(len(seen), len(self._after) - 1)
        keep = next((k for k in range(longest, 0, -1) if self._after.startswith(seen[-k:])), 0)
        self._tails.append(seen[-keep:] if keep else b"")

    def _may_end(self) -> bool:
        return self._ends > 0 or self._core.is_accepting()

    def _current_mask(self) -> Tensor:
        if self._mask is None:
            allowed = self._allowed()
            if not allowed.any():
                raise UserError(
                    f"after {self._taken} tokens no token of this model fits the {self._grammar.name}; loosen it"
                )
            self._mask = torch.from_numpy(allowed)
        return self._mask

    def _allowed(self) -> NDArray[np.bool_]:
        """Bool [V]. In NumPy: for so little work torch would wake its threads."""
        allowed = np.zeros(self._compiler.vocab_size, dtype=np.bool_)
        if not self._ends and not self._core.is_stopped():
            bits = np.frombuffer(self._core.compute_bitmask(), dtype=np.uint8)
            self._check()
            rows = self._compiler.tokenizer.vocab_size
            allowed[:rows] = np.unpackbits(bits, count=rows, bitorder="little")
        allowed[list(self._eos)] = self._may_end()
        return allowed

    def _check(self) -> None:
        """UserError when a budget has run out; the matcher stays so. (A dead end is no error here: nothing fits.)"""
        if self._core.is_error() and not self._core.get_error().startswith("NoExtension"):
            self._compiler.forget(self._grammar)
            raise UserError(
                f"after {self._taken} tokens the {self._grammar.name} needs more work than the limits allow "
                f"({reason_of(self._core.get_error())}); use a simpler one"
            )
