"""Many texts to ids at once, as text and nothing else: what a web page says is never taken for a control token.

Only the folder travels to another process; each process reads the tokenizer once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer as Backend

from fathom.runtime import UserError
from fathom.text.stages import Vocabulary
from fathom.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PlainEncoder:
    """Call it with a list of texts."""

    folder: str

    def __call__(self, texts: list[str]) -> list[list[int]]:
        encodings = _backend(self.folder).encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


@lru_cache(maxsize=2)
def _backend(folder: str) -> Backend:
    spec = json.loads(Tokenizer.from_pretrained(folder).to_json())
    spec["added_tokens"] = []
    spec["post_processor"] = None
    return Backend.from_str(json.dumps(spec))


def vocabulary(folder: Path | str) -> Vocabulary:
    """A tokenizer folder as a build needs it."""
    tokenizer = Tokenizer.from_pretrained(folder)
    if tokenizer.bos_id is None or not tokenizer.eos_ids:
        raise UserError(f"{folder} names no BOS or no EOS token; documents are separated by them")
    return Vocabulary(PlainEncoder(str(folder)), tokenizer.bos_id, tokenizer.eos_ids[0], tokenizer.vocab_size)
