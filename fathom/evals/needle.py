"""Needle in a haystack: can a model say a fact again that it read N tokens ago? (Report section 4.3, Figure 8.)

For every length, depth and trial a prompt (needle_text.py), greedy decoding, and two scores:

    correct   the first number of the answer is the needle's
    picked    the right number is likelier than each of four wrong ones (chance: 1 in 5); said more finely by the
              log-probabilities themselves. A model too weak to answer may still be able to do this.

Prompts of one length and trial share their haystack: the deepest goes first, the others find what stands before their
needle in the engine's cache, and so do the scores of the numbers. One JSON line per case; a run that was cut off goes
on where it stopped, and a larger grid keeps what a smaller one has measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.engine.llm import LLM
from fathom.engine.params import SamplingParams
from fathom.evals.needle_text import Asker, Case, Form, Prompt, is_right
from fathom.runtime import UserError, progress

CERTAIN = 100.0  # a bias that makes any token the greedy one; reported log-probabilities are without it


@dataclass(frozen=True)
class Grid:
    """What is measured: every combination."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    trials: int
    forms: tuple[Form, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lengths", "depths", "forms"):
            if not getattr(self, name):
                raise UserError(f"the needle test has no {name}; give at least one")
        for length in self.lengths:
            if length < 1:
                raise UserError(f"a length is {length}, it must be at least 1")
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise UserError(f"a depth is {depth}, it must be between 0 (begin) and 1 (end)")
        if self.trials < 1 or self.seed < 0:
            raise UserError(f"{self.trials} trials, seed {self.seed}: give at least 1 trial and a seed from 0")

    def groups(self) -> Iterator[list[Case]]:
        """The cases that share a haystack, deepest first; long ones before short ones, which are their beginnings."""
        lengths, depths = sorted(set(self.lengths), reverse=True), sorted(set(self.depths), reverse=True)
        for form, trial, length in itertools.product(self.forms, range(self.trials), lengths):
            yield [Case(form, length, depth, trial) for depth in depths]

    def __len__(self) -> int:
        return len(self.forms) * self.trials * len(set(self.lengths)) * len(set(self.depths))


@dataclass(frozen=True)
class Result:
    """One case, measured. `logprobs`: of the right number, then of the wrong ones."""

    key: str
    form: str
    length: int
    depth: float
    trial: int
    tokens: int
    at: float
    number: str
    said: str
    correct: bool
    picked: bool
    logprobs: list[float]


def check_lengths(grid: Grid, limit: int, name: str) -> None:
    """A UserError if a length is more than the model's context."""
    if max(grid.lengths) > limit:
        raise UserError(
            f"length {max(grid.lengths)} is above the context of {name}, {limit} tokens; give shorter --lengths, or "
            "--beyond to measure it at positions that it never saw"
        )


def fingerprint(folder: Path) -> str:
    """Changes when the weights or the config of a checkpoint folder do."""
    parts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.safetensors"))]
    config = folder / "config.json"
    content = config.read_bytes() if config.exists() else b""
    return hashlib.blake2b(repr(parts).encode() + content, digest_size=16).hexdigest()


def measure(llm: LLM, grid: Grid, asker: Asker, out: Path, model_id: str) -> list[Result]:
    """Every case of the grid, in its order; `out` is the JSONL file, of which cases already measured are taken."""
    check_lengths(grid, llm.max_model_len, llm.name)
    known = read_results(out)
    results: list[Result] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "ab") as file, progress(f"needle {llm.name}", len(grid), unit="cases") as bar:
        for cases in grid.groups():
            prompts = [asker.prompt(case) for case in cases]
            keys = [_key(model_id, case, prompt) for case, prompt in zip(cases, prompts, strict=True)]
            left = [i for i, key in enumerate(keys) if key not in known]
            new = _measure(llm, [cases[i] for i in left], [prompts[i] for i in left], [keys[i] for i in left])
            for result in new:
                file.write(json.dumps(dataclasses.asdict(result), ensure_ascii=False).encode() + b"\n")
            if new:
                file.flush()
                os.fsync(file.fileno())
            known |= {result.key: result for result in new}
            results += [known[key] for key in keys]
            bar.advance(len(cases))
    return results


