"""Which sampling settings a chat model needs: right answers, repetition, length, and whether it ends by itself.

    python benchmarks/sampling.py [MODEL] [--temperatures 0,0.3,0.7,1] [--top-ps 0.9,1] [--samples 4] [--show 0.3,0.9]

40 prompts whose answers a rule can judge: facts, sums, lists of n things, yes or no, rewriting, and short texts to
write (these must hold the subject and end by themselves). Each is answered `--samples` times with every setting (once
when greedy), with the seeds 0, 1, ... The same rule judges every setting, so that its mistakes do not favour one.

    right       share of answers that the rule accepts; ± is the standard error over the prompts
    repeated    share of an answer's 6-grams of tokens that stood in it before, mean (0: nothing, near 1: a loop)
    tokens      mean length; an answer is cut at --max-tokens
    ended       share of answers that ended by themselves

The last line is one JSON document; `--show T,P` prints that setting's answers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

import fathom
from fathom.engine.outputs import RequestOutput
from fathom.runtime import progress

Check = Callable[[str], bool]
GRAM = 6


def says(*words: str) -> Check:
    """One of the words stands in the answer's first two sentences."""

    def check(text: str) -> bool:
        first = " ".join(re.split(r"(?<=[.!?])\s+", text.strip())[:2])
        return any(re.search(rf"\b{re.escape(word)}\b", first, re.IGNORECASE) for word in words)

    return check


def number(value: int) -> Check:
    """The last number of the answer is the right one."""

    def check(text: str) -> bool:
        found = re.findall(r"-?\d[\d,]*", text)
        return bool(found) and found[-1].replace(",", "").lstrip("-") == str(value)

    return check


