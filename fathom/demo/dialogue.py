"""Rank 0's side of `fathom.demo.generate`: texts in, token ids to the model, text out. No process but rank 0 needs it.

A talk is either a list of prompts, each a conversation of its own, or a person at the keyboard.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fathom.config import ModelConfig
from fathom.engine.naive import Step, check_prompt
from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer

MAX_PROMPT_BYTES = 256 * 2**20
Order = tuple[list[int], list[int]]  # prompt ids, end ids


def read_prompts(path: Path) -> list[str]:
    """One user's message per line."""
    try:
        if path.stat().st_size > MAX_PROMPT_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes, the limit is {MAX_PROMPT_BYTES}; split it")
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if lines[-1] == "":  # what follows the last line break
        lines.pop()
    if not lines:
        raise UserError(f"{path} is empty; it needs one prompt per line")
    return [line.strip() for line in lines]


@dataclass
class Talk:
    """`lines` None: a conversation on standard input."""

    tokenizer: Tokenizer
    template: ChatTemplate
    config: ModelConfig
    lines: list[str] | None
    messages: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, config: ModelConfig, lines: list[str] | None) -> Talk:
        """Read the checkpoint's tokenizer and template. All prompts of a file are checked here, before the weights."""
        talk = cls(Tokenizer.from_pretrained(folder), ChatTemplate.from_pretrained(folder), config, lines)
        for number, line in enumerate(lines or [], 1):
            try:
                talk.encode([{"role": "user", "content": line}])
            except UserError as error:
                raise UserError(f"input line {number}: {error}") from None
        return talk

    def encode(self, messages: list[dict[str, str]]) -> Order:
        """The conversation's tokens and what ends the answer; a UserError if it does not fit."""
        ids = self.template.encode(self.tokenizer, messages)
        check_prompt(ids, self.config.max_position_embeddings, self.config.vocab_size)
        return ids, sorted({*self.tokenizer.eos_ids, *self.config.eos_token_id})

    def prompts(self) -> Iterator[Order]:
        """What to answer, one after the other; `show` is called in between."""
        if self.template.note:
            print(f"fathom: note: {self.template.note}", file=sys.stderr)
        if self.lines is None:
            yield from self._typed()
            return
        for line in self.lines:
            print("Prompt:", line)
            print("Completion: ", end="", flush=True)
            self.messages = [{"role": "user", "content": line}]
            yield self.encode(self.messages)
            print()  # the official blank line between pairs

    def _typed(self) -> Iterator[Order]:
        while True:
            try:
                text = input(">>> ")
            except EOFError:
                print()
                return
            if text == "/exit":
                return
            if text == "/clear":
                self.messages.clear()
                continue
            self.messages.append({"role": "user", "content": text})
            try:
                order = self.encode(self.messages)
            except UserError as error:  # nothing was told to anybody yet: the message is taken back
                self.messages.pop()
                print(f"fathom: error: {error} (/clear forgets the conversation)", file=sys.stderr)
                continue
            yield order

    def show(self, steps: Iterator[Step]) -> None:
        """Print the answer as it comes and remember it."""
        detokenizer, pieces = self.tokenizer.detokenizer(), []
        for step in steps:
            text = "" if step.finish_reason == "stop" else detokenizer.push(step.token_id)
            text += detokenizer.flush() if step.finish_reason is not None else ""
            pieces.append(text)
            print(text, end="", flush=True)
        print(flush=True)
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
