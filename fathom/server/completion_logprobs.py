r"""Log-probabilities as /v1/completions shows them: four lists of equal length, prompt (with echo) before answer.

    tokens          the text of each token; one that is no whole character as `bytes:\xe4\xbd`
    token_logprobs  None for the first token of a prompt: nothing comes before it
    top_logprobs    {token: logprob} of the likeliest, the chosen one included; None where token_logprobs is
    text_offset     where the token's text begins in `text`

The token that ends an answer has no text and is not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fathom.engine.outputs import Delta
from fathom.engine.sampling import TokenLogprob
from fathom.server.completion_prompts import CompletionPrompt
from fathom.server.served import Served
from fathom.server.tokens import finite


class LogprobWriter:
    """One choice. Tokens in, lists out; what was taken is not given again."""

    def __init__(self, served: Served, prompt: CompletionPrompt, echo: bool) -> None:
        self.texts, self.given = served.texts, prompt
        self._detokenizer = served.llm.tokenizer.detokenizer
        self._offset = 0
        self._answer = self._detokenizer()
        self._start = len(prompt.text) if echo else 0
        self._lists = self.nothing()

    @staticmethod
    def nothing() -> dict[str, Any]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def prompt(self, logprobs: Sequence[TokenLogprob | None]) -> None:
        """The prompt's tokens. The begin token has no text in what `echo` gives back."""
        detokenizer, offset = self._detokenizer(), 0
        for token, logprob in zip(self.given.ids, logprobs, strict=True):
            self._add(token, logprob, offset)
            offset += len(detokenizer.push(token))

    def token(self, delta: Delta, *, is_end: bool) -> None:
        """One token of the answer."""
        if not is_end and delta.logprob is not None:
            self._add(delta.token_id, delta.logprob, self._start + self._offset)
            self._offset += len(self._answer.push(delta.token_id))

    def take(self) -> dict[str, Any]:
        """The lists since the last time."""
        lists, self._lists = self._lists, self.nothing()
        return lists

    def _add(self, token: int, logprob: TokenLogprob | None, offset: int) -> None:
        self._lists["tokens"].append(self.texts.exact(token))
        self._lists["token_logprobs"].append(None if logprob is None else finite(logprob.logprob))
        self._lists["top_logprobs"].append(None if logprob is None else self.texts.top(logprob))
        self._lists["text_offset"].append(offset)
