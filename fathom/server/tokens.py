"""What one token looks like to a client: its text, its bytes, its log-probability.

A byte-level vocabulary spells each byte as one printable character (GPT-2's alphabet: printable bytes are themselves,
the others follow from U+0100), so a token that is half a character still has exact bytes. A token of another kind of
vocabulary has the bytes of its decoded text.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fathom.engine.sampling import TokenLogprob
from fathom.text.tokenizer import Tokenizer

MAX_REMEMBERED = 65536
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(b): b for b in _PRINTABLE} | {chr(0x100 + i): b for i, b in enumerate(_OTHERS)}
LOWEST = -9999.0  # JSON has no infinity; a token that cannot come has this


class TokenTexts:
    """Texts and bytes of a tokenizer's tokens, remembered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bytes_of = lru_cache(MAX_REMEMBERED)(self._bytes_of)

    def text(self, token: int) -> str:
        """The text of one token; bytes that are no character as U+FFFD."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def exact(self, token: int) -> str:
        """The text of one token; bytes that are no character as `bytes:\\xe4\\xbd`, so that no two look alike."""
        data = self.bytes_of(token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def chat_logprob(self, logprob: TokenLogprob) -> dict[str, Any]:
        """As /v1/chat/completions shows it."""
        entry = self._entry(logprob.token_id, logprob.logprob)
        return {**entry, "top_logprobs": [self._entry(token, value) for token, value in logprob.top]}

    def top(self, logprob: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens as /v1/completions shows them, the chosen one always among them."""
        top = {self.exact(token): finite(value) for token, value in logprob.top}
        return {**top, self.exact(logprob.token_id): finite(logprob.logprob)}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(token), "logprob": finite(logprob), "bytes": list(self.bytes_of(token))}

    def _bytes_of(self, token: int) -> bytes:
        spelled = self.tokenizer.token_of(token) or ""
        if token in self.tokenizer.control_tokens:
            return self.tokenizer.control_tokens[token].encode()
        text = self.tokenizer.decode([token])
        if all(char in BYTE_OF for char in spelled):
            data = bytes(BYTE_OF[char] for char in spelled)
            if data.decode("utf-8", "replace") == text:
                return data
        return text.encode("utf-8", "replace")


def finite(logprob: float) -> float:
    return max(logprob, LOWEST)
