"""`fathom train release`: what is shipped, what its card says, and what is refused before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_workshop import Workshop

from fathom import cli
from fathom.checkpoint.reader import open_checkpoint
from fathom.commands.train import main as cli_train
from fathom.runtime import UserError
from fathom.text.chat import ChatTemplate
from fathom.train.figures import SAMPLE_PROMPTS
from fathom.train.release import lineage


def test_release(done: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped folder is FP8 with tokenizer, template and a card whose figures were measured on it."""
    monkeypatch.setattr("fathom.train.figures.CHATS", 4)
    source = {"licence": "none", "docs": 40, "characters": 9999, "package": "made up"}
    (done.folder / "sources.json").write_text(json.dumps({"s0": source, "s1": source, "s2": {"skipped": "offline"}}))
    argv = ["train", "release", str(done.folder / "sft"), "--to", str(tmp_path / "shipped")]
    assert cli.main([*argv, "--beside", str(done.folder / "pretrain" / "export")]) == 0
    with open_checkpoint(tmp_path / "shipped") as checkpoint:
        assert checkpoint.is_fp8 and not checkpoint.has_mtp_copies
    assert ChatTemplate.from_pretrained(tmp_path / "shipped").source == ChatTemplate.builtin("v3").source
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert "Not fetched for this build: s2." in card and "| s0 | none | 40 | 9,999 | made up |" in card
    assert all(f"> **{prompt}**" in card for prompt in SAMPLE_PROMPTS)
    figure = r" ([\d.]+) \|"
    bits = {row[0]: row[1:] for row in re.findall(rf"^\| (s0|s1|mean) \|{3 * figure}$", card, flags=re.M)}
    assert set(bits) == {"s0", "s1", "mean"} and bits["s0"][0] != bits["s0"][1]
    assert all(pretrained == older for pretrained, _, older in bits.values())  # here the older one is the pretrained
    assert card.count("*the model before this one:*") == len(SAMPLE_PROMPTS)
    assert re.findall(r"^\| (pretraining|SFT) \| 0.0 M tokens[^,]*, 6 steps of 4 x", card, flags=re.M) == [
        "pretraining",
        "SFT",
    ]
    assert (tmp_path / "shipped" / "curves.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((tmp_path / "shipped" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 256


def test_a_release_that_cannot_have_its_card_writes_nothing(done: Workshop, tmp_path: Path) -> None:
    def refused(words: str, *argv: str) -> None:
        with pytest.raises(UserError, match=words):
            cli_train(["release", *argv, "--to", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()

    refused("no SFT run", str(done.folder / "pretrain"))
    headless = shutil.copytree(done.folder / "sft", tmp_path / "headless")
    config = json.loads((headless / "export" / "config.json").read_text()) | {"num_nextn_predict_layers": 0}
    (headless / "export" / "config.json").write_text(json.dumps(config))
    refused("no MTP module", str(headless))
    if (done.folder / "sources.json").exists():
        (done.folder / "sources.json").unlink()
    refused(r"sources\.json does not exist", str(done.folder / "sft"))
    (done.folder / "sources.json").write_text("{}")
    refused("context of 64 tokens", str(done.folder / "sft"), "--beside", str(shorter(done, tmp_path, 64)))


def shorter(done: Workshop, tmp_path: Path, context: int) -> Path:
    folder = shutil.copytree(done.folder / "pretrain" / "export", tmp_path / "short")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": context}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("beside", ["gone", "pretrain"])
def test_what_a_release_cannot_stand_beside(done: Workshop, tmp_path: Path, beside: str) -> None:
    """No such model, or a folder that is none: said before anything is written."""
    model = beside if beside == "gone" else str(done.folder / beside)
    (done.folder / "sources.json").write_text("{}")
    with pytest.raises(UserError, match=beside):
        cli_train(["release", str(done.folder / "sft"), "--to", str(tmp_path / "out"), "--beside", model])
    assert not (tmp_path / "out").exists()


def test_lineage_follows_an_extension_back_to_fresh_weights(tmp_path: Path) -> None:
    def run(name: str, init_from: str = "", **more: Any) -> None:
        (tmp_path / name).mkdir(parents=True)
        start = str(tmp_path / init_from / "export") if init_from else ""
        config = {"run": {"init_from": start}, **more}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        record = {"step": 2, "tokens": 100, "tokens_per_second": 50.0}
        (tmp_path / name / "log.jsonl").write_text(json.dumps(record) + "\n")

    phase = {"extend": {"factor": 4.0, "phases": [[128, 1, 2], [256, 1, 2]]}}
    run("pretrain")
    run("long/phase-1", "pretrain", data={"sequence_length": 128}, **phase)
    run("long/phase-2", "long/phase-1", data={"sequence_length": 256}, **phase)
    run("sft", "long/phase-2")
    stages = lineage(tmp_path / "sft")
    assert [s.run.name for s in stages] == ["pretrain", "phase-1", "phase-2", "sft"]
    wanted = ["pretraining", "extension to 128 tokens", "extension to 256 tokens", "SFT"]
    assert [s.kind for s in stages] == wanted and stages[0].minutes == pytest.approx(2 / 60)
    shutil.rmtree(tmp_path / "long" / "phase-1")
    with pytest.raises(UserError, match=r"phase-1 .*keep its runs"):
        lineage(tmp_path / "sft")
    run("circle", "circle")
    with pytest.raises(UserError, match="starts from itself"):
        lineage(tmp_path / "circle")