def items(n: int) -> Check:
    """A list of n different things, one a line or commas between."""

    def check(text: str) -> bool:
        lines = [m[1].strip() for line in text.splitlines() if (m := re.match(r"\s*(?:\d+[.)]|[-*•])\s+(.+)", line))]
        if not lines:
            last = text.strip().splitlines()[-1] if text.strip() else ""
            lines = [part for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", last.split(":")[-1]) if part.strip()]
        return len(lines) == n == len({line.lower().strip(" .") for line in lines})

    return check


def begins(word: str) -> Check:
    """yes or no, as the first word."""
    return lambda text: re.match(rf"\W*{word}\b", text, re.IGNORECASE) is not None


def holds(pattern: str) -> Check:
    """A pattern, upper and lower case as they are."""
    return lambda text: re.search(pattern, text) is not None


def about(word: str) -> Check:
    """A text on the subject; whether it ended is judged besides."""
    return lambda text: re.search(word, text, re.IGNORECASE) is not None and len(text.split()) >= 8


FACTS = [
    ("What is the capital of France?", says("Paris")),
    ("What is the capital of Japan?", says("Tokyo")),
    ("Who wrote Romeo and Juliet?", says("Shakespeare")),
    ("Which planet is the largest in our solar system?", says("Jupiter")),
    ("What gas do plants take in for photosynthesis?", says("carbon dioxide", "CO2")),
    ("How many days are there in a week?", says("seven", "7")),
    ("What is the chemical symbol of gold?", says("Au")),
    ("Which ocean lies between Europe and America?", says("Atlantic")),
    ("What is the opposite of cold?", says("hot", "warm")),
    ("Which animal is known as the king of the jungle?", says("lion")),
]
SUMS = [
    ("What is 2 + 2?", number(4)),
    ("What is 7 + 5?", number(12)),
    ("What is 10 - 3?", number(7)),
    ("What is 6 times 7?", number(42)),
    ("What is 20 divided by 4?", number(5)),
    ("I have 3 apples and buy 2 more. How many apples do I have?", number(5)),
]
LISTS = [
    ("List three colors.", items(3)),
    ("Name two animals that live in the sea.", items(2)),
    ("Give me a list of five fruits.", items(5)),
    ("List four countries in Europe.", items(4)),
    ("Name three musical instruments.", items(3)),
    ("List the four seasons of the year.", items(4)),
]
YES_NO = [
    ("Is the Sun a star? Answer with yes or no.", begins("yes")),
    ("Is ice hot? Answer with yes or no.", begins("no")),
    ("Can fish live in water? Answer with yes or no.", begins("yes")),
    ("Is Berlin the capital of Spain? Answer with yes or no.", begins("no")),
    ("Is 5 greater than 3? Answer with yes or no.", begins("yes")),
    ("Do cats have six legs? Answer with yes or no.", begins("no")),
]
REWRITE = [
    ("Write this word in capital letters: hello", holds("HELLO")),
    ("Correct this sentence: She go to school every day.", holds("[Ss]he goes to school every day")),
    ("Correct this sentence: I has two dog.", holds("I have two dogs")),
    ("Put this sentence into the past tense: I walk to the park.", holds("I walked to the park")),
    ("Translate to Spanish: Good morning", holds("(?i)buenos d[ií]as")),
    ("Write the plural of the word 'child'.", holds(r"(?i)\bchildren\b")),
]
WRITE = [
    ("Write a short story about a fox.", about("fox")),
    ("Explain in simple words why the sky is blue.", about("light|scatter")),
    ("Write a short poem about the sea.", about("sea|ocean|wave")),
    ("Write an email asking my boss for a day off.", about("day|leave|off")),
    ("Give me a simple recipe for pancakes.", about("flour")),
    ("Describe a cat in two sentences.", about("cat|fur|whisker")),
]
KINDS = {"facts": FACTS, "sums": SUMS, "lists": LISTS, "yes or no": YES_NO, "rewrite": REWRITE, "write": WRITE}
PROMPTS = [(kind, prompt, check) for kind, group in KINDS.items() for prompt, check in group]


@dataclass(frozen=True)
class Row:
    """One setting's figures."""

    temperature: float
    top_p: float
    repetition_penalty: float
    right: float
    error: float
    repeated: float
    tokens: float
    ended: float
    kinds: dict[str, float]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smol", help="a folder or a name")
    parser.add_argument("--temperatures", default="0,0.2,0.3,0.5,0.7,1", help="commas between")
    parser.add_argument("--top-ps", default="0.9,1", help="commas between")
    parser.add_argument("--repetition-penalties", default="1", help="commas between")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--show", default="", help="print the answers of this temperature,top_p")
    return parser.parse_args()


def numbers(text: str) -> list[float]:
    """`0,0.5` as numbers."""
    return [float(part) for part in text.split(",")]


def repeated(tokens: list[int]) -> float:
    """Share of 6-grams that stood in the list before."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def answers(llm: fathom.LLM, params: fathom.SamplingParams, samples: int) -> list[list[RequestOutput]]:
    """For each prompt its samples; all run side by side."""
    chats = [[{"role": "user", "content": prompt}] for _, prompt, _ in PROMPTS for _ in range(samples)]
    seeds = [seed for _ in PROMPTS for seed in range(samples)]
    outs = list(llm.each(chats, [params.replace(seed=seed) for seed in seeds]))
    return [outs[i * samples : (i + 1) * samples] for i in range(len(PROMPTS))]


def accepted(kind: str, check: Check, out: RequestOutput) -> bool:
    """The prompt's rule; what was to be written must also have ended."""
    return check(out.outputs[0].text) and (kind != "write" or out.outputs[0].finish_reason == "stop")


def measure(found: list[list[RequestOutput]], params: fathom.SamplingParams) -> Row:
    """Judge the answers of one setting."""
    by_prompt: list[float] = []
    by_kind: dict[str, list[float]] = {kind: [] for kind in KINDS}
    every = [out.outputs[0] for group in found for out in group]
    for (kind, _, check), group in zip(PROMPTS, found, strict=True):
        share = mean(float(accepted(kind, check, out)) for out in group)
        by_prompt.append(share)
        by_kind[kind].append(share)
    return Row(
        params.temperature, params.top_p, params.repetition_penalty,
        right=mean(by_prompt),
        error=stdev(by_prompt) / len(by_prompt) ** 0.5,
        repeated=mean(repeated(out.token_ids) for out in every),
        tokens=mean(len(out.token_ids) for out in every),
        ended=mean(float(out.finish_reason == "stop") for out in every),
        kinds={kind: mean(shares) for kind, shares in by_kind.items()},
    )  # fmt: skip


def settings(args: argparse.Namespace) -> list[tuple[float, float, float]]:
    """Temperature, top_p, repetition penalty; greedy has no top_p."""
    made = [
        (t, 1.0 if t == 0 else p, r)
        for t in numbers(args.temperatures)
        for p in numbers(args.top_ps)
        for r in numbers(args.repetition_penalties)
    ]
    return list(dict.fromkeys(made))


def main() -> None:
    args = options()
    llm = fathom.LLM(args.model)
    rows: list[Row] = []
    head = f"{'T':>5} {'top_p':>6} {'penalty':>8} {'right':>14} {'repeated':>9} {'tokens':>7} {'ended':>6}   "
    print(head + "  ".join(KINDS))
    began = time.monotonic()
    with progress("settings", len(settings(args)), unit="settings") as bar:
        for t, p, r in settings(args):
            params = fathom.SamplingParams(temperature=t, top_p=p, repetition_penalty=r, max_tokens=args.max_tokens)
            found = answers(llm, params, 1 if t == 0 else args.samples)
            row = measure(found, params)
            rows.append(row)
            kinds = "  ".join(f"{row.kinds[kind]:{len(kind)}.0%}" for kind in KINDS)
            print(
                f"{t:5g} {p:6g} {r:8g} {row.right:7.1%} ±{row.error:5.1%} {row.repeated:9.1%} {row.tokens:7.1f} "
                f"{row.ended:6.0%}   {kinds}",
                flush=True,
            )
            if args.show and numbers(args.show) == [t, p]:
                show(found)
            bar.advance(1)
    result: dict[str, Any] = {
        "model": args.model, "prompts": len(PROMPTS), "samples": args.samples, "max_tokens": args.max_tokens,
        "seconds": round(time.monotonic() - began, 1), "settings": [asdict(row) for row in rows],
    }  # fmt: skip
    print(json.dumps(result))


def show(found: list[list[RequestOutput]]) -> None:
    """Answers for people to read, on standard error, so that the table stays whole."""
    for (kind, prompt, check), group in zip(PROMPTS, found, strict=True):
        for out in group:
            word = "right" if accepted(kind, check, out) else "WRONG"
            print(f"[{kind}, {word}] {prompt}\n    {out.outputs[0].text!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
