"""`fathom acceptance` counts what greedy decoding confirms, and refuses what it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fathom.checkpoint.reader import load_model
from fathom.cli import main
from fathom.evals.acceptance import greedy_acceptance
from fathom.text.tokenizer import Tokenizer

TEXTS = ["the sea is deep", "a fish", "the bird sings in the tall tree"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_it_counts_what_the_definition_counts(
    tiny_folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompts", str(prompts), "--max-tokens", "12", "--prompt-tokens", "6", "--dtype", "float32"]
    assert main(["acceptance", str(tiny_folder), *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model, tokenizer = load_model(tiny_folder, dtype="float32"), Tokenizer.from_pretrained(tiny_folder)
    ids = [tokenizer.encode(text)[:6] for text in TEXTS]
    wanted = greedy_acceptance(model, ids, max_tokens=12, eos_ids=model.config.eos_token_id)
    # an engine makes no draft for a token that it has already accepted with the one before
    assert found["tokens"] == wanted.drafted + len(TEXTS)
    assert 0 < found["drafted"] <= wanted.drafted and found["accepted"] <= wanted.accepted
    assert main(["acceptance", str(tiny_folder), *flags]) == 0
    assert "drafts accepted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "flags", "words"),
    [
        ('{"words": "x"}', [], "line 1 has neither messages nor prompt nor text"),
        ("", [], "has no line"),
        ('{"text": "x"}', ["--count", "0"], "--count is 0"),
    ],
)
def test_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, flags: list[str], words: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    assert main(["acceptance", str(tiny_folder), "--prompts", str(path), *flags]) == 2
    assert words in capsys.readouterr().err