def _measure(llm: LLM, cases: Sequence[Case], prompts: Sequence[Prompt], keys: Sequence[str]) -> list[Result]:
    if not cases:
        return []
    params = SamplingParams(temperature=0.0, max_tokens=prompts[0].answer)  # the same for all of a form
    ids = [prompt.ids for prompt in prompts]
    answers = llm.generate(ids[:1], params) + (llm.generate(ids[1:], params) if len(ids) > 1 else [])
    scores = number_logprobs(llm, [(p.start, number) for p in prompts for number in (p.number, *p.wrong)])
    results = []
    for case, prompt, key, answer in zip(cases, prompts, keys, answers, strict=True):
        said = answer.outputs[0].text
        logprobs = [round(next(scores), 4) for _ in (prompt.number, *prompt.wrong)]
        results.append(Result(
            key, case.form, case.length, case.depth, case.trial, len(prompt.ids), round(prompt.at, 4), prompt.number,
            said, is_right(said, prompt.number), logprobs[0] > max(logprobs[1:]), logprobs,
        ))  # fmt: skip
    return results


def number_logprobs(llm: LLM, asked: Sequence[tuple[list[int], str]]) -> Iterator[float]:
    """log p(number | ids) of each. A token's comes from a request of one token that a bias forces: unlike
    prompt_logprobs, such requests find their prompt in the cache."""
    prompts: list[list[int]] = []
    params: list[SamplingParams] = []
    counts: list[int] = []
    for ids, number in asked:
        tokens = llm.tokenizer.encode_plain(f" {number}")
        counts.append(len(tokens))
        for i, token in enumerate(tokens):
            prompts.append([*ids, *tokens[:i]])
            params.append(SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, logit_bias={token: CERTAIN}))
    outputs = iter(llm.generate(prompts, params))
    for count in counts:
        total = 0.0
        for _ in range(count):
            found = next(outputs).outputs[0].logprobs
            assert found is not None
            total += found[0].logprob
        yield total


def _key(model_id: str, case: Case, prompt: Prompt) -> str:
    content = repr((model_id, dataclasses.astuple(case), prompt))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def read_results(path: Path) -> dict[str, Result]:
    """What a file holds, by key. A last line that was cut in the middle is removed from the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    out: dict[str, Result] = {}
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            result = Result(**json.loads(line))
        except (ValueError, TypeError):
            raise UserError(f"{path} line {number} is no result of the needle test; choose another --out") from None
        out[result.key] = result
    return out


def table(results: Sequence[Result], field: str) -> tuple[list[int], list[float], list[list[float]]]:
    """Lengths, depths, and the share of `field` (correct or picked) in each cell, [depth][length]."""
    lengths, depths = sorted({r.length for r in results}), sorted({r.depth for r in results})
    cells: dict[tuple[float, int], list[bool]] = {}
    for r in results:
        cells.setdefault((r.depth, r.length), []).append(getattr(r, field))
    share = {at: sum(found) / len(found) for at, found in cells.items()}
    return lengths, depths, [[share.get((d, n), float("nan")) for n in lengths] for d in depths]


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Shares by form and length, over all depths and trials."""
    out: dict[str, Any] = {}
    for form in sorted({r.form for r in results}):
        of_form = [r for r in results if r.form == form]
        rows: dict[str, Any] = {}
        for length in sorted({r.length for r in of_form}):
            cell = [r for r in of_form if r.length == length]
            margin = sum(r.logprobs[0] - sum(r.logprobs[1:]) / len(r.logprobs[1:]) for r in cell)
            rows[str(length)] = {
                "cases": len(cell), "correct": round(sum(r.correct for r in cell) / len(cell), 4),
                "picked": round(sum(r.picked for r in cell) / len(cell), 4), "margin": round(margin / len(cell), 3),
            }  # fmt: skip
        out[form] = rows
    return out
