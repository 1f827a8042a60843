"""Text to token ids and back, with the `tokenizers` library.

A checkpoint says the same thing in four files, and they do not always agree. Who wins here:

    ids and merges      tokenizer.json
    BOS                 tokenizer_config.json (the chat template prints it), then generation_config.json, config.json
    EOS (a set)         all of generation_config.json, config.json, tokenizer_config.json: any of them ends an answer

Two traps. A rendered prompt already starts with BOS, so the tokenizer's own "add BOS" is never left on: `encode` adds
one only when asked, and only when none is there. And in V3 `<｜User｜>`, `<｜Assistant｜>` and the tool tokens are
*added* tokens but not *special* ones: decode(skip_special=True) drops BOS and EOS and keeps those, which is what the
parser of tool calls needs.

Control tokens are the added tokens that steer the model. Text that people wrote must not turn into them:
`encode_plain` never produces one, and `encode_marked` is the same for parts of a rendered prompt (see chat.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as _Backend

from fathom.runtime import UserError, read_json
from fathom.text.detokenizer import IncrementalDetokenizer


class Tokenizer:
    """A checkpoint's tokenizer. Build it with `from_pretrained`."""

    def __init__(
        self, backend: _Backend, *, bos_id: int | None = None, eos_ids: Sequence[int] = (), adds_bos: bool = False
    ) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self.bos_id = bos_id
        self.eos_ids = tuple(eos_ids)
        self.adds_bos = adds_bos  # what the checkpoint does for raw prompts (tokenizer_config.json: add_bos_token)
        added = self._backend.get_added_tokens_decoder()
        self.vocab_size = max([*self._backend.get_vocab().values(), *added, -1]) + 1  # ids are 0 .. vocab_size - 1
        self.control_tokens: dict[int, str] = {
            i: token.content
            for i, token in added.items()
            if len(token.content) > 1 and (token.special or (token.content[0] == "<" and token.content[-1] == ">"))
        }

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Tokenizer:
        """Read a checkpoint folder. Missing or broken files, and ids the model has no rows for, are a UserError."""
        folder = Path(folder)
        backend = _read_backend(folder / "tokenizer.json")
        settings = optional_json(folder / "tokenizer_config.json")
        config = optional_json(folder / "config.json")
        generation = optional_json(folder / "generation_config.json")

        bos = [*_named_id(backend, settings, "bos_token"), *_ids(generation, "bos"), *_ids(config, "bos")]
        eos = [*_ids(generation, "eos"), *_ids(config, "eos"), *_named_id(backend, settings, "eos_token")]
        tokenizer = cls(
            backend,
            bos_id=bos[0] if bos else None,
            eos_ids=list(dict.fromkeys(eos)),
            adds_bos=settings.get("add_bos_token") is True,
        )
        for i in [*bos[:1], *eos]:
            if i >= tokenizer.vocab_size:
                raise UserError(
                    f"{folder}: a BOS or EOS id is {i}, the tokenizer has ids 0 to {tokenizer.vocab_size - 1}; "
                    "correct config.json or take the tokenizer.json that belongs to it"
                )
        rows = config.get("vocab_size")
        if isinstance(rows, int) and tokenizer.vocab_size > rows:
            raise UserError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model only {rows} rows (vocab_size); "
                "take the tokenizer.json that belongs to this model"
            )
        return tokenizer

    def encode(self, text: str, add_bos: bool = False) -> list[int]:
        """Token ids of `text`; control tokens in it are recognised. BOS is added when asked and not yet there."""
        ids = self._encode(self._backend, text)
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text` as nothing but text: `<｜User｜>` becomes its characters, never the control token."""
        return self._encode(self._plain, text)

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Like `encode`, for a text in which quoted control tokens were broken up with the character `mark`.

        The library finds the true control tokens; each stretch of text between two of them that holds a mark is
        encoded again as plain text without the mark. Stretches without a mark are as `encode` gives them.
        """
        if mark not in text:
            return self.encode(text)
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids: list[int] = []
        stretch: list[int] = []
        start = 0

        def close(end: int) -> None:
            piece = text[start:end]
            ids.extend(self.encode_plain(piece.replace(mark, "")) if mark in piece else stretch)
            stretch.clear()

        for i, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if i in self.control_tokens:
                close(begin)
                ids.append(i)
                start = end
            else:
                stretch.append(i)
        close(len(text))
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 come out as U+FFFD, ids without a token as nothing."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def detokenizer(self, skip_special: bool = True) -> IncrementalDetokenizer:
        """A decoder for one stream of ids."""
        return IncrementalDetokenizer(lambda ids: self.decode(ids, skip_special), self._is_byte_token)

    def unlike(self, other: Tokenizer) -> list[str]:
        """The tokens of `other` that are not the same id here; none: this one can stand in for it."""
        own = self._backend.get_vocab(with_added_tokens=True)
        return [token for token, i in other._backend.get_vocab(with_added_tokens=True).items() if own.get(token) != i]

    def to_json(self) -> str:
        """The whole tokenizer as the text of a tokenizer.json."""
        return str(self._backend.to_str())

    def id_of(self, token: str) -> int | None:
        """The id of one token by its text, None when there is none."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def token_of(self, i: int) -> str | None:
        """The token of an id as the vocabulary spells it (bytes as printable characters), None when there is none."""
        return self._backend.id_to_token(i)

    @property
    def bos_token(self) -> str:
        """The text of BOS, empty when there is none."""
        return "" if self.bos_id is None else self.token_of(self.bos_id) or ""

    @cached_property
    def _plain(self) -> _Backend:
        """The same tokenizer without added tokens: text cannot become a control token in it."""
        spec = json.loads(self._backend.to_str())
        spec["added_tokens"] = []
        spec["post_processor"] = None  # it may name special tokens; we never ask it to add any
        return _Backend.from_str(json.dumps(spec))

    def _encode(self, backend: _Backend, text: str) -> list[int]:
        try:
            return list(backend.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError):  # the library's words for a str that UTF-8 cannot write
            if not isinstance(text, str):
                raise
            raise UserError(
                "the text holds half of a surrogate pair, which is no character; send valid Unicode"
            ) from None

    def _is_byte_token(self, i: int) -> bool:
        token = self.token_of(i)
        return token is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _read_backend(path: Path) -> _Backend:
    spec = read_json(path)
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise UserError(f"{path} is not a tokenizer file (no 'model' in it); download or write it again")
    try:
        return _Backend.from_file(str(path))
    except Exception as error:  # the library raises plain Exception with the reason of its parser
        raise UserError(f"{path} cannot be used ({_one_line(error)}); download or write it again") from None


def optional_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty when there is no file."""
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(
            f"{path} must hold a JSON object, it holds a {type(value).__name__}; download or write it again"
        )
    return value


def _ids(config: dict[str, Any], which: str) -> list[int]:
    """`bos_token_id` or `eos_token_id` of a config: absent, one id, or a list."""
    value = config.get(f"{which}_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    for v in values:
        if not isinstance(v, int) or isinstance(v, bool) or v < 0:
            raise UserError(f"{which}_token_id is {v!r}; it must be a token id (an integer from 0) or a list of them")
    return values


def token_text(settings: dict[str, Any], key: str) -> str | None:
    """`bos_token` / `eos_token` of tokenizer_config.json: a string, an object with `content`, or null."""
    value = settings.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"tokenizer_config.json: {key} is {value!r}; it must be a string, an object with 'content', or null"
        )
    return value


def _named_id(backend: _Backend, settings: dict[str, Any], key: str) -> list[int]:
    text = token_text(settings, key)
    if text is None:
        return []
    found = backend.token_to_id(text)
    if found is None:
        raise UserError(
            f"tokenizer_config.json: {key} {text!r} is not in tokenizer.json; take the two files of one checkpoint"
        )
    return [int(found)]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
