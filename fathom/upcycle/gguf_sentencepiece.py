"""A SentencePiece tokenizer (Llama 2, Mistral 7B, TinyLlama) from a GGUF file, as rules for the `tokenizers` library.

SentencePiece's BPE keeps no merges. It has a score per piece, and always joins the two neighbours whose union is the
best piece, the leftmost of equals. The library wants a list of merges in order: all ways to cut a piece into two other
pieces, best piece first. This is the conversion that transformers uses, so the published tokenizer.json of these
models is the same list; scores of pieces must differ for it to be exact, which is checked.

Spaces become U+2581, one more stands before each stretch of text between control tokens (where the file does not say
otherwise), and a character without a piece becomes its UTF-8 bytes `<0xE2>`, which are tokens too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fathom.runtime import UserError
from fathom.upcycle.llama_config import shown

SPACE = "\u2581"
_NORMAL, _USER = 1, 4
_FOLDER = "upcycle the model's Hugging Face folder instead"


def sentencepiece_rules(path: Path, entries: dict[str, Any], vocab: dict[str, int], types: list[int]) -> dict[str, Any]:
    """normalizer, pre_tokenizer, decoder and model of a tokenizer.json; `types` by id."""
    own = next((token for token, i in vocab.items() if types[i] == _USER), None)
    if own is not None or entries.get("tokenizer.ggml.remove_extra_whitespaces"):
        what = "removing white space" if own is None else f"the user-defined token {shown(own)}"
        raise UserError(f"{path}: {what} in a SentencePiece tokenizer cannot be rebuilt exactly; {_FOLDER}")
    n_bytes = sum(f"<0x{byte:02X}>" in vocab for byte in range(256))
    if n_bytes != 256:
        raise UserError(f"{path}: its SentencePiece tokenizer has {n_bytes} of 256 byte tokens; {_FOLDER}")
    from_space: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    to_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip: list[dict[str, Any]] = []
    if entries.get("tokenizer.ggml.add_space_prefix", True):
        from_space.insert(0, {"type": "Prepend", "prepend": SPACE})
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "normalizer": {"type": "Sequence", "normalizers": from_space},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            "type": "BPE", "vocab": vocab, "merges": _merges(path, entries, vocab, types), "unk_token": None,
            "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False,
        },
    }  # fmt: skip


def _merges(path: Path, entries: dict[str, Any], vocab: dict[str, int], types: list[int]) -> list[list[str]]:
    scores = entries.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(types) or not all(isinstance(s, float) for s in scores):
        raise UserError(f"{path} brings no score for each token (tokenizer.ggml.scores); take a complete GGUF file")
    pieces = {token: scores[i] for token, i in vocab.items() if types[i] == _NORMAL}
    merges = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in pieces.items()
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    joined = {left + right: score for score, _, left, right in merges if set(left + right) != {SPACE}}
    if len(set(joined.values())) != len(joined):
        raise UserError(f"{path}: several pieces of its SentencePiece tokenizer have one score; {_FOLDER}")
    return [[left, right] for _, _, left, right in sorted(merges)]
