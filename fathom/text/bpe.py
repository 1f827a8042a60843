"""Train a byte-level BPE tokenizer with DeepSeek-V3's pre-tokenizer and added tokens (report section 4.1).

Text is first cut into pieces that a merge may not cross, by three splits in a row: digits in groups of up to
three; runs of Chinese and Japanese; then words (with one sign or space before them), punctuation with the line breaks
that follow, and white space. Inside a piece, bytes are merged. All 256 bytes are in the vocabulary: nothing is unknown.

Groups of three digits are cut from the left (12345 is 123 and 45), so the same token stands for thousands in one number
and for ones in the next. A small model then hardly learns to add: `digits="single"` makes each digit a token.

Ids: 0 begin, 1 end, 2 padding; then bytes and merges; the chat, fill-in-the-middle and tool tokens are the last of the
vocabulary, in V3's order. As in V3, those tokens are added but not special (only `<|EOT|>` is): decoding keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from fathom.runtime import UserError, atomic_write

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
FIRST_TOKENS = (BOS, EOS, PAD)
LAST_TOKENS = (
    *("<think>", "</think>"),
    *("<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"),
    *("<｜User｜>", "<｜Assistant｜>", "<|EOT|>"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
    "<｜tool▁sep｜>",
)

Digits = Literal["v3", "single"]  # groups of up to three as in V3, or each one a token
# Exactly the three patterns of V3's tokenizer.json.
SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
SINGLE_DIGITS = r"\p{N}"
SMALLEST = len(FIRST_TOKENS) + 256 + len(LAST_TOKENS)


def pre_tokenizer(digits: Digits = "v3") -> pre_tokenizers.PreTokenizer:
    """What cuts text into pieces."""
    patterns = SPLITS if digits == "v3" else (SINGLE_DIGITS, *SPLITS[1:])
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_bpe(
    texts: Iterable[str], vocab_size: int, out_dir: Path, *, digits: Digits = "v3", model_max_length: int = 4096
) -> None:
    """Write tokenizer.json and tokenizer_config.json with exactly `vocab_size` ids, or raise UserError."""
    if digits not in get_args(Digits):
        raise UserError(f"digits {digits!r} is not known; take one of {', '.join(get_args(Digits))}")
    if vocab_size < SMALLEST:
        raise UserError(f"vocab_size {vocab_size} is too small: bytes and added tokens alone need {SMALLEST}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(digits)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(LAST_TOKENS),
        special_tokens=list(FIRST_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())
    size = len(trained["model"]["vocab"]) + len(LAST_TOKENS)
    if size != vocab_size:
        raise UserError(
            f"the text is enough for {size} ids only, not {vocab_size}: give more text or a smaller vocab_size"
        )
    trained["added_tokens"] = _added_tokens(vocab_size)
    config = _config(model_max_length)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", trained), ("tokenizer_config.json", config)):
        with atomic_write(out_dir / name) as path:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _added_tokens(vocab_size: int) -> list[dict[str, Any]]:
    """V3's flags: the first three are special and not normalised, of the others only `<|EOT|>` is special."""

    def entry(number: int, content: str) -> dict[str, Any]:
        first = content in FIRST_TOKENS
        return {
            "id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": not first, "special": first or content == "<|EOT|>",
        }  # fmt: skip

    last = enumerate(LAST_TOKENS, start=vocab_size - len(LAST_TOKENS))
    return [entry(*pair) for pair in [*enumerate(FIRST_TOKENS), *last]]


def _config(model_max_length: int) -> dict[str, Any]:
    def token(content: str) -> dict[str, Any]:
        return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False,
                "single_word": False}  # fmt: skip

    return {
        "add_bos_token": False, "add_eos_token": False, "bos_token": token(BOS), "clean_up_tokenization_spaces": False,
        "eos_token": token(EOS), "legacy": True, "model_max_length": model_max_length, "pad_token": token(PAD),
        "sp_model_kwargs": {}, "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None,
    }  # fmt: skip
