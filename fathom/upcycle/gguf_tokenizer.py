"""The tokenizer of a GGUF file as the files of a checkpoint folder.

GGUF keeps tokens and a type per token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused (rows without a token),
6 byte. Types 2 to 4 become added tokens, which are found in text before anything else. How the rest is cut and merged
depends on the kind of tokenizer: gguf_bpe.py ("gpt2" in the file) or gguf_sentencepiece.py ("llama").

Not in GGUF, and so lost: white space that a tokenizer.json may strip beside an added token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fathom.runtime import UserError, write_json, write_text
from fathom.upcycle.gguf_bpe import LLAMA3, byte_level_rules, cut_name
from fathom.upcycle.gguf_sentencepiece import sentencepiece_rules
from fathom.upcycle.llama_config import shown
from fathom.upcycle.source import LlamaConfig

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5


def vocabulary(path: Path, entries: dict[str, Any]) -> list[str]:
    """All tokens, by id."""
    tokens = entries.get("tokenizer.ggml.tokens")
    if "tokenizer.ggml.model" not in entries or not tokens:
        raise UserError(f"{path} brings no tokenizer; take a GGUF file made with its vocabulary")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise UserError(f"{path}: tokenizer.ggml.tokens is not a list of texts; download it again")
    return tokens


def token_id(path: Path, entries: dict[str, Any], which: str) -> int | None:
    """`tokenizer.ggml.{which}_token_id`, None where the file has none."""
    value, count = entries.get(f"tokenizer.ggml.{which}_token_id"), len(vocabulary(path, entries))
    if value in (None, -1, 2**32 - 1):
        return None
    if type(value) is not int or not 0 <= value < count:
        raise UserError(
            f"{path}: tokenizer.ggml.{which}_token_id is {shown(value)}, there are {count} tokens; correct it"
        )
    return value


def tokenizer_files(path: Path, entries: dict[str, Any], config: LlamaConfig) -> dict[str, Any]:
    """File name -> contents (JSON objects, or text). UserError where the file's tokenizer cannot be rebuilt exactly."""
    tokens = vocabulary(path, entries)
    backend = _backend(path, entries, tokens, _types(path, entries, tokens, config))
    eos = list(config.eos_token_id)
    special = {"bos": config.bos_token_id, "eos": eos[0] if eos else None, "pad": config.pad_token_id}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": _adds_bos(entries),
        **{f"{key}_token": tokens[i] for key, i in special.items() if i is not None},
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }
    files: dict[str, Any] = {"tokenizer.json": backend.to_str(pretty=True), "tokenizer_config.json": settings}
    template = entries.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        settings["chat_template"] = files["chat_template.jinja"] = template
    ids = {**special, "eos": eos if len(eos) > 1 else special["eos"]}
    files["generation_config.json"] = {f"{key}_token_id": i for key, i in ids.items() if i is not None}
    return files


def write_tokenizer_files(folder: Path, files: dict[str, Any]) -> None:
    """Write what `tokenizer_files` gave."""
    for name, value in files.items():
        if isinstance(value, str):
            write_text(folder / name, value)
        else:
            write_json(folder / name, value)


def _adds_bos(entries: dict[str, Any]) -> bool:
    """Whether a plain text begins with BOS. Where the file does not say, llama.cpp's rule."""
    default = entries["tokenizer.ggml.model"] == "llama" or cut_name(entries) == LLAMA3
    return bool(entries.get("tokenizer.ggml.add_bos_token", default))


def _types(path: Path, entries: dict[str, Any], tokens: list[str], config: LlamaConfig) -> list[int]:
    types = entries.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens) or len(tokens) > config.vocab_size:
        count = len(types) if isinstance(types, list) else shown(types)
        raise UserError(
            f"{path}: {len(tokens)} tokens, {count} token types and {config.vocab_size} rows do not fit together; "
            "download it again"
        )
    return types


def _backend(path: Path, entries: dict[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}
    if len(vocab) != len(types) - types.count(_UNUSED):
        raise UserError(f"{path} has a token twice in its vocabulary; download it again")
    kind = entries["tokenizer.ggml.model"]
    if kind == "gpt2":
        rules = byte_level_rules(path, entries, vocab)
    elif kind == "llama":
        rules = sentencepiece_rules(path, entries, vocab, types)
    else:
        raise UserError(
            f"{path} has a tokenizer of kind {shown(kind)}; rebuilt are byte-level BPE ('gpt2') and SentencePiece's "
            "BPE ('llama'); upcycle the model's Hugging Face folder instead"
        )
    added = [
        {
            "id": i, "content": token, "special": types[i] != _USER, "normalized": False,
            "lstrip": False, "rstrip": False, "single_word": False,
        }
        for token, i in vocab.items() if types[i] in (_UNKNOWN, _CONTROL, _USER)
    ]  # fmt: skip
    try:
        return Tokenizer.from_str(
            json.dumps({"version": "1.0", "added_tokens": added, "post_processor": None, **rules})
        )
    except Exception as error:  # the library raises plain Exception with the reason of its parser
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: its tokenizer does not hold together ({reason}); download it again") from None
