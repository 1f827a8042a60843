r"""A byte-level BPE tokenizer from a GGUF file, as rules for the `tokenizers` library.

The file keeps tokens, merges in order, and the NAME of how text is cut into words before merging. The rules behind a
name are llama.cpp's source, rewritten here; a name without rules is refused, since a near guess gives a model that
reads slightly wrong words.

    gpt-2      GPT-2's pattern: contractions, " ?letters", " ?digits", " ?others", spaces
    smollm     each digit alone, then GPT-2's pattern
    llama-bpe  Llama 3: digits in threes, one character may lead a word, words that are tokens stay whole
    qwen2      the same with digits alone; text is composed first (NFC), as in the model's own tokenizer.json
    default    llama.cpp's rules for a file that does not know: punctuation alone, GPT-2's pattern, digits in threes
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fathom.runtime import UserError
from fathom.upcycle.llama_config import shown

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> dict[str, Any]:
    """Bytes to printable characters; with `use_regex` after a cut by GPT-2's pattern."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_bytes(True)],
    "smollm": [_DIGITS, _bytes(True)],
    "llama-bpe": [_split(_WORD + r"\p{N}{1,3}" + _REST), _bytes(False)],
    "qwen2": [_split(_WORD + r"\p{N}" + _REST), _bytes(False)],
    "default": [
        _split(r"[\p{P}\$\+<=>\^~\|]+"), _split(_GPT2), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"), _bytes(False)
    ],
}  # fmt: skip
_SAME = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
LLAMA3 = "llama-bpe"


def cut_name(entries: dict[str, Any]) -> str:
    """The name under which the file's cutting rules stand in CUTS, if they do; "" where the file has none."""
    name = str(entries.get("tokenizer.ggml.pre", ""))
    return _SAME.get(name, name)


def byte_level_rules(path: Path, entries: dict[str, Any], vocab: dict[str, int]) -> dict[str, Any]:
    """normalizer, pre_tokenizer, decoder and model of a tokenizer.json."""
    name = cut_name(entries)
    if name not in CUTS:
        cuts = (
            f"cuts text into words by the rules {shown(name)}" if name else "does not say how it cuts text into words"
        )
        raise UserError(
            f"{path} {cuts} (tokenizer.ggml.pre); known are {', '.join(CUTS)}; upcycle the model's Hugging Face folder "
            "instead, or a newer GGUF file of it"
        )
    return {
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[name]},
        "decoder": _bytes(True),
        "model": {
            "type": "BPE", "vocab": vocab, "merges": _merges(path, entries), "unk_token": None, "dropout": None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": name == LLAMA3,
        },
    }  # fmt: skip


def _merges(path: Path, entries: dict[str, Any]) -> list[list[str]]:
    merges = entries.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(m, str) and m.count(" ") == 1 for m in merges):
        raise UserError(f"{path} brings no list of merges (tokenizer.ggml.merges); take a complete GGUF file")
    return [m.split(" ") for m in merges]
