"""Answers that tests of the chat APIs let the fake engine write, and what a constraint allows."""

from __future__ import annotations

from typing import Any

from running import Running

from fathom.text.chat_tokens import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, END_THINK, SEP

DEEP = f"Hm, deep.\n{END_THINK}\n\nDeep."


def call(name: str, arguments: str) -> str:
    return f"{CALL_BEGIN}function{SEP}{name}\n```json\n{arguments}\n```{CALL_END}"


def calls(*each: str) -> str:
    return CALLS_BEGIN + "\n".join(each) + CALLS_END


SEA, FJORD = call("weather", '{"at": "sea"}'), call("weather", '{"at": "fjord"}')


def prompt_of(server: Running, number: int = -1) -> str:
    """The text of a prompt that reached the engine."""
    return server.fake.llm.tokenizer.decode(server.fake.submitted[number][0])  # type: ignore[no-any-return]


def allowed(server: Running, text: str) -> bool:
    """Whether the constraint that reached the engine last lets it write this text, walked through token by token."""
    llm: Any = server.fake.llm
    matcher = llm.engine.compiler.matcher(server.fake.submitted[-1][1].grammar)
    for token in [*llm.tokenizer.encode(text), 1]:
        if not matcher.allows(token):
            return False
        matcher.advance(token)
    return True
