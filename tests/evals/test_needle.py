"""The needle test: where the needle lies, what counts as right, which cells are which, resume, pictures, errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_model

from fathom.checkpoint.writer import save_model
from fathom.commands import needle as command
from fathom.engine.llm import LLM
from fathom.evals.needle import (
    Grid,
    check_lengths,
    fingerprint,
    measure,
    number_logprobs,
    read_results,
    summary,
    table,
)
from fathom.evals.needle_map import draw
from fathom.evals.needle_text import CITIES, Asker, Case, Haystack, Prompt, is_right
from fathom.model.context import extended, set_config
from fathom.runtime import UserError
from fathom.text.bpe import train_bpe
from fathom.text.chat import ChatTemplate
from fathom.text.tokenizer import Tokenizer

VOCAB = 320
SENTENCES = [f"{a} {b} {c} in the {d}." for a in ("The fish", "A bird") for b in ("swims", "sings", "sleeps")
             for c in ("all day", "a little", "again") for d in ("sea", "tall tree", "deep lake")]  # fmt: skip
DOCUMENTS = [" ".join(SENTENCES[i::7]) for i in range(7)] * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_bpe(DOCUMENTS, VOCAB, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(folder)


def asker(tokenizer: Tokenizer, template: ChatTemplate | None = None, seed: int = 0) -> Asker:
    return Asker(Haystack(DOCUMENTS, tokenizer, "test text"), template, seed)


class Reader:
    """Stands for an LLM that sees the last `sight` tokens and answers from what it can read there."""

    def __init__(self, tokenizer: Tokenizer, sight: int = 10**6) -> None:
        self.tokenizer, self.sight, self.name, self.max_model_len = tokenizer, sight, "reader", 600
        self.asked = 0

    def generate(self, prompts: Sequence[list[int]], params: Any) -> list[Any]:
        each = params if isinstance(params, list) else [params] * len(prompts)
        return [self._one(ids, one) for ids, one in zip(prompts, each, strict=True)]

    def _one(self, ids: list[int], params: Any) -> Any:
        text = self.tokenizer.decode(ids[-self.sight :])
        _, found, rest = text.partition("magic number of ")
        number = rest.split(" is ")[1].split(".")[0] if found and rest.count(" is ") >= 1 else ""
        if params.logit_bias:  # likes a token if the number it knows goes on with it
            said = text.rpartition(" is")[2]
            (token,) = params.logit_bias
            likes = bool(number) and f" {number}".startswith(said + self.tokenizer.decode([token]))
            logprob = SimpleNamespace(logprob=-0.1 if likes else -5.0)
            return SimpleNamespace(outputs=[SimpleNamespace(text="", logprobs=[logprob])])
        self.asked += 1
        return SimpleNamespace(outputs=[SimpleNamespace(text=f" {number}. And so on")])


GRID = Grid(lengths=(200, 400), depths=(0.0, 0.5, 1.0), trials=2, forms=("copy",))


@pytest.mark.parametrize("form", ["copy", "chat"])
def test_the_needle_starts_at_its_share_of_the_tokens(tokenizer: Tokenizer, form: Any) -> None:
    maker = asker(tokenizer, ChatTemplate.builtin("v3"))
    longest = max(len(tokenizer.encode_plain(" " + s)) for s in SENTENCES)
    for length, depth in ((300, 0.0), (300, 0.3), (600, 0.5), (600, 0.77), (450, 1.0)):
        prompt = maker.prompt(Case(form, length, depth, 1))
        assert length - longest - 3 <= len(prompt.ids) + prompt.answer <= length
        needle = f"The magic number of {prompt.city} is {prompt.number}."
        text = tokenizer.decode(prompt.ids)
        assert text.count(needle) == 1
        before, after = text.split(needle)
        rest = after.rpartition(" The magic" if form == "copy" else "\n\nWhat is the magic number")[0]
        tokens = [len(tokenizer.encode_plain(part)) for part in (before.split("<｜User｜>")[-1], rest)]
        assert tokens[0] / sum(tokens) == pytest.approx(depth, abs=(longest + 3) / sum(tokens))
        assert prompt.at == pytest.approx(tokens[0] / sum(tokens), abs=0.03)
        assert prompt.number not in after and len({prompt.number, *prompt.wrong}) == 5


def test_depths_share_what_stands_before_the_needle(tokenizer: Tokenizer) -> None:
    early, late = (asker(tokenizer).prompt(Case("copy", 400, depth, 0)).ids for depth in (0.5, 1.0))
    same = next(i for i, (a, b) in enumerate(zip(early, late, strict=False)) if a != b)
    assert same == pytest.approx(0.5 * 350, abs=25)
    other = asker(tokenizer).prompt(Case("copy", 400, 1.0, 1)).ids
    assert other[:40] != late[:40]  # another trial, another text


@pytest.mark.parametrize(
    ("said", "right"),
    [(" 48291.", True), ("The magic number of Oslo is 48291", True), ("It is 48,291!", True), (" 48291 or 5", True),
     (" 4829", False), (" 482910", False), ("5 or 48291", False), ("", False), ("no number", False)],
)  # fmt: skip
def test_exact_match(said: str, right: bool) -> None:
    assert is_right(said, "48291") is right


def test_every_cell_is_measured_once_and_scored(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sees_all, sees_250 = Reader(tokenizer), Reader(tokenizer, 250)
    results = measure(sees_all, GRID, asker(tokenizer), tmp_path / "all.jsonl", "a")  # type: ignore[arg-type]
    assert len(results) == len(GRID) == 12 == sees_all.asked
    assert len({(r.length, r.depth, r.trial) for r in results}) == 12
    assert all(r.correct and r.picked and r.logprobs[0] > max(r.logprobs[1:]) for r in results)
    short = measure(sees_250, GRID, asker(tokenizer), tmp_path / "some.jsonl", "b")  # type: ignore[arg-type]
    for score in ("correct", "picked"):
        lengths, depths, cells = table(short, score)
        assert (lengths, depths) == ([200, 400], [0.0, 0.5, 1.0])
        assert cells == [[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]  # 400 tokens, depth 0: out of sight
    shares = {n: s["correct"] for n, s in summary(short)["copy"].items()}
    assert shares == {"200": 1.0, "400": 0.6667}


def test_a_run_that_was_cut_off_goes_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    def run(grid: Grid = GRID, model_id: str = "a", seed: int = 0) -> tuple[int, list[Any]]:
        reader = Reader(tokenizer)
        found = measure(reader, grid, asker(tokenizer, seed=seed), path, model_id)  # type: ignore[arg-type]
        return reader.asked, found

    _, whole = run()
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    assert run() == (0, whole) and path.read_bytes() == content
    path.write_bytes(b"".join(lines[:7]) + lines[7][:30])
    assert run() == (5, whole) and path.read_bytes() == content
    larger = dataclasses.replace(GRID, lengths=(200, 300, 400))
    assert run(larger)[0] == 6
    assert run(model_id="other weights")[0] == 12 and run(seed=1)[0] == 12
    path.write_text("{}\n")
    with pytest.raises(UserError, match=r"run\.jsonl line 1"):
        read_results(path)


@pytest.mark.parametrize("factor", [1, 4])
def test_logprobs_are_those_of_the_model(tokenizer: Tokenizer, factor: int) -> None:
    model = tiny_model(1)
    if factor > 1:  # beyond the trained context, with YaRN
        set_config(model, extended(model.config, factor))
    model.requires_grad_(False)
    llm = LLM.from_parts(model, tokenizer)
    start = tokenizer.encode_plain("The fish swims. " * 6 * factor + "The magic number of Rome is")
    numbers = ["48291", "7", "10000"]
    got = list(number_logprobs(llm, [(start, n) for n in numbers]))
    for number, value in zip(numbers, got, strict=True):
        ids = [*start, *tokenizer.encode_plain(f" {number}")]
        logp = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        wanted = sum(float(logp[i - 1, ids[i]]) for i in range(len(start), len(ids)))
        assert value == pytest.approx(wanted, abs=1e-3)


def test_through_the_engine_with_its_cache(tokenizer: Tokenizer, tmp_path: Path) -> None:
    llm = LLM.from_parts(tiny_model(2, max_position_embeddings=400), tokenizer)
    grid = dataclasses.replace(GRID, lengths=(256, 400), trials=1)
    results = measure(llm, grid, asker(tokenizer), tmp_path / "x.jsonl", "tiny")
    prompts = sum(r.tokens for r in results)
    assert llm.engine.scheduler.prefix_hits > prompts  # every score and most haystacks
    assert all(len(r.logprobs) == 5 and r.tokens <= r.length for r in results)


def test_pictures(tokenizer: Tokenizer, tmp_path: Path) -> None:
    models = []
    for name, sight in (("with", 10**6), ("without", 250)):
        reader = Reader(tokenizer, sight)
        models.append((name, measure(reader, GRID, asker(tokenizer), tmp_path / name, name)))  # type: ignore[arg-type]
    draw(models, tmp_path / "needle.png")
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")


def test_limits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="length 400 is above the context of tiny, 128 tokens"):
        check_lengths(GRID, 128, "tiny")
    with pytest.raises(UserError, match="length of 20 tokens does not hold needle and question; give"):
        asker(tokenizer).prompt(Case("copy", 20, 0.5, 0))
    with pytest.raises(UserError, match=r"test text has \d+ tokens"):
        asker(tokenizer).prompt(Case("copy", 10**6, 0.5, 0))
    for changes, words in (
        ({"depths": (1.5,)}, "depth is 1.5"),
        ({"lengths": ()}, "no lengths"),
        ({"trials": 0}, "trials"),
    ):
        with pytest.raises(UserError, match=words):
            dataclasses.replace(GRID, **changes)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    save_model(tiny_model(3, max_position_embeddings=160), model, dtype="fp32", side_files_from=folder)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(DOCUMENTS))
    args = command.Args((str(model),), tmp_path / "out", haystack=text, lengths=(160,), quick=True, form="copy")
    assert command.run(args) == 0
    report = json.loads((tmp_path / "out" / "needle.json").read_text())
    assert report[str(model)]["copy"]["160"]["cases"] == 6
    assert (tmp_path / "out" / "needle.png").exists() and "correct" in capsys.readouterr().out
    far = dataclasses.replace(args, lengths=(160, 320))
    with pytest.raises(UserError, match=r"length 320 is above the context of .*, 160 tokens"):
        command.run(far)
    assert command.run(dataclasses.replace(far, beyond=True)) == 0
    assert len(read_results(tmp_path / "out" / "model-1.jsonl")) == 12
    assert command.run(dataclasses.replace(args, form="auto", out=tmp_path / "auto")) == 0
    report = json.loads((tmp_path / "auto" / "needle.json").read_text())
    assert set(report[str(model)]) == {"copy"}  # a base model: it was not trained on the built-in chat format
    with pytest.raises(UserError, match="does not exist"):
        command.run(dataclasses.replace(args, haystack=tmp_path / "none.jsonl"))
    before = fingerprint(model)
    save_model(tiny_model(4, max_position_embeddings=160), model, dtype="fp32", side_files_from=folder, overwrite=True)
    assert fingerprint(model) != before


def test_default_grids() -> None:
    args = command.Args(("minnow",), Path("out"))
    grid = command.make_grid(args, 8192, ("copy",))
    assert grid.lengths == (256, 512, 1024, 2048, 4096, 8192) and len(grid.depths) == 8 and grid.trials == 4
    assert (grid.depths[0], grid.depths[-1]) == (0.0, 1.0)
    quick = command.make_grid(dataclasses.replace(args, quick=True), 8192, ("copy",))
    assert quick.lengths == (1024, 2048, 4096, 8192) and quick.depths == (0.0, 0.5, 1.0) and quick.trials == 2


def test_numbers_and_cities_are_drawn_anew(tokenizer: Tokenizer) -> None:
    prompts: list[Prompt] = [asker(tokenizer).prompt(c) for group in GRID.groups() for c in group]
    assert len({p.number for p in prompts}) == len(prompts) and {p.city for p in prompts} <= set(CITIES)
