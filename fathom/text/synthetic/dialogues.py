"""Instruction dialogues: one topic or task, or a few in a row, now and then with a system prompt that sets the tone."""

from __future__ import annotations

import random
from collections.abc import Callable

from fathom.text.synthetic import topics, writing
from fathom.text.synthetic.grammar import expand
from fathom.text.synthetic.skills import SKILLS

Turn = tuple[str, str]
Message = dict[str, str]

# What is asked, and how often.
TOPICS: tuple[tuple[Callable[[random.Random], list[Turn]], int], ...] = (
    (topics.small_talk, 6), (topics.identity, 7), (topics.countries, 7), (topics.animals, 8),
    (topics.words, 8), (topics.colours, 3), (topics.calendar, 4), (topics.definitions, 6),
    (topics.whys, 4), (topics.how_to, 4), (topics.explanations, 4), (topics.lists, 6),
    (topics.advice, 4), (topics.unknown, 5), (writing.stories, 13), (writing.poems, 2),
    (writing.passages, 6), (writing.rewrites, 3), (writing.memory, 4), (topics.sums, 14),
    (writing.cooking, 2),
)  # fmt: skip

SYSTEM = (
    "You are a helpful assistant.",
    "You are minnow, a small and friendly assistant.",
    "You are a kind teacher for children.",
    "Answer in simple words.",
    "You are a helpful assistant. Answer politely.",
    "Be short and clear.",
    "You are a friendly assistant who likes to help.",
    "Use simple English.",
)


def _styled(rng: random.Random, turns: list[Turn]) -> tuple[str, list[Turn]] | None:
    """A system prompt that changes the answers."""
    kind = rng.randrange(4)
    if kind == 0:
        return "Answer in capital letters.", [(q, a.upper()) for q, a in turns]
    if kind == 1:
        ending = "Have a nice day!"
        return f'End every answer with "{ending}"', [(q, f"{a} {ending}") for q, a in turns]
    if kind == 2:
        return 'Begin every answer with "Sure!"', [(q, f"Sure! {a}") for q, a in turns]
    return "You are a pirate. Talk like one.", [(q, f"Ahoy! {a} Arr!") for q, a in turns]


def dialogue(rng: random.Random) -> list[Message]:
    """A chat: one topic, or a few in a row; roles alternate and the assistant has the last word."""
    makers, weights = zip(*TOPICS, *SKILLS, strict=True)
    turns: list[Turn] = []
    for topic in rng.choices(makers, weights, k=rng.choices((1, 2, 3), (70, 20, 10))[0]):
        turns += topic(rng)
    if rng.random() < 0.12:
        turns.insert(0, (expand(rng, "[Hello!|Hi!|Good"
                                     " morning!|Hey!]"), expand(rng, "[Hello! How can I help you?|Hi! What can I do for"
                                                                                     " you?]")))  # fmt: skip
    if rng.random() < 0.08:
        turns.append(
            (
                expand(rng, "[Thank you!|Thanks!|Great, thank you.]"),
                expand(rng, "[You are welcome!|I am happy to help!]"),
            )
        )
    messages: list[Message] = []
    roll = rng.random()
    if roll < 0.15:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    elif roll < 0.19 and sum(len(answer) for _, answer in turns) < 400 and (styled := _styled(rng, turns)):
        messages.append({"role": "system", "content": styled[0]})
        turns = styled[1]
    for question, answer in turns:
        if rng.random() < 0.06:  # people do not always type with care
            question = question.lower() if rng.random() < 0.5 else question.rstrip("?.!")
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def as_text(messages: list[Message]) -> str:
    """The same chat as running text, for pretraining."""
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    return "\n".join(f"{names[message['role']]}: {message['content']}" for message in messages)
