"""A folder with a tiny corpus and recipes for a pretraining and an SFT run, for tests of the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tiny_run import MODEL

from fathom import cli

SENTENCE = "the little fish swims in the deep sea and the little bird sings all day long"
WORDS = SENTENCE.split()


def text(i: int) -> str:
    return " ".join(WORDS[(i * 7 + k * (i % 3 + 1)) % len(WORDS)] for k in range(60))


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


class Workshop:
    """A folder with a corpus, a tokenizer and recipes for a pretraining and an SFT run."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder = folder
        folder.mkdir()
        shutil.copytree(tokenizer, folder / "tokenizer")
        documents = [{"source": f"s{i % 2}", "text": text(i)} for i in range(40)]
        talks = [
            {"messages": [{"role": "user", "content": WORDS[i % 15]}, {"role": "assistant", "content": text(i)[:40]}]}
            for i in range(40)
        ]
        write(folder / "train.jsonl", documents)
        write(folder / "heldout.jsonl", documents[:6])
        write(folder / "sft.jsonl", talks)
        self.recipe("pretrain", "train", "heldout", 16)
        self.recipe("sft", "sft", "sft", 48, init_from=str(folder / "pretrain" / "export"))

    def recipe(self, kind: str, train: str, heldout: str, length: int, **run: Any) -> None:
        tables: dict[str, dict[str, Any]] = {
            "model": MODEL | {"vocab_size": 320, "max_position_embeddings": 256},
            "data": {
                "train": f"{self.folder}/{train}.jsonl", "heldout": f"{self.folder}/{heldout}.jsonl",
                "tokenizer": f"{self.folder}/tokenizer", "batch_rows": 4, "micro_rows": 2, "sequence_length": length,
            },
            "optim": {"peak_lr": 5e-3, "warmup_steps": 2},
            "run": {
                "out": f"{self.folder}/{kind}", "steps": 6, "eval_every": 3, "eval_rows": 2, "checkpoint_every": 4,
                "log_every": 1, **run,
            },
            "precision": {"gemm": "fp32"},
        }  # fmt: skip
        lines = [
            f"[{t}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items()) for t, keys in tables.items()
        ]
        (self.folder / f"{kind}.toml").write_text("\n".join(lines))

    def train(self, kind: str, *flags: str) -> int:
        return cli.main(["train", kind, str(self.folder / f"{kind}.toml"), *flags])

    def log(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / kind / "log.jsonl").read_text().splitlines()]
