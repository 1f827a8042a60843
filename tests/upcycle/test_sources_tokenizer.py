"""Tokenizers rebuilt from a GGUF file's lists give the ids of the tokenizer they came from, or of the definition."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from llama_files import byte_bpe, gguf_entries, tiny
from tokenizers import Tokenizer

from fathom.runtime import UserError
from fathom.upcycle.gguf_tokenizer import tokenizer_files
from fathom.upcycle.source import LlamaConfig

CONFIG = LlamaConfig(
    "llama", 400, 64, 96, 2, 4, 2, 16, 1e4, 1e-5, 128, True, qkv_bias=False, bos_token_id=1, eos_token_id=(2,),
    pad_token_id=None,
)  # fmt: skip
ENTRIES = gguf_entries("llama", tiny().config)


def rebuilt(entries: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_files(Path("m.gguf"), entries, CONFIG)["tokenizer.json"])


def texts(pool: str, count: int = 200) -> list[str]:
    """Random strings with many spaces and repetitions."""
    chosen = random.Random(4)
    return ["".join(chosen.choice(pool) for _ in range(chosen.randint(1, 40))) for _ in range(count)]


def test_byte_level_ids_are_those_of_the_tokenizer_it_came_from() -> None:
    ours, theirs = rebuilt(ENTRIES), byte_bpe()
    for text in [*texts("the quick fox 0123 \n\t.'sé日🎉"), "<|im_start|>user\nhi<|im_end|>", "don't  stop   "]:
        ids = theirs.encode(text).ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == text


# Cut as llama.cpp cuts; all ids of 260 texts were compared with its tokenizer when these rules were written.
SENTENCE = "I'VE won't  pay $12345.67 (½)\n\n x"
CUTS = {
    "gpt-2": "I|'|VE| won|'t| | pay| $|12345|.|67| (|½|)|\n\n| x",
    "smollm": "I|'|VE| won|'t| | pay| $|1|2|3|4|5|.|6|7| (|½|)|\n\n| x",
    "llama-bpe": "I|'VE| won|'t| | pay| $|123|45|.|67| (|½|)\n\n| x",
    "qwen2": "I|'VE| won|'t| | pay| $|1|2|3|4|5|.|6|7| (|½|)\n\n| x",
    "default": "I|'|VE| won|'|t| | pay| |$|123|45|.|67| |(|½|)|\n\n| x",
}


@pytest.mark.parametrize("name", CUTS)
def test_cuts(name: str) -> None:
    pieces = rebuilt(ENTRIES | {"tokenizer.ggml.pre": name}).pre_tokenizer.pre_tokenize_str(SENTENCE)
    assert "|".join(SENTENCE[start:stop] for _, (start, stop) in pieces) == CUTS[name]


def test_words_that_are_tokens_stay_whole_in_llama_3_only() -> None:
    tokens = [*ENTRIES["tokenizer.ggml.tokens"], "zzzqj"]
    entries = ENTRIES | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens)}
    for name, whole in (("llama-bpe", True), ("qwen2", False)):
        assert (rebuilt(entries | {"tokenizer.ggml.pre": name}).encode("zzzqj").ids == [len(tokens) - 1]) == whole


def test_token_types() -> None:
    """User-defined tokens are found in text but are not special; unused rows have no token."""
    tokens = [*ENTRIES["tokenizer.ggml.tokens"], "<tool>", "[PAD1]", "[PAD2]"]
    types = [*ENTRIES["tokenizer.ggml.token_type"], 4, 5, 5]
    tokenizer = rebuilt(ENTRIES | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})
    tool = len(tokens) - 3
    assert tool in tokenizer.encode("x<tool>y").ids
    assert tokenizer.decode([tool, 1]) == "<tool>"
    assert tokenizer.id_to_token(tool + 1) is None and tokenizer.token_to_id("[PAD1]") is None


@pytest.mark.parametrize(
    ("entries", "adds"),
    [({}, False), ({"tokenizer.ggml.pre": "llama3"}, True), ({"tokenizer.ggml.add_bos_token": True}, True)],
)
def test_bos_before_plain_text(entries: dict[str, Any], adds: bool) -> None:
    files = tokenizer_files(Path("m.gguf"), ENTRIES | entries, CONFIG)
    assert files["tokenizer_config.json"]["add_bos_token"] is adds


def test_several_ends_of_an_answer() -> None:
    files = tokenizer_files(Path("m.gguf"), ENTRIES, replace(CONFIG, eos_token_id=(2, 0)))
    assert files["generation_config.json"] == {"bos_token_id": 1, "eos_token_id": [2, 0]}
    assert files["tokenizer_config.json"]["eos_token"] == "<|im_end|>"


# ---- SentencePiece


def pieces() -> dict[str, Any]:
    """A random vocabulary that overlaps itself much, runs of spaces with one score, and all bytes."""
    chosen = random.Random(8)
    words = {"".join(chosen.choice("ab▁c") for _ in range(chosen.randint(2, 6))) for _ in range(120)}
    words = {w for w in words if set(w) != {"▁"}}
    runs = ["▁" * n for n in (2, 3, 4, 5, 6, 8)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *sorted(words), *runs, *"abc▁"]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))] + [-1e9] * len(runs) + [-2e9 - i for i in range(4)]
    order = list(range(259, 259 + len(words)))
    chosen.shuffle(order)
    for rank, i in enumerate(order):
        scores[i] = -float(rank)
    kinds = {"tokens": tokens, "token_type": types, "scores": scores, "model": "llama"}
    return {f"tokenizer.ggml.{key}": value for key, value in kinds.items()}


def by_definition(entries: dict[str, Any], text: str) -> list[int]:
    """SentencePiece's rule: join the two neighbours whose union has the best score, the leftmost of equals."""
    tokens, scores = entries["tokenizer.ggml.tokens"], entries["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [(-scores[ids[a + b]], n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not joins:
            break
        n = min(joins)[1]
        parts[n : n + 2] = [parts[n] + parts[n + 1]]
    return [i for p in parts for i in ([ids[p]] if p in ids else [3 + byte for byte in p.encode()])]


def test_sentencepiece_ids_follow_the_definition() -> None:
    entries = pieces()
    tokenizer = rebuilt(entries)
    for text in [*texts("aabbc  d", 400), *("a" + " " * n for n in range(30)), "é日🎉\n"]:
        ids = tokenizer.encode(text).ids
        assert ids == by_definition(entries, text), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<s>a</s>").ids == [1, *by_definition(entries, "a"), 2]


def test_sentencepiece_without_a_leading_space() -> None:
    entries = pieces()
    tokenizer = rebuilt(entries | {"tokenizer.ggml.add_space_prefix": False})
    assert tokenizer.decode(tokenizer.encode("b a").ids) == "b a"
    assert tokenizer.encode(" b a").ids == by_definition(entries, "b a")


def test_sentencepiece_that_cannot_be_exact_is_refused() -> None:
    entries = pieces()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tokenizer.ggml.scores": [-1000.0] * len(entries["tokenizer.ggml.scores"])}, "one score"),
        ({"tokenizer.ggml.scores": [1.0]}, "score for each token"),
        ({"tokenizer.ggml.token_type": [4, *entries["tokenizer.ggml.token_type"][1:]]}, "'<unk>'"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "removing white space"),
    ]
    for changes, words in cases:
        with pytest.raises(UserError, match=words):
            rebuilt(entries | changes)
